"""Plots of the iterations of an on-policy run: what the policy drew before each, by step, by samples and by KL."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from qrpo_jax.report.optimum_rewards import Frontier
from qrpo_jax.report.picture import HIGH, INK, POLICY, REFERENCE, legend_below, render
from qrpo_jax.report.training_plots import LOG_FROM, MARKED_BELOW, Points, curve, label_steps

KL, REWARD = "kl_to_reference", "reward"

Iterations = Sequence[Mapping[str, Any]]  # of iterations.json


class Line(NamedTuple):
    """A curve of a panel.

    Attributes:
      label: for the legend; "" where the panel has no other curve.
      points: x and y.
      band: low and high at each x; None where they are not known.
    """

    label: str
    points: Points
    band: tuple[Sequence[float], Sequence[float]] | None = None


class Panel(NamedTuple):
    """Curves above each other's x axis.

    Attributes:
      label: of the y axis.
      log: the axis is logarithmic if all values are positive and far apart.
      zero: the axis begins at 0.
    """

    label: str
    lines: Sequence[Line]
    log: bool = False
    zero: bool = False


def line_of(iterations: Iterations, name: str, x: str = "step", label: str = "") -> Line | None:
    """A figure of iterations with its intervals; None if no iteration has it."""
    known = [one for one in iterations if name in one["figures"]]
    if not known:
        return None
    ends = [one["intervals"].get(name, (math.nan, math.nan)) for one in known]
    band = ([low for low, _ in ends], [high for _, high in ends]) if np.isfinite(ends).any() else None
    return Line(label, ([one[x] for one in known], [one["figures"][name] for one in known]), band)


def panels(name: str, title: str, several: Sequence[Panel], x_label: str | None = None) -> Markup:
    """Panels with one x axis, from top to bottom.

    Args:
      name, title: of the plot.
      x_label: of the x axis; by default it has steps.
    """
    colors, dashes = (POLICY, REFERENCE, HIGH), ("-", "--", ":")

    def draw(*axes_of: Axes) -> None:
        for axes, panel in zip(axes_of, several, strict=True):
            for place, line in enumerate(panel.lines):
                if line.band is not None:
                    axes.fill_between(line.points[0], *line.band, color=colors[place], alpha=0.2, linewidth=0)
                curve(axes, *line.points, colors[place], label=line.label, linestyle=dashes[place])
            values = [y for line in panel.lines for y in line.points[1]]
            if panel.log and min(values) > 0 and max(values) > LOG_FROM * min(values):
                axes.set_yscale("log")
            elif panel.zero:
                axes.set_ylim(bottom=0)
            axes.set_ylabel(panel.label)
        if x_label is None:
            label_steps(axes_of[-1])
        else:
            axes_of[-1].set_xlabel(x_label)
            axes_of[-1].xaxis.set_major_formatter("{x:,.0f}")
        labelled = [axes for axes, panel in zip(axes_of, several, strict=True) if len(panel.lines) > 1]
        if labelled:
            legend_below(labelled[0])

    height = 2.9 if len(several) == 1 else 2.8
    return render(name, title, draw, panels=len(several), height=height)


def reward_by_kl(iterations: Iterations, frontier: Frontier | None, asked: float | None) -> Markup:
    """Mean reward of each iteration against its KL to the reference, from the first to the last.

    Args:
      iterations: that know both.
      frontier: the optimum; None where it is not known.
      asked: KL of the optimum that the run's settings ask for.
    """
    kl = [one["figures"][KL] for one in iterations]
    reward = [one["figures"][REWARD] for one in iterations]
    barred = iterations if len(iterations) <= MARKED_BELOW else iterations[-1:]

    def draw(axes: Axes) -> None:
        ends = [end for one in barred for end in one["intervals"].get(KL, ())]
        low, high = min([*kl, *ends, 0.0]), max([*kl, *ends, asked or 0.0, 1e-3])
        low, high = low - 0.04 * (high - low), high + 0.12 * (high - low)
        seen = [*reward, *(end for one in barred for end in one["intervals"].get(REWARD, ()))]
        if frontier is not None:
            label = f"optimum of {frontier.name}, any β"
            axes.plot(frontier.kl, frontier.reward, color=INK, linewidth=1.1, label=label)
            seen += [r for x, r in zip(frontier.kl, frontier.reward, strict=True) if 0 < x <= high and np.isfinite(r)]
            if asked is not None:
                order = np.argsort(frontier.kl)
                value = float(np.interp(asked, frontier.kl[order], frontier.reward[order]))
                axes.plot([asked], [value], "*", color=HIGH, markersize=12, label="asked for")
        for one in barred:
            at = one["figures"][KL], one["figures"][REWARD]
            if KL in one["intervals"]:
                axes.plot(one["intervals"][KL], [at[1]] * 2, color=POLICY, linewidth=1.4, alpha=0.35)
            if REWARD in one["intervals"]:
                axes.plot([at[0]] * 2, one["intervals"][REWARD], color=POLICY, linewidth=1.4, alpha=0.35)
        axes.plot(kl, reward, ".-", color=POLICY, linewidth=0.9, markersize=5, label="iterations")
        axes.plot(kl[:1], reward[:1], "s", color=REFERENCE, markersize=6, label="first")
        axes.plot(kl[-1:], reward[-1:], "o", color=POLICY, markersize=7, label="last")
        margin = 0.08 * max(max(seen) - min(seen), 1e-6)
        axes.set_xlim(low, high)
        axes.set_ylim(min(seen) - margin, max(seen) + margin)
        axes.set_xlabel("KL(policy ‖ reference), nats a completion")
        axes.set_ylabel("mean reward")
        legend_below(axes)

    return render("rollout-kl", "Reward against KL over training", draw, height=3.4)
