"""Stage `compare_transforms`: what transforms and β ask of a policy, before anything is sampled or trained.

It needs no model, no data and no accelerator: everything is computed from f and log Z, in float64 on the CPU.
"""

import os
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from markupsafe import Markup
from scipy.stats import norm

from qrpo_jax import quantiles, transforms
from qrpo_jax.job import manifest
from qrpo_jax.job.job import Job
from qrpo_jax.report import transform_figures, transform_plots
from qrpo_jax.report.page import PAGE, number, render
from qrpo_jax.report.transform_figures import SHOWN_KL
from qrpo_jax.transforms import Transform

NUMBERS = "figures.json"
TEMPLATE = "transforms.html"
BETA_RANGE = (transform_figures.LEAST_BETA, 1e5)
MOST_REFERENCES = 100_000
REWARD = np.linspace(-3, 6, 361)  # standard deviations


def check(section: Any) -> None:
    """Refuses settings of section `compare_transforms` that cannot be computed.

    Raises:
      ValueError: one line, naming the key.
    """
    for key in ("transforms", "betas", "references", "estimators"):
        values = section[key]
        if not values or len(set(values)) < len(values):
            raise ValueError(
                f"compare_transforms.{key} is {tuple(values)}; name at least one, each once "
                f"(config.compare_transforms.{key})"
            )
    for name in section.transforms:
        check_transform(name)
    for beta in section.betas:
        low, high = BETA_RANGE
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not low <= beta <= high:
            raise ValueError(
                f"compare_transforms.betas has {beta!r}; each must be a number from {low:g} to {high:g} "
                "(config.compare_transforms.betas)"
            )
    for count in section.references:
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_REFERENCES:
            raise ValueError(
                f"compare_transforms.references has {count!r}; each must be a whole number from 1 to {MOST_REFERENCES} "
                "(config.compare_transforms.references)"
            )
    for estimator in section.estimators:
        if estimator not in quantiles.ESTIMATORS:
            raise ValueError(
                f"compare_transforms.estimators has {estimator!r}; allowed: {', '.join(quantiles.ESTIMATORS)} "
                "(config.compare_transforms.estimators)"
            )


def check_transform(name: str) -> None:
    try:
        transform = transforms.parse(name)
    except ValueError as error:
        raise ValueError(f"{error} (config.compare_transforms.transforms)") from None
    if transform.scaled:
        raise ValueError(
            f"transform {name!r} differs from prompt to prompt; name the spread of one, such as gaussian(0, 0.5) "
            "(config.compare_transforms.transforms)"
        )
    values = np.asarray(transform.apply(np.linspace(0, 1, 1001)[1:-1]))
    if not (np.diff(values) >= -1e-6 * np.abs(values).max()).all():
        raise ValueError(
            f"transform {name!r} falls somewhere; only rising ones can be compared "
            "(config.compare_transforms.transforms)"
        )


def run(job: Job) -> dict[str, Any]:
    if jax.process_index() != 0:
        return {}
    section = job.config.compare_transforms
    with jax.enable_x64(True), jax.default_device("cpu"):
        chosen = {name: transforms.parse(name)._replace(name=name) for name in section.transforms}
        numbers = transform_figures.all_numbers(chosen, section)
        pictures = all_pictures(chosen, section, numbers)
    folder = job.folder("compare_transforms")
    manifest.write_json(folder / NUMBERS, numbers)
    page = render(TEMPLATE, **parts(section, numbers, pictures))
    temporary = folder / f"{manifest.TEMPORARY}{PAGE}-{os.getpid()}"
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, folder / PAGE)
    for line in told(numbers):
        job.say(line)
    job.say(f"compare_transforms: {folder / PAGE}")
    return {"page": PAGE, "numbers": NUMBERS, "optima": len(numbers["optima"])}


def told(numbers: dict[str, Any]) -> Iterable[str]:
    """What the terminal says: figure 5, and what each transform gives for the same KL."""
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


def all_pictures(chosen: dict[str, Transform], section: Any, numbers: dict[str, Any]) -> dict[str, Any]:
    """Plots as Markup: of the whole page by name, and of each transform a list."""
    identity, crossing = transforms.identity, numbers["figure_5"]["share_losing"]
    distance = np.linspace(1, 0, 1001)
    whole = transform_figures.density_curves(identity, transform_figures.PAPER_BETAS, distance)
    at_kl = {row["transform"]: row["beta"] for row in numbers["equal_kl"] if row["kl"] == SHOWN_KL and "beta" in row}
    rewards = {
        name: (REWARD, transform_figures.reward_curves(chosen[name], [beta], REWARD)[beta])
        for name, beta in at_kl.items()
    }
    normal = REWARD, np.asarray(norm.pdf(REWARD))
    title = f"A reward that is normal under the reference, at {SHOWN_KL:g} nats"
    made: dict[str, Any] = {
        "lost_and_gained": transform_plots.lost_and_gained(
            1 - distance, whole[transform_figures.PAPER_BETA], crossing, transform_figures.PAPER_BETA
        ),
        "sharpening": transform_plots.sharpening({beta: (1 - distance, density) for beta, density in whole.items()}),
        "frontier": transform_plots.frontier(
            {name: columns(numbers["frontier"], name) for name in chosen},
            np.array([[row["kl"], row["expected_quantile"], row["n"]] for row in numbers["best_of_n"]], float).T,
        ),
        "rewards": transform_plots.reward_densities("all", title, normal, rewards),
    }
    return {name: Markup(svg) for name, svg in made.items()} | {
        "of": {name: own_pictures(transform, section, numbers, normal) for name, transform in chosen.items()}
    }


def columns(rows: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KL, expected quantile and effective N of one transform's frontier."""
    own = [[row["kl"], row["expected_quantile"], row["effective_n"]] for row in rows if row["transform"] == name]
    kl, quantile, effective_n = np.array(own, float).reshape(-1, 3).T
    return kl, quantile, effective_n


def own_pictures(
    transform: Transform, section: Any, numbers: dict[str, Any], normal: tuple[np.ndarray, np.ndarray]
) -> list[Markup]:
    """Densities of quantile and reward, and the gap, of one transform."""
    name, betas = transform.name, sorted(section.betas, reverse=True)
    distance = np.geomspace(1, transform_plots.DEEPEST, 601)
    quantile_curves = transform_figures.density_curves(transform, betas, distance)
    made = []
    if quantile_curves:
        reward_curves = transform_figures.reward_curves(transform, betas, REWARD)
        made.append(transform_plots.densities(name, {b: (distance, p) for b, p in quantile_curves.items()}))
        title = f"{name}: density of a normal reward"
        made.append(
            transform_plots.reward_densities(name, title, normal, {b: (REWARD, p) for b, p in reward_curves.items()})
        )
        found = {
            (row["estimator"], row["beta"], row["references"]): row["gap"]
            for row in numbers["gaps"]
            if row["transform"] == name and "gap" in row
        }
        references = sorted(section.references)
        by_estimator = {
            estimator: {
                b: np.array([found.get((estimator, b, n), np.nan) for n in references]) for b in quantile_curves
            }
            for estimator in section.estimators
        }
        made.append(transform_plots.gaps(name, references, by_estimator))
    return [Markup(svg) for svg in made]


def parts(section: Any, numbers: dict[str, Any], pictures: dict[str, Any]) -> dict[str, Any]:
    """What the template shows."""
    return {
        "title": f"Optima of {len(section.transforms)} transforms at {len(section.betas)} values of β",
        "paper": numbers["figure_5"],
        "pictures": pictures,
        "equal_kl": [
            {"kl": kl, "rows": [equal_kl_cells(row) for row in numbers["equal_kl"] if row["kl"] == kl]}
            for kl in transform_figures.EQUAL_KL
        ],
        "shown_kl": SHOWN_KL,
        "estimators": tuple(section.estimators),
        "references": tuple(section.references),
        "transforms": [
            {
                "name": name,
                "pictures": pictures["of"][name],
                "optima": [optimum_cells(row) for row in numbers["optima"] if row["transform"] == name],
                "gaps": gap_rows([row for row in numbers["gaps"] if row["transform"] == name], section),
            }
            for name in section.transforms
        ],
    }


def share(value: float) -> str:
    """A share in per cent, never rounded to all or nothing.

    >>> share(0.7697), share(0.99999), share(1.0)
    ('77.0 %', '> 99.9 %', '100.0 %')
    """
    if 0.9995 <= value < 1:
        return "> 99.9 %"
    return "< 0.1 %" if 0 < value < 0.0005 else f"{value:.1%}".replace("%", " %")


def optimum_cells(row: dict[str, Any]) -> dict[str, Any]:
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
            f"> {transform_figures.MOST_N:.0e}".replace("e+0", "e") if n is None else number(n),
            share(row["share_in_top_percent"]),
            "∞" if peak is None else number(peak),
            number(row["log_z"]),
        ],
    }


def equal_kl_cells(row: dict[str, Any]) -> dict[str, Any]:
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


def quantile(value: float) -> str:
    """Digits of what is missing to 1, rather than 1.000.

    >>> quantile(0.75), quantile(0.99912), quantile(1.0)
    ('0.750', '0.99912', '1')
    """
    return f"{value:.3f}" if value < 0.99 else f"{value:.5f}" if value < 0.999995 else "1"


def gap_rows(rows: list[dict[str, Any]], section: Any) -> list[dict[str, Any]]:
    """A row a β: for each estimator the gaps in the order of section.references."""

    def cell(row: dict[str, Any]) -> str:
        if "gap" in row:
            small = abs(row["gap"]) < 1000
            return f"{row['gap']:+.3f}".replace("-", "−") if small else number(row["gap"], sign=True)
        return "Z = ∞" if "log_z_n" in row else "refused"

    return [{"beta": beta, "cells": [cell(row) for row in rows if row["beta"] == beta]} for beta in section.betas]
