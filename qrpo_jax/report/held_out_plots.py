"""Plots of a held-out evaluation: rewards, ranks, the policy beside its optimum, length, and curves over training."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from qrpo_jax.report.optimum_rewards import Frontier
from qrpo_jax.report.picture import GREY, HIGH, INK, POLICY, REFERENCE, legend_below, render

MOST_BINS = 25  # of a histogram
COLORS = {"reference": REFERENCE, "policy": POLICY}
K1 = "kl_to_reference_k1"
ENOUGH = 10  # completions of a length; of fewer there is no median
FAR_SHARE = 0.005  # of points at either end that may lie outside the axes
RASTER_FROM = 500  # marks; more of them are an image inside the SVG

Curve = Sequence[Mapping[str, Any]]  # of results.json


def reward_histogram(
    rewards: Mapping[str, Sequence[float]], optimum: tuple[np.ndarray, np.ndarray] | None = None
) -> Markup:
    """Share of completions by reward.

    Args:
      rewards: of the completions of "reference" and "policy", or of the policy alone.
      optimum: rewards and the probability of each under the closed-form optimum; None where none is known.
    """
    edges = bins([reward for of_side in rewards.values() for reward in of_side])

    def draw(axes: Axes) -> None:
        width = 0.84 / len(rewards) * (edges[1] - edges[0])
        centres = (edges[1:] + edges[:-1]) / 2
        for place, (side, values) in enumerate(rewards.items()):
            counts, _ = np.histogram(np.asarray(values), edges)
            shift = (place - (len(rewards) - 1) / 2) * width
            axes.bar(centres + shift, counts / max(len(values), 1), width, color=COLORS[side], label=side)
        if optimum is not None:
            mass, _ = np.histogram(optimum[0], edges, weights=optimum[1] / optimum[1].sum())
            axes.stairs(mass, edges, color=INK, linewidth=1.2, label="closed-form optimum")
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("reward of a held-out completion")
        axes.set_ylabel("share of completions")
        legend_below(axes)

    return render("rewards", "Distribution of rewards", draw)


def bins(values: Sequence[float]) -> np.ndarray:
    """Edges [bins + 1] of equal bins that contain all values.

    Values on a coarse grid, such as shares of ten tests, get one bin each and lie in its middle; other values share
    MOST_BINS bins.
    """
    distinct = np.unique(np.round(np.asarray(values, np.float64), 6))
    if len(distinct) < 2:
        middle = float(distinct[0]) if len(distinct) else 0.0
        return np.array([middle - 0.5, middle + 0.5])
    low, high, gap = distinct[0], distinct[-1], np.min(np.diff(distinct))
    places = (distinct - low) / gap
    if places[-1] <= MOST_BINS and np.allclose(places, np.round(places), atol=0.01):
        count = int(round(places[-1])) + 1
        return low + gap * (np.arange(count + 1) - 0.5)
    # Slightly wider than the values, because they were rounded.
    return np.linspace(low - 1e-6, high + 1e-6, MOST_BINS + 1)


def prompt_means(reference: Sequence[float], policy: Sequence[float]) -> Markup:
    """Mean reward of each held-out prompt, reference against policy; equal points become one larger dot."""
    points, counts = np.unique(np.round(np.stack([reference, policy], 1), 4), axis=0, return_counts=True)
    areas = counts * min(16.0, 500.0 / float(np.max(counts)))  # points²

    def draw(axes: Axes) -> None:
        low, high = float(points.min()), float(points.max())
        axes.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle=":")
        raster = len(points) > RASTER_FROM
        axes.scatter(points[:, 0], points[:, 1], s=areas, color=POLICY, alpha=0.45, linewidths=0, rasterized=raster)
        axes.annotate("better", (0.03, 0.93), xycoords="axes fraction", color=GREY)
        axes.annotate("worse", (0.97, 0.05), xycoords="axes fraction", color=GREY, ha="right")
        axes.set_xlabel("mean reward under the reference")
        axes.set_ylabel("mean reward under the policy")

    return render("prompts", "Prompt by prompt", draw)


class Ranks(NamedTuple):
    """Densities of quantiles over equal bins of (0, 1), with mean 1; a density that is 1 everywhere is flat.

    Attributes:
      label: of the curve.
      density: [bins].
      color: of the curve.
    """

    label: str
    density: np.ndarray
    color: str


def quantile_density(
    name: str,
    title: str,
    found: Sequence[Ranks],
    optimum: tuple[np.ndarray, np.ndarray] | None = None,
    label: str = "",
) -> Markup:
    """Densities of quantiles, beside that of the optimum.

    Args:
      name, title: of the plot.
      found: the densities; the first one is filled.
      optimum: quantiles and the optimum's density there, or None where no optimum is known.
      label: of the optimum.
    """

    def draw(axes: Axes) -> None:
        tallest = [1.0]
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=":", label="flat")
        for place, one in enumerate(found):
            edges = np.linspace(0, 1, len(one.density) + 1)
            if not place:
                axes.stairs(one.density, edges, fill=True, color=one.color, alpha=0.3, linewidth=0)
            dashes = "--" if place else "-"
            axes.stairs(one.density, edges, color=one.color, linewidth=1.4, linestyle=dashes, label=one.label)
            tallest.append(float(np.max(one.density)))
        if optimum is not None:
            quantile, density = optimum
            density = np.where(np.isfinite(density), density, np.nan)
            axes.plot(quantile, density, color=INK, linewidth=1.2, label=label)
            # The axis fits the averages over the bins and not the peak, which may be thousands high.
            count = len(found[0].density)
            inside = np.clip((quantile * count).astype(int), 0, count - 1)
            tallest += [float(np.nanmean(density[inside == b])) for b in np.unique(inside)]
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.25 * np.nanmax(tallest))
        axes.set_xlabel("quantile of the reward among reference completions")
        axes.set_ylabel("density")
        legend_below(axes)

    return render(name, title, draw)


def reward_by_kl(
    frontier: Frontier, results: Mapping[str, Any], asked: Mapping[str, float] | None, curve: Curve
) -> Markup:
    """Mean reward, and mean quantile, against KL: the optimum for each β, what was asked for, and the policy.

    Args:
      frontier: the optimum.
      results: content of results.json; both sides have figures, and the KL of the policy is known.
      asked: KL and quantile of the optimum of the run's settings; None where it is not known.
      curve: of results.json; it may have no points.
    """
    policy, steps = results["policy"], [point for point in curve if K1 in point]
    rows = {"mean reward": ("mean_reward", frontier.reward), "mean quantile": ("mean_quantile", frontier.quantile)}
    start = {"mean_reward": results["reference"]["mean_reward"], "mean_quantile": 0.5}

    def draw(*panels: Axes) -> None:
        for axes, (label, (name, of_optimum)) in zip(panels, rows.items(), strict=True):
            axes.plot(frontier.kl, of_optimum, color=INK, linewidth=1.1, label=f"optimum of {frontier.name}, any β")
            axes.plot([0], [start[name]], "s", color=REFERENCE, markersize=6, label="reference")
            if asked is not None:
                value = float(np.interp(asked["kl"], *np.asarray(sorted(zip(frontier.kl, of_optimum, strict=True))).T))
                axes.plot([asked["kl"]], [value], "*", color=HIGH, markersize=12, label="asked for")
            if len(steps) > 2:
                path = ([point[K1] for point in steps], [point[name] for point in steps])
                axes.plot(*path, ".-", color=POLICY, alpha=0.5, linewidth=0.9, label="checkpoints")
            interval = policy["intervals"]
            axes.plot([policy[K1]] * 2, interval[name], color=POLICY, linewidth=2, alpha=0.5)
            axes.plot(interval[K1], [policy[name]] * 2, color=POLICY, linewidth=2, alpha=0.5)
            axes.plot([policy[K1]], [policy[name]], "o", color=POLICY, markersize=7, label="policy")
            axes.set_ylabel(label)
            seen = [start[name], *interval[name], *(point[name] for point in steps)]
            inside = of_optimum[(frontier.kl <= most) & (frontier.kl > 0)]
            low, high = min(seen), max([*seen, *inside[np.isfinite(inside)]])
            axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
        panels[-1].set_xlim(-0.04 * most, most)
        panels[-1].set_xlabel("KL(policy ‖ reference), nats a completion")
        legend_below(panels[0])

    ends = [policy[K1], policy["intervals"][K1][1], *(point[K1] for point in steps)]
    most = 1.3 * max([*(end for end in ends if np.isfinite(end)), asked["kl"] if asked else 0.0, 1e-3])
    return render("achieved", "Reward against KL", draw, panels=2, height=3.1)


def implicit_rewards(points: Mapping[str, Mapping[str, Any]], beta: float | None) -> Markup:
    """Implicit reward of completions against their length, one panel a side.

    Args:
      points: of each side `length` and `log_ratio`, log π − log π_ref in nats.
      beta: times which a log-ratio is an implicit reward; None draws log-ratios.
    """

    def draw(*panels: Axes) -> None:
        for axes, (side, one) in zip(panels, points.items(), strict=True):
            length, ratio = np.asarray(one["length"]), np.asarray(one["log_ratio"]) * (beta or 1.0)
            spread = np.random.default_rng(0).uniform(-0.3, 0.3, len(length))  # lengths are whole numbers
            raster = len(length) > RASTER_FROM
            axes.axhline(0, color=INK, linewidth=0.8, linestyle=":")
            axes.scatter(length + spread, ratio, 7, COLORS[side], alpha=0.3, linewidths=0, rasterized=raster)
            axes.set_ylim(*within(ratio))
            values, counts = np.unique(length, return_counts=True)
            known = values[counts >= ENOUGH]
            if 1 < len(known) <= MOST_BINS:
                middle = [float(np.median(ratio[length == value])) for value in known]
                axes.plot(known, middle, "o-", color=INK, markersize=3, linewidth=1, label="median at a length")
            axes.set_ylabel(f"of the {side}")
        panels[-1].set_xlabel("tokens of a completion")
        panels[-1].xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        if panels[0].get_legend_handles_labels()[1]:
            legend_below(panels[0])

    what = "Log-ratio" if beta is None else "Implicit reward"
    return render("length", f"{what} against length", draw, panels=len(points), height=2.6)


def within(values: np.ndarray) -> tuple[float, float]:
    """Limits of an axis that hold all but the FAR_SHARE of values at either end, with a margin."""
    low, high = np.quantile(values, [FAR_SHARE, 1 - FAR_SHARE])
    margin = 0.1 * max(high - low, 1e-3)
    return float(low - margin), float(high + margin)


def held_out_curve(curve: Curve) -> Markup:
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

    return render("held-out-curve", "Checkpoints on held-out prompts", draw, panels=len(rows), height=2.2)
