"""Plots of a sweep: methods side by side, reward against KL, length bias, and the number of references."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from qrpo_jax.report.picture import (
    BROWN,
    GREY,
    HIGH,
    INK,
    LOW,
    POLICY,
    REFERENCE,
    TEAL,
    VIOLET,
    legend_below,
    plain,
    render,
)

COLORS = (POLICY, HIGH, LOW, VIOLET, BROWN, TEAL)  # of methods; those of the reference and of Best-of-N are others
MARKERS = ("o", "^", "D", "v", "P", "X", "*")  # of another number than colors, so that both together tell more apart
MOST_NAMED = 8  # curves with a name; of more, colors repeat


class Estimate(NamedTuple):
    """A mean with the interval that is drawn: ± a standard deviation over seeds, or the 95 % interval of one seed.

    Attributes:
      low, high: equal to the mean where nothing is known.
      values: of each seed.
    """

    mean: float
    low: float
    high: float
    values: Sequence[float] = ()


class Setting(NamedTuple):
    """Figures of a setting for the plot of reward against KL."""

    kl: Estimate
    reward: Estimate


def style(place: int) -> tuple[str, str]:
    """Color and marker of the method at this place."""
    return COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]


def compared(
    name: str,
    title: str,
    label: str,
    methods: Mapping[str, Estimate],
    places: Mapping[str, int],
    *,
    baselines: Mapping[str, float],
    zero: bool = False,
) -> Markup:
    """Methods below each other, with interval and seeds.

    Args:
      name, title, label: of the plot and its axis.
      methods: in order.
      places: of methods, for their color and marker; in all plots the same.
      baselines: drawn as vertical lines.
      zero: whether 0 has a line.
    """

    def draw(axes: Axes) -> None:
        for place, (method, one) in enumerate(methods.items()):
            color, marker = style(places[method])
            axes.plot([one.low, one.high], [place, place], color=color, linewidth=5, alpha=0.3, solid_capstyle="round")
            if len(one.values) > 1:
                axes.plot(one.values, [place + 0.22] * len(one.values), ".", color=color, markersize=4, alpha=0.7)
            axes.plot([one.mean], [place], marker, color=color, markersize=7)
            above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes.annotate(f"{one.mean:.3f}", (one.mean, place), (0, 7), **above)
        for place, (text, value) in enumerate(baselines.items()):
            color, dashes = (REFERENCE, "--") if text == "reference" else (GREY, ["-.", ":", (0, (1, 3))][place % 3])
            axes.axvline(value, color=color, linestyle=dashes, linewidth=1.2, label=plain(text))
        if zero:
            axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(methods)), [plain(method) for method in methods])
        axes.set_ylim(len(methods) - 0.4, -0.75)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.08)
        axes.set_xlabel(label)
        if baselines:
            legend_below(axes)

    return render(name, title, draw, height=1.3 + 0.42 * len(methods))


def reward_by_kl(
    methods: Mapping[str, Sequence[Setting]],
    places: Mapping[str, int],
    reference: float | None,
    best_of: Mapping[int, float],
) -> Markup:
    """Mean reward against KL of all settings of each method, with spreads; settings of a method are joined by KL.

    Args:
      methods: settings of each.
      places: as in `compared`.
      reference: its mean reward, at KL 0.
      best_of: mean reward of Best-of-N by N, whose KL is log N − (N − 1) / N.
    """

    def draw(axes: Axes) -> None:
        for method, settings in methods.items():
            color, marker = style(places[method])
            ordered = sorted(settings, key=lambda one: one.kl.mean)
            for one in ordered:
                axes.plot([one.kl.low, one.kl.high], [one.reward.mean] * 2, color=color, linewidth=1.6, alpha=0.4)
                axes.plot([one.kl.mean] * 2, [one.reward.low, one.reward.high], color=color, linewidth=1.6, alpha=0.4)
            path = [one.kl.mean for one in ordered], [one.reward.mean for one in ordered]
            axes.plot(*path, color=color, marker=marker, markersize=5.5, linewidth=0.9, label=plain(method))
        if reference is not None:
            axes.plot([0], [reference], "s", color=REFERENCE, markersize=6, label="reference", zorder=4)
        if best_of:
            kl = [math.log(n) - (n - 1) / n for n in best_of]
            axes.plot(kl, list(best_of.values()), "d--", color=GREY, markersize=4.5, linewidth=0.9, label="Best-of-N")
            for x, (n, reward) in zip(kl, best_of.items(), strict=True):
                axes.annotate(f"N = {n}", (x, reward), (6, -3), textcoords="offset points", fontsize=8, color=GREY)
        axes.set_xlabel("KL(policy ‖ reference), nats a completion")
        axes.set_ylabel("mean reward")
        legend_below(axes)

    return render("reward-kl", "Reward against KL", draw, height=3.4)


class Drawn(NamedTuple):
    """A setting in the plots of what policies drew.

    Attributes:
      curve: of an on-policy setting by iteration samples, reward, reward_low, reward_high, and kl if it is known.
      at: where the finished policy is on the x axis; None where that is not known.
      reward: of the finished policy on held-out prompts.
    """

    curve: Mapping[str, Sequence[float]] | None
    at: float | None
    reward: Estimate


def over_training(
    name: str, title: str, x: str, label: str, settings: Mapping[str, Drawn], places: Mapping[str, int]
) -> Markup:
    """Reward over training against samples or KL, with a mark for each finished policy on held-out prompts.

    Args:
      name, title: of the plot.
      x: figure of the curves on the x axis, "samples" or "kl", with its label.
      places: as in `compared`.
    """

    def draw(axes: Axes) -> None:
        for setting, one in settings.items():
            color, marker = style(places[setting])
            named = plain(setting)
            if one.curve is not None and x in one.curve:
                axes.plot(one.curve[x], one.curve["reward"], color=color, linewidth=1.3, label=named)
                ends = one.curve["reward_low"], one.curve["reward_high"]
                if x == "samples":  # KL goes to and fro
                    axes.fill_between(one.curve[x], *ends, color=color, alpha=0.15, linewidth=0)
                named = f"_{named}"
            if one.at is not None:
                axes.plot([one.at] * 2, [one.reward.low, one.reward.high], color=color, linewidth=1.6, alpha=0.4)
                axes.plot([one.at], [one.reward.mean], marker, color=color, markersize=7, label=named)
        if x == "samples":
            axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel(label)
        axes.set_ylabel("mean reward")
        legend_below(axes)

    return render(name, title, draw, height=3.4)


def by_references(counts: Sequence[str], curves: Mapping[str, Mapping[str, Estimate]], chosen: str) -> Markup:
    """Mean reward against the number of references.

    Args:
      counts: numbers of references in order, as they are written.
      curves: for each setting, or "" for those that are chosen, the reward at the counts that it has.
      chosen: what the curve of chosen settings is called.
    """

    def draw(axes: Axes) -> None:
        named = len(curves) <= MOST_NAMED
        for place, (name, rewards) in enumerate(curves.items()):
            color, marker = style(place) if name else (INK, "o")
            label = (plain(name) if named else "_") if name else chosen
            x, means = [counts.index(count) for count in rewards], [one.mean for one in rewards.values()]
            ends = [[one.low for one in rewards.values()], [one.high for one in rewards.values()]]
            wide: dict[str, Any] = {"linewidth": 1.2, "alpha": 0.7} if name else {"linewidth": 2.2, "alpha": 1.0}
            axes.plot(x, means, color=color, marker=marker, markersize=4, label=label, **wide)
            axes.vlines(x, *ends, color=color, linewidth=2.5, alpha=0.3)
        axes.set_xticks(range(len(counts)), counts)
        axes.set_xlim(-0.3, len(counts) - 0.7)
        axes.set_xlabel("references a prompt")
        axes.set_ylabel("mean reward")
        if axes.get_legend_handles_labels()[1]:
            legend_below(axes)

    return render("references", "Reward against the number of references", draw, height=3.2)


def estimate(figure: Mapping[str, Any], ci95: Sequence[float] | None = None) -> Estimate:
    """A figure of sweep.json as it is drawn.

    Args:
      figure: mean, spread and values.
      ci95: interval over prompts, of one seed.
    """
    mean, spread, values = figure["mean"], figure["spread"], figure["values"]
    if spread is not None:
        return Estimate(mean, mean - spread, mean + spread, values)
    if ci95 is not None and np.isfinite(ci95).all():
        return Estimate(mean, ci95[0], ci95[1], values)
    return Estimate(mean, mean, mean, values)
