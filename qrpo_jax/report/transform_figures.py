"""The numbers of stage `optimum`: flat records for JSON, and the curves that its plots draw."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from qrpo_jax import optimum, partition, quantiles, transforms
from qrpo_jax.transforms import Transform

PAPER_BETA, PAPER_BETAS = 0.1, (0.1, 0.01, 0.001)  # figure 5, of identity
EQUAL_KL = (0.5, 1.0, 2.0, 4.0)  # nats
SHOWN_KL = 2.0  # at which rewards are compared
BEST_OF = (2, 4, 8, 16, 32, 64, 128, 256)
SWEEP = np.geomspace(1e-4, 1e4, 240)  # beta above a transform's smallest, for the frontier
MOST_N = 1e9  # beyond, the distance of the expected quantile to 1 may not be resolved
LEAST_BETA = 1e-5


def all_numbers(chosen: dict[str, Transform], section: Any) -> dict[str, Any]:
    """What optima.json holds: lists of flat records; what cannot be has the reason under `refused`."""
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
        priced = at_equal_kl(transform)
        sweep = transform.smallest_beta + SWEEP[::-1]
        own = [row["beta"] for row in priced if "beta" in row]
        # All at once, as most of the time goes into compiling.
        found = figures(transform, [*(b for b in section.betas if b > transform.smallest_beta), *own, *sweep])
        numbers["optima"] += [record(optimum_at(transform, beta, found)) for beta in section.betas]
        numbers["equal_kl"] += [
            record(row | found[row["beta"]] | {"kl": row["kl"]} if "beta" in row else row) for row in priced
        ]
        numbers["frontier"] += frontier(transform, {beta: found[beta] for beta in sweep})
        numbers["gaps"] += gaps(transform, section)
    return numbers


def figures(transform: Transform, betas: Sequence[float]) -> dict[float, dict[str, float]]:
    """All figures of the optimum by beta; every beta above the transform's smallest."""

    def each(beta: jax.Array) -> dict[str, jax.Array]:
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

    columns = {key: np.asarray(value) for key, value in jax.jit(jax.vmap(each))(jnp.asarray(betas, float)).items()}
    columns["effective_n"] = np.where(columns["effective_n"] < MOST_N, columns["effective_n"], np.inf)
    return {beta: {key: float(column[i]) for key, column in columns.items()} for i, beta in enumerate(betas)}


def record(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers for JSON, which has no infinity: null stands for it."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def optimum_at(transform: Transform, beta: float, found: dict[float, dict[str, float]]) -> dict[str, Any]:
    named = {"transform": transform.name, "beta": beta}
    return named | (found[beta] if beta > transform.smallest_beta else {"refused": infinite(transform)})


def infinite(transform: Transform) -> str:
    return f"Z is infinite: β must be above {transform.smallest_beta:g}"


def at_equal_kl(transform: Transform) -> list[dict[str, Any]]:
    """The β at which the optimum costs so many nats, and the mean there of a reward that the reference has normal."""

    @jax.jit
    def normal_reward(beta: jax.Array) -> jax.Array:
        return optimum.expected_reward(beta, transform, norm.cdf, (-40.0, 40.0), reward_survival=norm.sf)

    rows = []
    for kl in EQUAL_KL:
        row: dict[str, Any] = {"transform": transform.name, "kl": kl}
        try:
            row["beta"] = optimum.beta_for(optimum.kl, kl, transform)
            row["normal_reward"] = float(normal_reward(row["beta"]))
        except ValueError:
            most = max(0.0, float(optimum.kl(transform.smallest_beta + LEAST_BETA, transform)))
            row["refused"] = f"not reached: KL is at most {most:.4g}"
        rows.append(row)
    return rows


def frontier(transform: Transform, found: dict[float, dict[str, float]]) -> list[dict[str, Any]]:
    most, shown = 1.1 * math.log(BEST_OF[-1]), ("kl", "expected_quantile", "effective_n")
    return [
        record({"transform": transform.name, "beta": float(beta)} | {key: row[key] for key in shown})
        for beta, row in found.items()
        if row["kl"] <= most
    ]


def gaps(transform: Transform, section: Any) -> list[dict[str, Any]]:
    """log Z_n and what the population's log Z is off by, for every β, estimator and number of references."""
    betas, counts = jnp.asarray(section.betas, float), jnp.asarray(section.references, float)
    rows: list[dict[str, Any]] = []
    for estimator in section.estimators:

        def each(beta: jax.Array, count: jax.Array, estimator: str = estimator) -> jax.Array:
            return partition.finite_sample_log_z(transform, beta, count, estimator, most=max(section.references))

        table = np.asarray(jax.vmap(jax.vmap(each, (None, 0)), (0, None))(betas, counts))
        for beta, of_beta in zip(section.betas, table, strict=True):
            for count, log_z_n in zip(section.references, of_beta, strict=True):
                row = {"transform": transform.name, "beta": beta, "estimator": estimator, "references": count}
                rows.append(record(row | gap(transform, beta, estimator, count, log_z_n)))
    return rows


def gap(transform: Transform, beta: float, estimator: str, count: int, log_z_n: float) -> dict[str, Any]:
    try:
        quantiles.check_references(count, transform, estimator)
    except ValueError:
        return {"refused": f"{estimator} is clamped, which needs at least 2 references"}
    if beta <= transform.smallest_beta:
        return {"log_z_n": log_z_n, "refused": infinite(transform)}
    return {"log_z_n": log_z_n, "gap": log_z_n - float(transform.log_z(beta))}


def density_curves(transform: Transform, betas: Sequence[float], distance: np.ndarray) -> dict[float, np.ndarray]:
    """The optimum's density at quantiles 1 - distance, [points], for every allowed beta."""
    quantile = jnp.asarray(1 - distance)
    allowed = [beta for beta in betas if beta > transform.smallest_beta]
    return {beta: np.asarray(optimum.density(quantile, beta, transform)) for beta in allowed}


def reward_curves(transform: Transform, betas: Sequence[float], reward: np.ndarray) -> dict[float, np.ndarray]:
    """The optimum's density of a reward that is standard normal under the reference, likewise."""
    allowed = [beta for beta in betas if beta > transform.smallest_beta]
    return {
        beta: np.asarray(optimum.reward_density(jnp.asarray(reward), beta, transform, norm.cdf, norm.sf))
        for beta in allowed
    }
