"""Plots of the optimum: densities, quantiles by KL, and log Z with finitely many references."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from qrpo_jax.report.picture import DASHES, HIGH, INK, LOW, POLICY, RAMP, REFERENCE, SERIES, legend_below, plain, render

LEAST_DENSITY = 1e-3  # where logarithmic density axes begin
LEAST_DISTANCE = 1e-5  # distance to quantile 1 at which logarithmic quantile axes end

Curve = tuple[np.ndarray, np.ndarray]


def lost_and_gained(quantile: np.ndarray, density: np.ndarray, crossing: float, beta: float) -> Markup:
    """Figure 5 of the paper: quantiles that lose probability under the optimum, and quantiles that gain.

    Args:
      quantile: [points], rising from 0 to 1.
      density: [points], under the optimum of `identity`.
      crossing: quantile at which the density is 1.
      beta: for the legend.
    """

    def draw(axes: Axes) -> None:
        axes.fill_between(quantile, density, 1, where=quantile <= crossing, color=LOW, alpha=0.25, linewidth=0)
        axes.fill_between(quantile, density, 1, where=quantile >= crossing, color=HIGH, alpha=0.25, linewidth=0)
        axes.plot(quantile, density, color=POLICY, label=f"optimum, β = {beta:g}")
        axes.axhline(1, color=REFERENCE, linestyle="--", label="reference")
        axes.plot([crossing, crossing], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        top = float(density.max())
        axes.annotate(
            f"{crossing:.0%} lose\nprobability", (crossing / 2, 1), (0, 8), textcoords="offset points", ha="center"
        )
        axes.annotate(f"{1 - crossing:.0%} gain", ((1 + crossing) / 2, 0.5), ha="center", va="center", color=INK)
        axes.set(xlim=(0, 1), ylim=(0, 1.05 * top), ylabel="density (reference = 1)")
        axes.set_xlabel("quantile of the reward under the reference")
        axes.legend(loc="upper left")

    return render("figure-5", f"The optimum of identity at β = {beta:g}", draw)


def sharpening(curves: Mapping[float, Curve]) -> Markup:
    """Densities of the optimum of `identity` for several β, on a logarithmic axis.

    Args:
      curves: for each β quantiles and the density there, [points] each.
    """

    def draw(axes: Axes) -> None:
        _by_beta(axes, curves)
        axes.axhline(1, color=REFERENCE, linestyle="--", label="reference")
        tallest = max(float(density.max()) for _, density in curves.values())
        axes.set(xlim=(0, 1), yscale="log", ylim=(LEAST_DENSITY, 2 * tallest), ylabel="density (reference = 1)")
        axes.set_xlabel("quantile of the reward under the reference")
        _plain_log(axes)
        legend_below(axes)

    return render("figure-5-betas", "The optimum of identity for decreasing β", draw)


def frontier(curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], points: np.ndarray) -> Markup:
    """Expected quantile and effective N of each transform's optimum by its KL.

    Args:
      curves: for each transform its KL, expected quantile and effective N, [points] each.
      points: [3, points] the same for Best-of-N.
    """

    def draw(above: Axes, below: Axes) -> None:
        for i, (name, (kl, quantile, effective_n)) in enumerate(curves.items()):
            above.plot(kl, quantile, **_series(i), label=plain(name))
            below.plot(kl, effective_n, **_series(i))
        dots: dict[str, Any] = {"color": INK, "linestyle": "", "marker": "o", "markersize": 3.5, "zorder": 5}
        above.plot(points[0], points[1], **dots, label="Best-of-N")
        below.plot(points[0], points[2], **dots)
        for kl, _, n in points.T:
            below.annotate(f"{n:.0f}", (kl, n), (-4, 3), textcoords="offset points", ha="right", fontsize=8)
        above.set_ylabel("expected quantile")
        below.set_yscale("log")
        below.set(ylim=(0.9, 1.5 * points[2].max()), ylabel="effective N")
        below.set_xlim(0, 1.05 * points[0].max())
        _plain_log(below)
        below.set_xlabel("KL from the reference (nats)")
        legend_below(above)

    return render("frontier", "Quantile by KL", draw, panels=2, height=4.4)


def densities(name: str, curves: Mapping[float, Curve]) -> Markup:
    """Density of the quantile under the optimum of one transform.

    Args:
      name: of the transform.
      curves: for each β the distance of the quantile to 1 and the density there, [points] each.
    """

    def draw(axes: Axes) -> None:
        _by_beta(axes, curves)
        axes.axhline(1, color=REFERENCE, linestyle="--", label="reference")
        tallest = max([1.0, *(float(density.max()) for _, density in curves.values())])
        axes.set(xscale="log", yscale="log", xlim=(1, LEAST_DISTANCE), ylim=(LEAST_DENSITY, min(3 * tallest, 1e7)))
        ticks = 10.0 ** -np.arange(0, 6)
        axes.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda s, _: f"{1 - s:.5g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("quantile of the reward under the reference")
        axes.set_ylabel("density (reference = 1)")
        _plain_log(axes)
        legend_below(axes)

    return render(f"densities {name}", f"{name}: density of the quantile", draw)


def reward_densities(name: str, title: str, reference: Curve, curves: Mapping[Any, Curve]) -> Markup:
    """Densities of a reward that is normal under the reference.

    Args:
      name: makes the plot unique on its page.
      title: of the plot.
      reference: rewards and their density under the reference, [points] each.
      curves: the same under optima, by β for one transform, or by name for several transforms.
    """

    def draw(axes: Axes) -> None:
        axes.plot(*reference, color=INK, linewidth=1, label="reference")
        hidden: list[float] = []
        for i, (key, curve) in enumerate(curves.items()):
            if isinstance(key, str):
                axes.plot(*curve, **_series(i), label=plain(key))
            elif curve[1].max() > LEAST_DENSITY:
                axes.plot(*curve, **_ramp(i, len(curves)), label=f"β = {key:g}")
            else:
                hidden.append(key)
        _name_hidden(axes, hidden, 0.97, "right")
        axes.set_xlabel("reward, in standard deviations under the reference")
        axes.set_ylabel("density")
        axes.set_xlim(reference[0][0], reference[0][-1])
        axes.set_ylim(bottom=0)
        legend_below(axes)

    return render(f"rewards {name}", title, draw)


def gaps(name: str, references: Sequence[int], curves: Mapping[str, Mapping[float, np.ndarray]]) -> Markup:
    """log Z_n − log Z of one transform by number of references, one panel per estimator.

    Args:
      name: of the transform.
      references: the numbers n.
      curves: for each estimator and β the gap at each n, NaN where it does not exist.
    """

    def draw(*panels: Axes) -> None:
        for axes, (estimator, by_beta) in zip(panels, curves.items(), strict=True):
            axes.axhline(0, color=INK, linewidth=0.8)
            for i, (beta, gap) in enumerate(by_beta.items()):
                axes.plot(references, gap, **_ramp(i, len(by_beta)), marker=".", label=f"β = {beta:g}")
            axes.set_yscale("symlog", linthresh=0.1, linscale=0.7)
            largest = max([1.0, *(float(np.nanmax(np.abs(gap), initial=0)) for gap in by_beta.values())])
            decades = np.arange(-1, np.ceil(np.log10(largest)) + 1)
            ticks = 10.0 ** decades[:: max(1, len(decades) // 3)]
            axes.yaxis.set_major_locator(FixedLocator([*-ticks[::-1], 0.0, *ticks]))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}".replace("-", "−")))
            axes.set_ylabel(estimator)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(list(references)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        panels[-1].set_xlabel("references n")
        legend_below(panels[0])

    return render(f"gaps {name}", f"{name}: log Zₙ − log Z (nats)", draw, panels=len(curves), height=3.4)


def _by_beta(axes: Axes, curves: Mapping[float, Curve]) -> None:
    hidden: list[float] = []
    for i, (beta, (x, density)) in enumerate(curves.items()):
        if density.max() > LEAST_DENSITY:
            # Density 0 has no logarithm; below the axis any value will do.
            floored = np.maximum(density, LEAST_DENSITY / 1e3)
            axes.plot(x, floored, **_ramp(i, len(curves)), label=f"β = {beta:g}")
        else:
            hidden.append(beta)
    _name_hidden(axes, hidden, 0.03, "left")


def _name_hidden(axes: Axes, betas: Sequence[float], x: float, side: str) -> None:
    """Names the β whose curves lie outside the axes."""
    if betas:
        text = "further right:\n" + "\n".join(f"β = {beta:g}" for beta in betas)
        axes.annotate(text, (x, 0.95), xycoords="axes fraction", ha=side, va="top", fontsize=8)


def _series(i: int) -> dict[str, Any]:
    return {"color": SERIES[i % len(SERIES)], "linestyle": DASHES[i % len(DASHES)]}


def _ramp(i: int, count: int) -> dict[str, Any]:
    """Style of the i-th of `count` ordered curves; dashes alternate where there are more curves than colours."""
    if count <= len(RAMP):
        step = (len(RAMP) - 1) / max(count - 1, 1)
        return {"color": RAMP[round(i * step)], "linestyle": "-"}
    return {"color": RAMP[i * len(RAMP) // count], "linestyle": DASHES[i % 2]}


def _plain_log(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
