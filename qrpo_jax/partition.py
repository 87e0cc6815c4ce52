"""Partition functions for estimated quantiles: log Z if R_q is estimated from n references.

log Z normalises: exp(f(R_q) / beta - log Z) has mean 1 under the reference policy. `Transform.log_z` satisfies this for
the exact quantile of a reward without ties, the limit of infinitely many references. An estimate from n references has
finitely many values, and its mean of exp(f / beta) is a different number. A partition says what it is averaged over:

- `population` averages over t uniform on (0, 1). The mean is exactly 1 for no finite n; the error falls as 1 / n where
  f is bounded.
- `finite_sample` averages over the n + 1 possible ranks of a completion. The mean is exactly 1 for rewards that never
  tie, or ties ranked `random`.
- `empirical` averages over the n + 1 observed rewards, each ranked among the others. The mean is exactly 1 for any
  rewards, ties, estimator and n.

`empirical` is exact because a completion of the reference policy and its n references are exchangeable: given the n + 1
rewards, each is equally likely to be the completion's. Its log Z therefore includes the completion's own reward, and
differs slightly between completions ranked against the same references. For completions that are their own references
(`quantiles.exclude_own`) it is the same for the whole prompt. For completions of another policy the mean need not be 1:
there log Z only has to match the quantile estimate that defines the optimum.

Functions take one completion and one prompt's references, as in `quantiles`; callers vmap.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from qrpo_jax import quantiles
from qrpo_jax.errors import UserError
from qrpo_jax.exponential_sums import log_mean_exp
from qrpo_jax.transform_record import Transform, check_beta

PARTITIONS = ("population", "finite_sample", "empirical")


def atoms_log_z(transform: Transform, beta: ArrayLike, quantile: ArrayLike, weights: ArrayLike) -> Array:
    """log sum_i w_i exp(f(q_i) / beta): log Z of a quantile with finitely many values q_i.

    Args:
      transform: f; finite at every q_i of positive weight.
      beta: [], > 0, in units of f.
      quantile: [N], q_i.
      weights: [N], probabilities w_i, with sum 1.

    Returns:
      []

    Raises:
      UserError: beta is not positive.

    >>> from qrpo_jax import transforms
    >>> round(float(atoms_log_z(transforms.identity, 0.5, [0.0, 1.0], [0.5, 0.5])), 4)
    1.4338
    """
    check_beta(beta, 0.0, transform.name)
    weights = jnp.asarray(weights)
    # f may be infinite at a quantile of weight 0, which would make gradients NaN.
    f = transform.apply(jnp.where(weights > 0, jnp.asarray(quantile), 0.5))
    return log_mean_exp(f, weights.astype(f.dtype), 1 / jnp.asarray(beta, f.dtype))


def finite_sample_log_z(
    transform: Transform, beta: ArrayLike, count: ArrayLike, estimator: str = "ecdf", most: int | None = None
) -> Array:
    """log Z_n = log 1/(n+1) sum_{k=0}^n exp(f(q_k) / beta), q_k the estimated quantile of rank k among n.

    Finite for every beta > 0, even where Z is infinite.

    Args:
      transform: f.
      beta: [], > 0, in units of f.
      count: [], n >= 1; may be traced if `most` is set.
      estimator: a key of `quantiles.ESTIMATORS`.
      most: an upper bound of n, which determines shapes; by default n itself.

    Returns:
      []; NaN where n is 0 or a traced n exceeds its bound.

    Raises:
      UserError: unknown estimator, or beta is not positive.
      ValueError: n exceeds its bound.

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
    """log of the mean of exp(f / beta) over the n + 1 observed rewards, each ranked among the n others.

    Args:
      transform: f.
      beta: [], > 0, in units of f.
      reward: [], the completion's reward.
      reference_rewards: [N], rewards of its references, without the completion itself.
      mask: [N] bool, True for the n references that count; by default all.
      estimator: a key of `quantiles.ESTIMATORS`.
      ties: the rule of the quantile, see `quantiles.ecdf`; with "random" every rank 0..n occurs once, as in
        `finite_sample_log_z`.

    Returns:
      []; NaN where n is 0.

    Raises:
      UserError: unknown estimator or ties, or beta is not positive.

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
    """log Z of one completion by the named partition.

    Args:
      partition: a member of `PARTITIONS`; the other arguments are those of `empirical_log_z`.

    Returns:
      []; with "population" the shape of beta.

    Raises:
      UserError: unknown partition, estimator or ties, or a beta for which Z is infinite.

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
    raise UserError(f"partition is {partition!r}; allowed: {', '.join(PARTITIONS)}", about="partition")


def gap(transform: Transform, beta: ArrayLike, counts: ArrayLike, estimator: str = "ecdf") -> Array:
    """log Z_n - log Z: the error of the population's constant for quantiles from n references.

    Args:
      transform: f and log Z.
      beta: [], > 0, in units of f; callers vmap.
      counts: [P], n of each prompt; concrete, not traced.
      estimator: a key of `quantiles.ESTIMATORS`.

    Returns:
      [P], in nats.

    Raises:
      UserError: unknown estimator, or Z is infinite.

    >>> from qrpo_jax import transforms
    >>> [round(float(x), 3) for x in gap(transforms.normal_icdf, 0.3, [6, 50], "midpoint")]
    [-2.485, -1.275]
    """
    counts = np.asarray(counts)
    most = int(counts.max())
    of_count = jax.vmap(lambda count: finite_sample_log_z(transform, beta, count, estimator, most=most))
    return of_count(jnp.asarray(counts)) - transform.log_z(beta)
