"""Quantile rewards: the rank of a completion's reward among the rewards of reference completions.

R_q(x, y) = P_{y' ~ pi_ref}(R(x, y') <= R(x, y)) (arXiv 2507.08068), estimated from the reference rewards of one prompt.
Functions take one completion and one prompt's references; callers vmap. A mask selects n of the N references, so that
prompts with different n share a shape; a masked reward has no effect, even NaN.

Two estimators turn a rank k among n references into a quantile: `ecdf`, k / n, as published, and `midpoint`,
(k + 1/2) / (n + 1). The rank of a completion of the reference policy is uniform on 0..n if rewards do not tie or ties
are ranked at random; see `partition` for the effect on log Z.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from qrpo_jax.errors import UserError
from qrpo_jax.transform_record import Transform

TIES = ("upper", "mid", "random")
ESTIMATORS: dict[str, Callable[[Array, Array], Array]] = {
    "ecdf": lambda rank, count: rank / count,
    "midpoint": lambda rank, count: (rank + 0.5) / (count + 1),
}


def _references(reference_rewards: ArrayLike, mask: ArrayLike | None) -> tuple[Array, Array]:
    references = jnp.asarray(reference_rewards)
    present = jnp.ones(references.shape, bool) if mask is None else jnp.asarray(mask, bool)
    if references.ndim != 1 or present.shape != references.shape:
        raise ValueError(
            f"reference_rewards and mask must both be [N], got {references.shape} and "
            f"{present.shape}: vmap over prompts"
        )
    return references, present


def _compare(reward: ArrayLike, reference_rewards: ArrayLike, mask: ArrayLike | None) -> tuple[Array, Array, Array]:
    """Counts of the references below the reward, tied with it, and present, [] floating each."""
    if jnp.ndim(reward) != 0:
        raise ValueError(f"reward must be a scalar, got shape {jnp.shape(reward)}: vmap over completions")
    references, present = _references(reference_rewards, mask)
    dtype = jnp.result_type(reward, references, float)
    below = jnp.sum(present & (references < reward), dtype=dtype)
    tied = jnp.sum(present & (references == reward), dtype=dtype)
    # A comparison with NaN is False and would count as the lowest rank; NaN as the result shows the mistake.
    unknown = jnp.isnan(reward) | jnp.any(present & jnp.isnan(references))
    return jnp.where(unknown, jnp.nan, below), tied, jnp.sum(present, dtype=dtype)


def _rank(below: Array, tied: Array, ties: str, key: Array | None) -> Array:
    """The reward's rank k in 0..n by the rule `ties`, []."""
    if ties == "upper":
        return below + tied
    if ties == "mid":
        return below + tied / 2
    if ties != "random":
        raise UserError(f"ties is {ties!r}; allowed: {', '.join(TIES)}", about="ties")
    if key is None:
        raise ValueError("ties='random' draws a rank and needs a key: pass key, or set ties to 'upper' or 'mid'")
    place = jax.random.randint(key, (), 0, tied.astype(jnp.int32) + 1)
    return below + place.astype(below.dtype)


def ecdf(
    reward: ArrayLike,
    reference_rewards: ArrayLike,
    mask: ArrayLike | None = None,
    ties: str = "upper",
    key: Array | None = None,
) -> Array:
    """Empirical quantile k / n, with k the reward's rank among n references (arXiv 2507.08068).

    Args:
      reward: [], the completion's reward.
      reference_rewards: [N], rewards of completions of the same prompt, sampled from the reference policy.
      mask: [N] bool, True for the n references that count; by default all.
      ties: rank of a reward among references equal to it. "upper": above them, the published mean_j 1{r_j <= R};
        "mid": halfway; "random": uniform among the tied places, which makes the rank of a completion of the reference
        policy exactly uniform on 0..n.
      key: PRNG key, for ties="random".

    Returns:
      [] in [0, 1], in the floating dtype of the rewards; NaN if a reward is NaN or n is 0.

    Raises:
      UserError: unknown `ties`.
      ValueError: arrays of another rank, or no key for ties="random".

    >>> float(ecdf(2.0, [1.0, 2.0, 2.0, 3.0])), float(ecdf(2.0, [1.0, 2.0, 2.0, 3.0], ties="mid"))
    (0.75, 0.5)
    """
    below, tied, count = _compare(reward, reference_rewards, mask)
    return ESTIMATORS["ecdf"](_rank(below, tied, ties, key), count)


def midpoint(
    reward: ArrayLike,
    reference_rewards: ArrayLike,
    mask: ArrayLike | None = None,
    ties: str = "upper",
    key: Array | None = None,
) -> Array:
    """Mid-point quantile (k + 1/2) / (n + 1), which lies inside (0, 1) for every rank k and needs no clamp.

    For a completion of the reference policy k is uniform on 0..n, and these are the mid-points of n + 1 equal cells.
    Arguments, result and errors are those of `ecdf`.

    >>> float(midpoint(0.5, [1.0, 2.0, 3.0])), float(midpoint(9.0, [1.0, 2.0, 3.0]))
    (0.125, 0.875)
    """
    below, tied, count = _compare(reward, reference_rewards, mask)
    return ESTIMATORS["midpoint"](_rank(below, tied, ties, key), count)


def of_rank(rank: ArrayLike, count: ArrayLike, estimator: str, clamped: str = "none") -> Array:
    """The estimated quantile of rank k among n references.

    Args:
      rank: [...], k in 0..n; a multiple of 1/2 with ties="mid".
      count: [...], n; broadcasts against `rank`.
      estimator: a key of `ESTIMATORS`.
      clamped: `Transform.clamp`; `midpoint` lies inside (0, 1) and ignores it.

    Returns:
      [...], floating.

    Raises:
      UserError: unknown estimator.
      ValueError: unknown clamp.

    >>> of_rank(3, 4, "ecdf"), of_rank(4, 4, "ecdf", "both"), of_rank(3, 4, "midpoint")
    (Array(0.75, dtype=float32), Array(0.75, dtype=float32), Array(0.7, dtype=float32))
    """
    if estimator not in ESTIMATORS:
        raise UserError(f"estimator is {estimator!r}; allowed: {', '.join(ESTIMATORS)}", about="estimator")
    rank = jnp.asarray(rank) * 1.0
    count = jnp.asarray(count).astype(rank.dtype)
    quantile = ESTIMATORS[estimator](rank, count)
    return clamp(quantile, count, clamped) if estimator == "ecdf" else quantile


def estimate(
    reward: ArrayLike,
    reference_rewards: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    estimator: str = "ecdf",
    ties: str = "upper",
    clamped: str = "none",
    key: Array | None = None,
) -> Array:
    """The estimated quantile of a reward, clamped to where a transform is finite.

    Arguments, result and errors are those of `ecdf` and `of_rank`.

    >>> round(float(estimate(9.0, [1.0, 2.0, 3.0], clamped="both")), 4)
    0.6667
    """
    below, tied, count = _compare(reward, reference_rewards, mask)
    return of_rank(_rank(below, tied, ties, key), count, estimator, clamped)


def clamp(quantile: ArrayLike, count: ArrayLike, kind: str) -> Array:
    """An empirical quantile clamped to where a transform is finite, as in the authors' code.

    Args:
      quantile: [...], from `ecdf` (`midpoint` needs no clamp).
      count: [...], n; broadcasts against `quantile`.
      kind: `Transform.clamp`: "none" changes nothing, "lower" clamps to [1/n, 1], "upper" to [0, (n-1)/n], "both" to
        [1/n, (n-1)/n]. At n = 1 these intervals are a point or empty; `check_references` rejects such data.

    Returns:
      [...], in the dtype of `quantile`.

    Raises:
      ValueError: unknown kind.

    >>> float(clamp(0.0, 4, "lower")), float(clamp(1.0, 4, "both"))
    (0.25, 0.75)
    """
    quantile = jnp.asarray(quantile)
    if kind == "none":
        return quantile
    count = jnp.asarray(count).astype(quantile.dtype)
    if kind == "lower":
        return jnp.clip(quantile, 1 / count, 1.0)
    if kind == "upper":
        return jnp.clip(quantile, 0.0, (count - 1) / count)
    if kind == "both":
        return jnp.clip(quantile, 1 / count, (count - 1) / count)
    raise ValueError(f"unknown clamp {kind!r}: set Transform.clamp to 'none', 'lower', 'upper' or 'both'")


def check_references(count: ArrayLike, transform: Transform, estimator: str = "ecdf") -> None:
    """Rejects, on the host, reference sets that are too small for the transform and the estimator.

    Args:
      count: [...], number of references of each prompt; concrete, not traced.
      transform: the transform of the quantiles.
      estimator: a key of `ESTIMATORS`; `midpoint` is never clamped, and one reference is enough.

    Raises:
      UserError: the smallest n is below 1, or is 1 where `ecdf` is clamped, so that every completion would have the
        same quantile or an infinite reward.

    >>> from qrpo_jax import transforms
    >>> check_references(1, transforms.identity)
    >>> check_references([6, 1], transforms.normal_icdf)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    qrpo_jax.errors.UserError: a prompt has n = 1 reference reward(s), ...
    """
    needed = 2 if transform.clamp != "none" and estimator == "ecdf" else 1
    smallest = int(jnp.min(jnp.asarray(count)))
    if smallest < needed:
        raise UserError(
            f"a prompt has n = {smallest} reference reward(s), transform {transform.name!r} with estimator "
            f"{estimator!r} needs at least {needed}: sample more references per prompt or set another transform",
            about="references",
        )


def tied_share(reward: ArrayLike, reference_rewards: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """The share of references that are tied with the reward.

    Args:
      reward: [].
      reference_rewards: [N].
      mask: [N] bool, True for the references that count; by default all.

    Returns:
      [] in [0, 1]; NaN without references.

    >>> float(tied_share(2.0, [1.0, 2.0, 2.0, 3.0]))
    0.5
    """
    _, tied, count = _compare(reward, reference_rewards, mask)
    return tied / count


def reward_std(reference_rewards: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Standard deviation of one prompt's reference rewards, with n - 1 in the denominator.

    Divided by its mean across prompts, it is the reward_scale of "scaled-normal-icdf".

    Args:
      reference_rewards: [N].
      mask: [N] bool, True for the references that count; by default all.

    Returns:
      [], in units of the reward; NaN for n <= 1.

    >>> float(reward_std([1.0, 2.0, 3.0]))
    1.0
    """
    references, present = _references(reference_rewards, mask)
    references = references.astype(jnp.result_type(references, float))
    count = jnp.sum(present, dtype=references.dtype)
    mean = jnp.sum(jnp.where(present, references, 0)) / count
    variance = jnp.sum(jnp.where(present, jnp.square(references - mean), 0)) / (count - 1)
    # The variance of equal references is 0, where sqrt has an infinite slope.
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), variance)


def exclude_own(reward: ArrayLike, reference_rewards: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """The mask without one reference equal to the reward, for a completion that is among its prompt's references.

    Its own reward carries no information about its rank.

    Args:
      reward: [].
      reference_rewards: [N].
      mask: [N] bool, True for the references that count; by default all.

    Returns:
      [N] bool: `mask` without the first equal entry; `mask` itself if none is equal.

    >>> exclude_own(2.0, [1.0, 2.0, 2.0]).tolist()
    [True, False, True]
    """
    references, present = _references(reference_rewards, mask)
    equal = present & (references == reward)
    first = jnp.arange(references.size) == jnp.argmax(equal)
    return present & ~(equal & first)
