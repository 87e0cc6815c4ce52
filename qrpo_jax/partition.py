"""Partition functions of estimated quantiles: what log Z is when R_q comes from n references.

log Z makes exp(f(R_q) / beta - log Z) average to 1 under the reference policy. `Transform.log_z` does so for the exact
quantile of a reward without ties, the limit of infinitely many references. From n references the estimate takes few
values, and their average is another number:

| partition | averages exp(f / beta) over | the mean is exactly 1 for |
|---|---|---|
| `population` | t uniform on (0, 1) | no finite n; the error falls as 1 / n where f is bounded |
| `finite_sample` | the n + 1 ranks that a completion can have | rewards that never tie, or ties ranked `random` |
| `empirical` | the n + 1 rewards at hand, each ranked among the others | any rewards, ties, estimator and n |

`empirical` holds because a completion of the reference policy and its n references are exchangeable: given the n + 1
rewards, each is as likely as the others to be the completion's own. It therefore counts the completion's own reward
too, and differs a little between completions of one prompt that are ranked against the same references; for completions
that are their own references (`quantiles.exclude_own`) it is one number a prompt. For completions of another policy no
mean is claimed: there log Z only has to belong to the quantile estimate that the optimum is defined by.

Functions take one completion and one prompt's references, as in `quantiles`; callers vmap.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from qrpo_jax import quantiles
from qrpo_jax.integrals import log_mean_exp
from qrpo_jax.transforms import Transform, check_beta

PARTITIONS = ("population", "finite_sample", "empirical")


def atoms_log_z(transform: Transform, beta: ArrayLike, quantile: ArrayLike, weights: ArrayLike) -> Array:
    """log sum_i w_i exp(f(q_i) / beta): the partition function of a quantile that takes the values q_i only.

    Args:
      transform: f; finite at every q_i that has weight.
      beta: [], > 0.
      quantile: [N], q_i.
      weights: [N], probabilities w_i, adding up to 1.

    Returns:
      []

    >>> from qrpo_jax import transforms
    >>> round(float(atoms_log_z(transforms.identity, 0.5, [0.0, 1.0], [0.5, 0.5])), 4)
    1.4338
    """
    check_beta(beta, 0.0, transform.name)
    weights = jnp.asarray(weights)
    # What has no weight may lie where f is infinite, and would make gradients NaN.
    f = transform.apply(jnp.where(weights > 0, jnp.asarray(quantile), 0.5))
    return log_mean_exp(f, weights.astype(f.dtype), 1 / jnp.asarray(beta, f.dtype))


def finite_sample_log_z(
    transform: Transform, beta: ArrayLike, count: ArrayLike, estimator: str = "ecdf", most: int | None = None
) -> Array:
    """log Z_n = log 1/(n+1) sum_{k=0}^n exp(f(q_k) / beta), q_k the estimate that rank k among n gets.

    Finite for every beta > 0, also where Z itself is not.

    Args:
      transform: f.
      beta: [], > 0.
      count: [], n >= 1; may be traced if `most` is given.
      estimator: a key of `quantiles.ESTIMATORS`.
      most: an upper bound of n, which decides shapes; n itself by default.

    Returns:
      []; NaN where n is 0 or, if traced, beyond its bound.

    Raises:
      ValueError: unknown estimator, or n beyond its bound.

    >>> from qrpo_jax import transforms
    >>> clamped = finite_sample_log_z(transforms.normal_icdf, 0.3, 6)
    >>> round(float(clamped), 2), round(float(transforms.normal_icdf.log_z(0.3)), 2)
    (2.08, 5.56)
    """
    if most is not None and not isinstance(count, jax.core.Tracer) and int(np.asarray(count)) > most:
        raise ValueError(f"count is {int(np.asarray(count))}; it must not exceed most, which is {most}")
    rank = jnp.arange((int(np.asarray(count)) if most is None else most) + 1.0)
    inside = rank <= count
    quantile = quantiles.of_rank(jnp.where(inside, rank, 0), count, estimator, transform.clamp)
    log_z = atoms_log_z(transform, beta, quantile, inside / (jnp.asarray(count) + 1.0))
    return jnp.where((jnp.asarray(count) > 0) & (jnp.asarray(count) < rank.size), log_z, jnp.nan)


def empirical_log_z(
    transform: Transform,
    beta: ArrayLike,
    reward: ArrayLike,
    reference_rewards: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    estimator: str = "ecdf",
    ties: str = "upper",
) -> Array:
    """log of the mean of exp(f / beta) over the n + 1 rewards at hand, each ranked among the n others.

    Args:
      transform: f.
      beta: [], > 0.
      reward: [], the completion's.
      reference_rewards: [N], its references', without its own.
      mask: [N] bool, the n references that are there; all by default.
      estimator: a key of `quantiles.ESTIMATORS`.
      ties: as for the quantile; "random" ranks 0..n are all taken once, as in `finite_sample_log_z`.

    Returns:
      []; NaN where n is 0.

    Raises:
      ValueError: unknown estimator or ties.

    >>> from qrpo_jax import transforms
    >>> tied = empirical_log_z(transforms.identity, 0.1, 1.0, [1.0, 1.0, 0.0])
    >>> round(float(tied), 4), round(float(finite_sample_log_z(transforms.identity, 0.1, 3)), 4)
    (9.7123, 8.65)
    """
    rewards = jnp.concatenate([jnp.asarray(reward)[None], jnp.asarray(reference_rewards)])
    present = jnp.ones(rewards.shape, bool)
    if mask is not None:
        present = present.at[1:].set(jnp.asarray(mask, bool))
    count = jnp.sum(present) - 1
    if ties == "random":
        return finite_sample_log_z(transform, beta, count, estimator, most=rewards.size - 1)

    def among_others(index: Array) -> Array:
        others = present & (jnp.arange(rewards.size) != index)
        return quantiles.estimate(
            rewards[index], rewards, others, estimator=estimator, ties=ties, clamped=transform.clamp
        )

    quantile = jax.vmap(among_others)(jnp.arange(rewards.size))
    log_z = atoms_log_z(transform, beta, quantile, present / (count + 1.0))
    return jnp.where(count > 0, log_z, jnp.nan)


def log_z(
    partition: str,
    transform: Transform,
    beta: ArrayLike,
    reward: ArrayLike,
    reference_rewards: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    estimator: str = "ecdf",
    ties: str = "upper",
) -> Array:
    """log Z of one completion by the partition of that name; arguments as for `empirical_log_z`.

    Raises:
      ValueError: unknown partition, estimator or ties, or beta for which the population's Z is infinite.

    >>> from qrpo_jax import transforms
    >>> round(float(log_z("population", transforms.identity, 0.1, 1.0, [1.0, 0.0])), 4)
    7.6974
    """
    if partition == "population":
        return transform.log_z(beta)
    if partition == "finite_sample":
        count = jnp.size(reference_rewards) if mask is None else jnp.sum(jnp.asarray(mask, bool))
        return finite_sample_log_z(transform, beta, count, estimator, most=jnp.size(reference_rewards))
    if partition == "empirical":
        return empirical_log_z(transform, beta, reward, reference_rewards, mask, estimator=estimator, ties=ties)
    raise ValueError(f"unknown partition {partition!r}: set the partition to one of {list(PARTITIONS)}")


def gap(transform: Transform, beta: ArrayLike, counts: ArrayLike, estimator: str = "ecdf") -> Array:
    """log Z_n - log Z: what the population's constant is off by when quantiles come from n references.

    Args:
      transform: f and log Z.
      beta: [], > 0; callers vmap.
      counts: [P], n of each prompt, concrete.
      estimator: a key of `quantiles.ESTIMATORS`.

    Returns:
      [P]

    Raises:
      ValueError: unknown estimator, or Z is infinite.

    >>> from qrpo_jax import transforms
    >>> [round(float(x), 3) for x in gap(transforms.normal_icdf, 0.3, [6, 50], "midpoint")]
    [-2.485, -1.275]
    """
    given = np.asarray(counts)
    most = int(given.max())
    each = jax.vmap(lambda count: finite_sample_log_z(transform, beta, count, estimator, most=most))
    return each(jnp.asarray(given)) - transform.log_z(beta)
