"""The page of stage `compare_transforms`: from its numbers to plots, table cells, HTML and terminal lines."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from markupsafe import Markup
from scipy.stats import norm

from qrpo_jax import transforms
from qrpo_jax.report import transform_figures, transform_plots
from qrpo_jax.report.page import render
from qrpo_jax.report.texts import number
from qrpo_jax.report.transform_figures import MOST_N, PAPER_BETA, PAPER_BETAS, SHOWN_KL, Grid
from qrpo_jax.report.transform_plots import Curve
from qrpo_jax.transforms import Transform

TEMPLATE = "transforms.html"
REWARD = np.linspace(-3, 6, 361)  # standard deviations under the reference
NORMAL: Curve = (REWARD, np.asarray(norm.pdf(REWARD)))

TableRow = dict[str, Any]  # a record of figures.json


def build(chosen: dict[str, Transform], grid: Grid, numbers: dict[str, Any]) -> str:
    """The page as HTML; call it with float64 enabled.

    Args:
      chosen: the transforms by name, in the order of the page.
      grid: that of the numbers.
      numbers: from `transform_figures.all_numbers`.
    """
    return render(
        TEMPLATE,
        title=f"Optima of {len(chosen)} transforms at {len(grid.betas)} values of β",
        paper=numbers["figure_5"],
        pictures=overview_pictures(chosen, numbers),
        equal_kl=[
            {"kl": kl, "rows": [equal_kl_cells(row) for row in numbers["equal_kl"] if row["kl"] == kl]}
            for kl in transform_figures.EQUAL_KL
        ],
        shown_kl=SHOWN_KL,
        estimators=tuple(grid.estimators),
        references=tuple(grid.references),
        transforms=[
            {
                "name": name,
                "pictures": transform_pictures(transform, grid, numbers),
                "optima": [optimum_cells(row) for row in numbers["optima"] if row["transform"] == name],
                "gaps": gap_cells([row for row in numbers["gaps"] if row["transform"] == name], grid),
            }
            for name, transform in chosen.items()
        ],
    )


def overview_pictures(chosen: dict[str, Transform], numbers: dict[str, Any]) -> dict[str, Markup]:
    """Plots of the page's first part by name: figure 5 of the paper, and all transforms together."""
    distance = np.linspace(1, 0, 1001)
    identity = transform_figures.density_curves(transforms.identity, PAPER_BETAS, distance)
    at_kl = {row["transform"]: row["beta"] for row in numbers["equal_kl"] if row["kl"] == SHOWN_KL and "beta" in row}
    rewards = {
        name: (REWARD, transform_figures.reward_curves(chosen[name], [beta], REWARD)[beta])
        for name, beta in at_kl.items()
    }
    best_of_n = np.array([[row["kl"], row["expected_quantile"], row["n"]] for row in numbers["best_of_n"]], float).T
    plots = {
        "lost_and_gained": transform_plots.lost_and_gained(
            1 - distance, identity[PAPER_BETA], numbers["figure_5"]["share_losing"], PAPER_BETA
        ),
        "sharpening": transform_plots.sharpening({beta: (1 - distance, p) for beta, p in identity.items()}),
        "frontier": transform_plots.frontier(
            {name: frontier_columns(numbers["frontier"], name) for name in chosen}, best_of_n
        ),
        "rewards": transform_plots.reward_densities(
            "all", f"A reward that is normal under the reference, at {SHOWN_KL:g} nats", NORMAL, rewards
        ),
    }
    return plots


def frontier_columns(rows: list[TableRow], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KL, expected quantile and effective N along one transform's frontier, [points] each."""
    points = [[row["kl"], row["expected_quantile"], row["effective_n"]] for row in rows if row["transform"] == name]
    kl, quantile, effective_n = np.array(points, float).reshape(-1, 3).T
    return kl, quantile, effective_n


def transform_pictures(transform: Transform, grid: Grid, numbers: dict[str, Any]) -> list[Markup]:
    """Densities of quantile and reward, and gaps, of one transform; none if Z is infinite for every β."""
    name, betas = transform.name, sorted(grid.betas, reverse=True)
    distance = np.geomspace(1, transform_plots.LEAST_DISTANCE, 601)
    densities = transform_figures.density_curves(transform, betas, distance)
    if not densities:
        return []
    rewards = transform_figures.reward_curves(transform, betas, REWARD)
    references = sorted(grid.references)
    gap_rows = [row for row in numbers["gaps"] if row["transform"] == name and "gap" in row]
    gaps = {(row["estimator"], row["beta"], row["references"]): row["gap"] for row in gap_rows}
    gap_curves = {
        estimator: {beta: np.array([gaps.get((estimator, beta, n), np.nan) for n in references]) for beta in densities}
        for estimator in grid.estimators
    }
    plots = (
        transform_plots.densities(name, {beta: (distance, p) for beta, p in densities.items()}),
        transform_plots.reward_densities(
            name, f"{name}: density of a normal reward", NORMAL, {beta: (REWARD, p) for beta, p in rewards.items()}
        ),
        transform_plots.gaps(name, references, gap_curves),
    )
    return list(plots)


def optimum_cells(row: TableRow) -> TableRow:
    """A row of a transform's table of optima."""
    if "refused" in row:
        return {"beta": row["beta"], "refused": row["refused"]}
    n, peak = row["effective_n"], row["peak_density"]
    return {
        "beta": row["beta"],
        "cells": [
            number(row["crossing_level"]),
            share(row["share_losing"]),
            number(row["kl"]),
            quantile(row["expected_quantile"]),
            f"> {MOST_N:.0e}".replace("e+0", "e") if n is None else number(n),
            share(row["share_in_top_percent"]),
            "∞" if peak is None else number(peak),
            number(row["log_z"]),
        ],
    }


def equal_kl_cells(row: TableRow) -> TableRow:
    """A row of the table of transforms at equal KL."""
    if "refused" in row:
        return {"name": row["transform"], "refused": row["refused"]}
    return {
        "name": row["transform"],
        "cells": [
            number(row["beta"]),
            quantile(row["expected_quantile"]),
            number(row["effective_n"]),
            number(row["normal_reward"], sign=True),
            share(row["share_losing"]),
            share(row["share_in_top_percent"]),
        ],
    }


def gap_cells(rows: list[TableRow], grid: Grid) -> list[TableRow]:
    """The table of a transform's gaps: one row per β, with the gaps of each estimator in the order of the grid."""

    def cell(row: TableRow) -> str:
        if "gap" not in row:
            return "Z = ∞" if "log_z_n" in row else "refused"
        if abs(row["gap"]) < 1000:
            return f"{row['gap']:+.3f}".replace("-", "−")
        return number(row["gap"], sign=True)

    return [{"beta": beta, "cells": [cell(row) for row in rows if row["beta"] == beta]} for beta in grid.betas]


def share(value: float) -> str:
    """A share in per cent that rounds to 0 or 100 % only if it is exactly that.

    >>> share(0.7697), share(0.99999), share(1.0)
    ('77.0 %', '> 99.9 %', '100.0 %')
    """
    if 0.9995 <= value < 1:
        return "> 99.9 %"
    return "< 0.1 %" if 0 < value < 0.0005 else f"{value:.1%}".replace("%", " %")


def quantile(value: float) -> str:
    """A quantile with more digits near 1.

    >>> quantile(0.75), quantile(0.99912), quantile(1.0)
    ('0.750', '0.99912', '1')
    """
    return f"{value:.3f}" if value < 0.99 else f"{value:.5f}" if value < 0.999995 else "1"


def terminal_lines(numbers: dict[str, Any]) -> Iterator[str]:
    """Figure 5 of the paper, and a table of the transforms at SHOWN_KL."""
    paper = numbers["figure_5"]
    yield (
        f"identity at β = {paper['beta']:g}: {paper['share_losing']:.0%} of reference completions lose probability, "
        f"{1 - paper['share_losing']:.0%} gain; KL {paper['kl']:.2f} nats, effective N {paper['effective_n']:.1f}"
    )
    rows = [row for row in numbers["equal_kl"] if row["kl"] == SHOWN_KL]
    width = max(len(row["transform"]) for row in rows)
    yield f"{f'at {SHOWN_KL:g} nats':{width}}  {'β':>9}  {'quantile':>8}  {'effective N':>11}  {'losing':>6}"
    for row in rows:
        if "refused" in row:
            yield f"{row['transform']:{width}}  {row['refused']}"
        else:
            yield (
                f"{row['transform']:{width}}  {row['beta']:9.4g}  {row['expected_quantile']:8.3f}  "
                f"{row['effective_n']:11.1f}  {row['share_losing']:6.1%}"
            )
