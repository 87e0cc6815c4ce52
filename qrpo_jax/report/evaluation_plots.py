"""Plots of a held-out evaluation: the policy beside the optimum that its settings ask for, and curves over training."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from qrpo_jax.report.svg import HIGH, INK, POLICY, REFERENCE, legend_below, render

Curve = Sequence[Mapping[str, Any]]  # of results.json
K1 = "kl_to_reference_k1"


class Frontier(NamedTuple):
    """KL and mean quantile of the optimum for a range of β, in order."""

    kl: np.ndarray
    quantile: np.ndarray


def asked_and_achieved(frontier: Frontier, achieved: Mapping[str, Any], policy: Mapping[str, Any], curve: Curve) -> str:
    """Mean quantile against KL: the optimum for each β, the one that was asked for, and the policy.

    Args:
      frontier: the optimum; what lies above it is out of reach.
      achieved, curve: as in results.json; the curve may have no points. The KL of the policy is known.
      policy: its figures, with intervals.
    """
    asked, reached = achieved["asked"], achieved["reached"]

    def draw(axes: Axes) -> None:
        axes.plot(frontier.kl, frontier.quantile, color=INK, linewidth=1.1, label="optimum, any β")
        axes.plot([0], [0.5], "s", color=REFERENCE, markersize=6, label="reference")
        axes.plot([asked["kl"]], [asked["quantile"]], "*", color=HIGH, markersize=12, label="asked for")
        steps = [point for point in curve if K1 in point]
        if len(steps) > 2:
            path = ([point[K1] for point in steps], [point["mean_quantile"] for point in steps])
            axes.plot(*path, ".-", color=POLICY, alpha=0.4, linewidth=0.9, label="steps of training")
        low, high = policy["intervals"]["mean_quantile"]
        axes.plot([reached["kl"]] * 2, [low, high], color=POLICY, linewidth=2, alpha=0.5)
        axes.plot(policy["intervals"][K1], [reached["quantile"]] * 2, color=POLICY, linewidth=2, alpha=0.5)
        axes.plot([reached["kl"]], [reached["quantile"]], "o", color=POLICY, markersize=7, label="policy")
        most = 1.3 * max(asked["kl"], reached["kl"], policy["intervals"][K1][1], *(p[K1] for p in steps))
        axes.set_xlim(-0.04 * most, most)
        axes.set_ylim(min(0.45, low - 0.02), 1)
        axes.set_xlabel("KL(policy ‖ reference), nats a completion")
        axes.set_ylabel("mean quantile")
        legend_below(axes)

    return render("achieved", "Asked for and achieved", draw)


def held_out_curve(curve: Curve) -> str:
    """Mean reward, mean quantile and KL of the policy on held-out prompts by step, with 95 % intervals."""
    steps = [point["step"] for point in curve]
    rows = {"mean reward": "mean_reward", "mean quantile": "mean_quantile"}
    rows |= {"KL (nats)": K1} if all(K1 in point for point in curve) else {}

    def draw(*panels: Axes) -> None:
        for axes, (label, name) in zip(panels, rows.items(), strict=True):
            low, high = np.asarray([point["intervals"][name] for point in curve]).T
            axes.fill_between(steps, low, high, color=POLICY, alpha=0.2, linewidth=0)
            axes.plot(steps, [point[name] for point in curve], ".-", color=POLICY)
            axes.set_ylabel(label)
        panels[-1].set_xlabel("step (updates)")
        panels[-1].xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))

    return render("held-out-curve", "Held-out figures over training", draw, panels=len(rows), height=1.9)
