"""Plots of a run's report: from numbers to SVG elements of a page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from qrpo_jax.report.svg import HIGH, INK, LOW, POLICY, REFERENCE, legend_below, render

SMOOTHED_FROM = 60  # points; a curve of fewer has no moving average
MARKED_BELOW = 25  # points; a curve of fewer has a mark at each
MOST_BINS = 25  # of a histogram
LOG_FROM = 30  # ratio of the largest to the smallest gradient norm from which their axis is logarithmic


def intervals(means: Mapping[str, tuple[float, Sequence[float]]]) -> str:
    """Mean rewards with their 95 % intervals.

    Args:
      means: for "reference" and "policy", or for the policy alone, the mean and (low, high), in units of the reward.
    """

    sides = [side for side in ("policy", "reference") if side in means]

    def draw(axes: Axes) -> None:
        for place, side in enumerate(sides):
            colour = {"policy": POLICY, "reference": REFERENCE}[side]
            mean, (low, high) = means[side]
            axes.plot([low, high], [place, place], color=colour, linewidth=3, solid_capstyle="round", alpha=0.45)
            axes.plot([mean], [place], "o" if side == "policy" else "s", color=colour, markersize=7)
            axes.annotate(f"{mean:.3g}", (mean, place), (0, 8), textcoords="offset points", ha="center")
        axes.set_yticks(range(len(sides)), sides)
        axes.set_ylim(-0.5, len(sides) - 0.4)
        axes.margins(x=0.12)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("mean reward per prompt, with 95 % interval")

    return render("intervals", "Held-out mean reward", draw, height=1.7)


def loss(steps: Sequence[float], losses: Sequence[float], *, name: str, title: str, unit: str) -> str:
    """A loss by step; `name` is unique among the plots of a page."""

    def draw(axes: Axes) -> None:
        _curve(axes, steps, losses, POLICY)
        axes.set_ylabel(f"loss ({unit})")
        _steps(axes)

    return render(name, title, draw)


def log_ratios(
    steps: Sequence[float], high: Sequence[float], low: Sequence[float], predicted: tuple[float, float] | None = None
) -> str:
    """Mean log-ratio, in nats per completion, of high- and of low-reward completions by step.

    Args:
      predicted: those of the optimum, for high- and for low-reward completions; None where no optimum is known.
    """

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=0.8)
        if predicted is not None:
            for value, colour, side in zip(predicted, (HIGH, LOW), ("high", "low"), strict=True):
                axes.axhline(value, color=colour, linewidth=1, linestyle=":", label=f"optimum, {side}")
        _curve(axes, steps, high, HIGH, label="high-reward completions")
        _curve(axes, steps, low, LOW, label="low-reward completions", linestyle="--")
        axes.set_ylabel("log π − log π_ref (nats)")
        legend_below(axes)
        _steps(axes)

    return render("log-ratios", "Log-ratio of high- and low-reward completions", draw)


def targets(steps: Sequence[float], quantile: Sequence[float], target: Sequence[float] | None) -> str:
    """Mean quantile of each batch and, unless it is None, mean calibrated target f(R_q) − β log Z, by step."""

    def draw(above: Axes, below: Axes | None = None) -> None:
        _curve(above, steps, quantile, POLICY)
        above.set_ylabel("quantile (0 to 1)")
        if below is not None and target is not None:
            below.axhline(0, color=INK, linewidth=0.8)
            _curve(below, steps, target, POLICY)
            below.set_ylabel("f(R_q) − β log Z")
        _steps(below if below is not None else above)

    if target is None:
        return render("targets", "Quantile of training completions", draw)
    return render("targets", "Quantile and calibrated target of training completions", draw, panels=2)


def gradient_norm(steps: Sequence[float], norms: Sequence[float]) -> str:
    """Global L2 norm of the gradient, before clipping, by step."""

    def draw(axes: Axes) -> None:
        _curve(axes, steps, norms, POLICY)
        positive = [n for n in norms if n > 0 and math.isfinite(n)]
        if positive and max(positive) > LOG_FROM * min(positive):
            axes.set_yscale("log")
        axes.set_ylabel("gradient norm (L2)")
        _steps(axes)

    return render("gradient-norm", "Gradient norm", draw)


def learning_rate(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """Learning rates by step, one panel per stage.

    Args:
      curves: for each stage its steps and its rates.
    """

    def draw(*panels: Axes) -> None:
        for axes, (stage, (steps, rates)) in zip(panels, curves.items(), strict=True):
            axes.plot(steps, rates, color=POLICY)
            axes.yaxis.set_major_formatter("{x:.2g}")
            axes.set_ylim(bottom=0)
            axes.set_ylabel(f"{stage} (per update)")
            _steps(axes)

    return render("learning-rate", "Learning rate", draw, panels=len(curves), shared=False)


def reward_histogram(rewards: Mapping[str, Sequence[float]]) -> str:
    """Share of completions by reward.

    Args:
      rewards: of the completions of "reference" and "policy", or of the policy alone.
    """
    edges = bins([reward for of_side in rewards.values() for reward in of_side])
    colours = {"reference": REFERENCE, "policy": POLICY}

    def draw(axes: Axes) -> None:
        width = 0.84 / len(rewards) * (edges[1] - edges[0])
        centres = (edges[1:] + edges[:-1]) / 2
        for place, (side, values) in enumerate(rewards.items()):
            counts, _ = np.histogram(np.asarray(values), edges)
            shift = (place - (len(rewards) - 1) / 2) * width
            axes.bar(centres + shift, counts / max(len(values), 1), width, color=colours[side], label=side)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("reward of a held-out completion")
        axes.set_ylabel("share of completions")
        axes.legend()

    return render("rewards", "Held-out rewards", draw)


def reward_bins(found: Sequence[tuple[float, float, int]]) -> str:
    """Share of completions by reward.

    Args:
      found: lowest and highest reward, and number of completions, of each bin, ascending; the bins do not overlap.
    """
    low_B, high_B, count_B = (np.asarray(column, np.float64) for column in zip(*found, strict=True))
    centre_B = (low_B + high_B) / 2
    gap = float(np.min(np.diff(centre_B))) if len(found) > 1 else 1.0
    width_B = np.where(high_B > low_B, high_B - low_B, 0.8 * gap)

    def draw(axes: Axes) -> None:
        axes.bar(centre_B, count_B / count_B.sum(), width_B, color=REFERENCE, edgecolor="white", linewidth=0.5)
        axes.grid(axis="x", visible=False)
        if len(found) == 1:
            axes.set_xticks(centre_B)
        axes.set_xlabel("reward of a training completion")
        axes.set_ylabel("share of completions")

    return render("training-rewards", "Training rewards", draw)


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


def prompt_means(reference: Sequence[float], policy: Sequence[float]) -> str:
    """Mean reward of each held-out prompt, reference against policy; equal points become one larger dot."""
    points, counts = np.unique(np.round(np.stack([reference, policy], 1), 4), axis=0, return_counts=True)
    areas = counts * min(16.0, 500.0 / float(np.max(counts)))  # points²

    def draw(axes: Axes) -> None:
        low, high = float(points.min()), float(points.max())
        axes.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle=":")
        axes.scatter(points[:, 0], points[:, 1], s=areas, color=POLICY, alpha=0.5, linewidths=0)
        axes.annotate("better", (0.03, 0.93), xycoords="axes fraction", color=INK, alpha=0.7)
        axes.annotate("worse", (0.97, 0.05), xycoords="axes fraction", color=INK, alpha=0.7, ha="right")
        axes.set_xlabel("mean reward under the reference")
        axes.set_ylabel("mean reward under the policy")

    return render("prompts", "Held-out prompts, before and after", draw)


def quantile_density(achieved: np.ndarray, optimum: tuple[np.ndarray, np.ndarray] | None, label: str) -> str:
    """Density of the quantiles of the policy's samples, beside that of the optimum.

    Args:
      achieved: [bins] density of the samples over equal bins of (0, 1); 1 everywhere for the reference policy.
      optimum: quantiles and the optimum's density there, or None where no optimum is known.
      label: of the optimum.
    """

    def draw(axes: Axes) -> None:
        edges = np.linspace(0, 1, len(achieved) + 1)
        axes.stairs(achieved, edges, fill=True, color=POLICY, alpha=0.35, linewidth=0)
        axes.stairs(achieved, edges, color=POLICY, label="policy")
        axes.axhline(1, color=REFERENCE, linestyle="--", label="reference")
        tallest = [float(np.max(achieved)), 1.0]
        if optimum is not None:
            quantile, density = optimum
            density = np.where(np.isfinite(density), density, np.nan)
            axes.plot(quantile, density, color=INK, linewidth=1.2, label=label)
            # The axis fits the averages over the bins and not the peak, which may be thousands high.
            inside = np.clip((quantile * len(achieved)).astype(int), 0, len(achieved) - 1)
            tallest += [float(np.nanmean(density[inside == b])) for b in np.unique(inside)]
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.25 * np.nanmax(tallest))
        axes.set_xlabel("quantile of the reward among reference completions")
        axes.set_ylabel("density (reference = 1)")
        axes.legend(loc="upper left")

    return render("quantiles", "Where the policy's completions rank", draw)


def _curve(axes: Axes, steps: Sequence[float], values: Sequence[float], colour: str, **line: Any) -> None:
    """A line; of many points a thin line with their moving average on top."""
    if len(steps) < SMOOTHED_FROM:
        axes.plot(steps, values, color=colour, marker="." if len(steps) < MARKED_BELOW else "", **line)
        return
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
    window = max(3, len(steps) // 20) | 1
    padded = np.pad(np.asarray(values, np.float64), window // 2, mode="edge")
    axes.plot(steps, np.convolve(padded, np.ones(window) / window, "valid"), color=colour, **line)


def _steps(axes: Axes) -> None:
    axes.set_xlabel("step (updates)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
