"""Plots of a training stage: curves of every step, and where its time went."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from qrpo_jax.report.picture import (
    GREY,
    HIGH,
    INK,
    LOW,
    POLICY,
    REFERENCE,
    SERIES,
    legend_below,
    render,
)
from qrpo_jax.training.time_sheet import USEFUL

MARKED_BELOW = 25  # points; a curve of fewer has a mark at each
SMOOTHED_FROM = 60  # points; a curve of fewer has no moving average
MOST_POINTS = 400  # of a curve; of more it has means with a range
LEAST_RANGE = 0.1  # of a quantile's axis
LOG_FROM = 30  # ratio of the largest to the smallest gradient norm from which their axis is logarithmic

Points = tuple[Sequence[float], Sequence[float]]  # steps, and values there


def loss(name: str, title: str, losses: Points, held_out: Points | None) -> Markup:
    """A loss by step.

    Args:
      name, title: of the plot.
      losses: of the batches of training.
      held_out: of rows that no step sees.
    """

    def draw(axes: Axes) -> None:
        curve(axes, *losses, POLICY, label="batches of training")
        if held_out is not None:
            axes.plot(*held_out, "o-", color=REFERENCE, markersize=4, label="held-out rows")
            legend_below(axes)
        axes.set_ylabel("loss")
        label_steps(axes)

    return render(name, title, draw)


def sampled_reward(rewards: Points) -> Markup:
    """Mean reward of held-out prompts that are sampled while the policy trains."""

    def draw(axes: Axes) -> None:
        curve(axes, *rewards, POLICY)
        axes.set_ylabel("mean reward")
        label_steps(axes)

    return render("sampled-reward", "Sampled reward", draw)


def log_ratios(
    steps: Sequence[float],
    sides: Mapping[str, Sequence[float]],
    predicted: Mapping[str, float] | None = None,
    held_out: Mapping[str, Points] | None = None,
) -> Markup:
    """Mean log-ratio, in nats per completion, of high- and of low-reward completions by step.

    Args:
      sides: of "high" and of "low".
      predicted: those of the optimum; None where no optimum is known.
      held_out: those of rows that no step sees.
    """
    colors = {"high": HIGH, "low": LOW}

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=0.8)
        for side, color in colors.items():
            dashes = "-" if side == "high" else "--"
            curve(axes, steps, sides[side], color, label=f"{side}-reward completions", linestyle=dashes)
            if predicted is not None:
                axes.axhline(predicted[side], color=color, linewidth=1.2, linestyle=":", label=f"optimum, {side}")
            if held_out and side in held_out:
                mark = "o" if side == "high" else "s"
                axes.plot(*held_out[side], mark, color=color, markersize=4, label=f"held-out rows, {side}")
        axes.set_ylabel("log π − log π_ref (nats)")
        legend_below(axes)
        label_steps(axes)

    return render("log-ratios", "Log-ratios of chosen and rejected", draw, height=3.4)


def targets(steps: Sequence[float], quantile: Sequence[float], target: Sequence[float] | None) -> Markup:
    """Mean quantile of each batch and, unless it is None, mean calibrated target f(R_q) − β log Z, by step."""

    def draw(above: Axes, below: Axes | None = None) -> None:
        curve(above, steps, quantile, POLICY)
        low, high = above.get_ylim()
        if high - low < LEAST_RANGE:  # a mean that is the same in every batch
            above.set_ylim((low + high - LEAST_RANGE) / 2, (low + high + LEAST_RANGE) / 2)
        above.set_ylabel("quantile (0 to 1)")
        if below is not None and target is not None:
            below.axhline(0, color=INK, linewidth=0.8)
            curve(below, steps, target, POLICY)
            below.set_ylabel("f(R_q) − β log Z")
        label_steps(below if below is not None else above)

    if target is None:
        return render("targets", "Quantile of training completions", draw)
    return render("targets", "Quantile and target of training completions", draw, panels=2, height=2.6)


def gradient_norm(steps: Sequence[float], norms: Sequence[float]) -> Markup:
    """Global L2 norm of the gradient, before clipping, by step."""

    def draw(axes: Axes) -> None:
        curve(axes, steps, norms, POLICY)
        positive = [n for n in norms if n > 0 and math.isfinite(n)]
        if positive and max(positive) > LOG_FROM * min(positive):
            axes.set_yscale("log")
        axes.set_ylabel("gradient norm (L2)")
        label_steps(axes)

    return render("gradient-norm", "Gradient norm", draw)


def learning_rate(curves: Mapping[str, Points]) -> Markup:
    """Learning rates by step, one panel per stage."""

    def draw(*panels: Axes) -> None:
        for axes, (stage, (steps, rates)) in zip(panels, curves.items(), strict=True):
            axes.plot(steps, rates, color=POLICY)
            axes.yaxis.set_major_formatter("{x:.2g}")
            axes.set_ylim(bottom=0)
            axes.set_ylabel(stage)
            label_steps(axes)

    height = 3.0 if len(curves) == 1 else 2.6
    return render("learning-rate", "Learning rate", draw, panels=len(curves), height=height, shared=False)


def reward_bins(found: Sequence[tuple[float, float, int]], what: str) -> Markup:
    """Share of completions by reward.

    Args:
      found: lowest and highest reward, and number of completions, of each bin, ascending; the bins do not overlap.
      what: the completions are called.
    """
    low_B, high_B, count_B = (np.asarray(column, np.float64) for column in zip(*found, strict=True))
    centre_B = (low_B + high_B) / 2
    gap = float(np.min(np.diff(centre_B))) if len(found) > 1 else 1.0
    width_B = np.where(high_B > low_B, 0.95 * (high_B - low_B), 0.8 * gap)

    def draw(axes: Axes) -> None:
        axes.bar(centre_B, count_B / count_B.sum(), width_B, color=REFERENCE)
        axes.grid(axis="x", visible=False)
        if len(found) == 1:
            axes.set_xticks(centre_B)
        axes.set_xlabel(f"reward of a {what} completion")
        axes.set_ylabel("share of completions")

    return render("training-rewards", f"Rewards of {what} completions", draw)


def throughput(curves: Mapping[str, Points]) -> Markup:
    """Tokens per second by step, one panel per stage."""

    def draw(*panels: Axes) -> None:
        for axes, (stage, (steps, rates)) in zip(panels, curves.items(), strict=True):
            curve(axes, steps, rates, POLICY)
            axes.set_ylim(0, 1.1 * max(rates))
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.set_ylabel(f"{stage}, tokens/s")
            label_steps(axes)

    height = 3.0 if len(curves) == 1 else 2.6
    return render("throughput", "Throughput", draw, panels=len(curves), height=height, shared=False)


def goodput(shares: Mapping[str, Mapping[str, float]]) -> Markup:
    """Shares of the time of each training stage by cause, as a bar each."""

    def draw(axes: Axes) -> None:
        start = np.zeros(len(shares))
        causes = [cause for cause in next(iter(shares.values())) if any(one[cause] > 0.001 for one in shares.values())]
        causes.sort(key=lambda cause: cause not in USEFUL)
        for place, cause in enumerate(causes):
            width = np.asarray([one[cause] for one in shares.values()])
            color = (HIGH, *(color for color in SERIES if color != HIGH))[place % len(SERIES)]
            label = f"{cause} (goodput)" if cause in USEFUL else cause
            axes.barh(list(shares), width, left=start, height=0.55, color=color, label=label)
            start += width
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, 1)
        axes.invert_yaxis()
        legend_below(axes)

    return render("goodput", "Goodput", draw, height=1.3 + 0.45 * len(shares))


def stage_seconds(seconds: Mapping[str, float]) -> Markup:
    """Wall time by stage."""

    def draw(axes: Axes) -> None:
        bars = axes.barh(list(seconds), list(seconds.values()), height=0.6, color=GREY)
        axes.bar_label(bars, [f"{value:,.0f} s" for value in seconds.values()], padding=4)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.16)
        axes.invert_yaxis()
        axes.set_xlabel("seconds, all starts together")

    return render("stage-seconds", "Wall time by stage", draw, height=0.9 + 0.3 * len(seconds))


def curve(axes: Axes, steps: Sequence[float], values: Sequence[float], color: str, **line: Any) -> None:
    """A line through every point; of many points a thin one with their moving average on top; of very many the mean of
    neighbouring points, in a band from the least to the most of them."""
    known = np.isfinite(np.asarray(values, np.float64))
    x, y = np.asarray(steps, np.float64)[known], np.asarray(values, np.float64)[known]
    if len(x) < SMOOTHED_FROM:
        axes.plot(x, y, color=color, marker="." if len(x) < MARKED_BELOW else "", **line)
        return
    if len(x) > MOST_POINTS:
        parts = np.array_split(np.arange(len(x)), MOST_POINTS // 2)
        middle = [x[part].mean() for part in parts]
        low, high = [y[part].min() for part in parts], [y[part].max() for part in parts]
        axes.fill_between(middle, low, high, color=color, alpha=0.18, linewidth=0)
        axes.plot(middle, [y[part].mean() for part in parts], color=color, **line)
        return
    axes.plot(x, y, color=color, linewidth=0.7, alpha=0.35)
    window = max(3, len(x) // 20) | 1
    padded = np.pad(y, window // 2, mode="edge")
    axes.plot(x, np.convolve(padded, np.ones(window) / window, "valid"), color=color, **line)


def label_steps(axes: Axes) -> None:
    axes.set_xlabel("step (updates)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
