"""The numbers of stage `compare_transforms`: flat records for JSON, and the curves that its plots draw.

Functions that compute expect float64 to be enabled.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from qrpo_jax import optimum, partition, quantiles, transforms
from qrpo_jax.errors import UserError
from qrpo_jax.transforms import Transform

PAPER_BETA, PAPER_BETAS = 0.1, (0.1, 0.01, 0.001)  # of figure 5, which shows identity
EQUAL_KL = (0.5, 1.0, 2.0, 4.0)  # nats
SHOWN_KL = 2.0  # nats; of EQUAL_KL the one that the reward plot and the terminal show
BEST_OF = (2, 4, 8, 16, 32, 64, 128, 256)  # N of the Best-of-N points
SWEEP = np.geomspace(1e-4, 1e4, 240)  # β minus the smallest β, along the frontier
MOST_N = 1e9  # a larger effective N is reported as infinite: float64 may not resolve 1 − expected quantile
LEAST_BETA = 1e-5  # smallest distance of β to the smallest β at which anything is computed
MOST_STANDARD_DEVIATIONS = 40.0  # range of integration over a normal reward

Figures = dict[str, float]


class Grid(NamedTuple):
    """What the transforms are compared at: β, numbers of references n, and estimators of quantiles."""

    betas: Sequence[float]
    references: Sequence[int]
    estimators: Sequence[str]


def all_numbers(chosen: dict[str, Transform], grid: Grid) -> dict[str, Any]:
    """The content of figures.json: lists of flat records.

    A record of something that cannot be computed has the reason under `refused`; null is infinity.
    """
    paper = figures(transforms.identity, [PAPER_BETA])[PAPER_BETA]
    numbers: dict[str, Any] = {
        "figure_5": record({"transform": "identity", "beta": PAPER_BETA} | paper),
        "optima": [],
        "equal_kl": [],
        "gaps": [],
        "frontier": [],
        "best_of_n": [{"n": n, "kl": math.log(n) - (n - 1) / n, "expected_quantile": n / (n + 1)} for n in BEST_OF],
    }
    for transform in chosen.values():
        equal_kl = at_equal_kl(transform)
        kl_betas = [row["beta"] for row in equal_kl if "beta" in row]
        finite_betas = [beta for beta in grid.betas if beta > transform.smallest_beta]
        sweep = transform.smallest_beta + SWEEP[::-1]
        # One call for all, because compilation takes most of the time.
        by_beta = figures(transform, [*finite_betas, *kl_betas, *sweep])
        numbers["optima"] += [record(optimum_at(transform, beta, by_beta)) for beta in grid.betas]
        numbers["equal_kl"] += [
            record(row | by_beta[row["beta"]] | {"kl": row["kl"]} if "beta" in row else row) for row in equal_kl
        ]
        numbers["frontier"] += frontier(transform, {beta: by_beta[beta] for beta in sweep})
        numbers["gaps"] += gaps(transform, grid)
    return numbers


def figures(transform: Transform, betas: Sequence[float]) -> dict[float, Figures]:
    """Figures of the optimum by β; every β must be above the transform's smallest."""

    def at(beta: jax.Array) -> dict[str, jax.Array]:
        return {
            "log_z": transform.log_z(beta),
            "crossing_level": optimum.crossing_level(beta, transform),
            "share_losing": optimum.crossing_share(beta, transform),
            "kl": optimum.kl(beta, transform),
            "expected_quantile": optimum.expected_quantile(beta, transform),
            "effective_n": optimum.best_of_n(beta, transform),
            "share_in_top_percent": 1 - optimum.cdf(0.99, beta, transform),
            "peak_density": optimum.density(jnp.ones_like(beta), beta, transform),
        }

    columns = {key: np.asarray(value) for key, value in jax.jit(jax.vmap(at))(jnp.asarray(betas, float)).items()}
    columns["effective_n"] = np.where(columns["effective_n"] < MOST_N, columns["effective_n"], np.inf)
    return {beta: {key: float(column[i]) for key, column in columns.items()} for i, beta in enumerate(betas)}


def record(values: dict[str, Any]) -> dict[str, Any]:
    """Values for JSON, which has no infinity: null replaces it."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def optimum_at(transform: Transform, beta: float, by_beta: dict[float, Figures]) -> dict[str, Any]:
    figures_or_reason = by_beta[beta] if beta > transform.smallest_beta else {"refused": infinite(transform)}
    return {"transform": transform.name, "beta": beta} | figures_or_reason


def infinite(transform: Transform) -> str:
    return f"Z is infinite: β must be above {transform.smallest_beta:g}"


def at_equal_kl(transform: Transform) -> list[dict[str, Any]]:
    """For each of EQUAL_KL the β whose optimum has that KL, and the optimum's mean of a standard normal reward."""
    bounds = (-MOST_STANDARD_DEVIATIONS, MOST_STANDARD_DEVIATIONS)

    @jax.jit
    def normal_reward(beta: jax.Array) -> jax.Array:
        return optimum.expected_reward(beta, transform, norm.cdf, bounds, reward_survival=norm.sf)

    rows = []
    for kl in EQUAL_KL:
        row: dict[str, Any] = {"transform": transform.name, "kl": kl}
        try:
            row["beta"] = optimum.beta_for(optimum.kl, kl, transform)
            row["normal_reward"] = float(normal_reward(row["beta"]))
        except UserError:
            most = max(0.0, float(optimum.kl(transform.smallest_beta + LEAST_BETA, transform)))
            row["refused"] = f"not reached: KL is at most {most:.4g}"
        rows.append(row)
    return rows


def frontier(transform: Transform, by_beta: dict[float, Figures]) -> list[dict[str, Any]]:
    """KL, expected quantile and effective N along the sweep of β, up to a little more than the KL of Best-of-N."""
    most, names = 1.1 * math.log(BEST_OF[-1]), ("kl", "expected_quantile", "effective_n")
    return [
        record({"transform": transform.name, "beta": float(beta)} | {name: row[name] for name in names})
        for beta, row in by_beta.items()
        if row["kl"] <= most
    ]


def gaps(transform: Transform, grid: Grid) -> list[dict[str, Any]]:
    """log Z_n, and its difference from the exact log Z, for every estimator, β and number of references."""
    betas, counts = jnp.asarray(grid.betas, float), jnp.asarray(grid.references, float)
    rows: list[dict[str, Any]] = []
    for estimator in grid.estimators:

        def log_z_n(beta: jax.Array, count: jax.Array, estimator: str = estimator) -> jax.Array:
            return partition.finite_sample_log_z(transform, beta, count, estimator, most=max(grid.references))

        table = np.asarray(jax.vmap(jax.vmap(log_z_n, (None, 0)), (0, None))(betas, counts))
        for beta, of_beta in zip(grid.betas, table, strict=True):
            for count, value in zip(grid.references, of_beta, strict=True):
                row = {"transform": transform.name, "beta": beta, "estimator": estimator, "references": count}
                rows.append(record(row | gap(transform, beta, estimator, count, value)))
    return rows


def gap(transform: Transform, beta: float, estimator: str, count: int, log_z_n: float) -> dict[str, Any]:
    try:
        quantiles.check_references(count, transform, estimator)
    except UserError:
        return {"refused": f"{estimator} is clamped, which needs at least 2 references"}
    if beta <= transform.smallest_beta:
        return {"log_z_n": log_z_n, "refused": infinite(transform)}
    return {"log_z_n": log_z_n, "gap": log_z_n - float(transform.log_z(beta))}


def density_curves(transform: Transform, betas: Sequence[float], distance: np.ndarray) -> dict[float, np.ndarray]:
    """The optimum's density at quantiles 1 − distance, [points], for every β for which Z is finite."""
    quantile = jnp.asarray(1 - distance)
    return {
        beta: np.asarray(optimum.density(quantile, beta, transform)) for beta in betas if beta > transform.smallest_beta
    }


def reward_curves(transform: Transform, betas: Sequence[float], reward: np.ndarray) -> dict[float, np.ndarray]:
    """The optimum's density, [points], of a reward that is standard normal under the reference; β as above."""
    return {
        beta: np.asarray(optimum.reward_density(jnp.asarray(reward), beta, transform, norm.cdf, norm.sf))
        for beta in betas
        if beta > transform.smallest_beta
    }
