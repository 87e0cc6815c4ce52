"""Quantile rewards: where a completion's reward stands among the rewards of reference completions.

R_q(x, y) = P_{y' ~ pi_ref}(R(x, y') <= R(x, y)) (arXiv 2507.08068), estimated from the N
reference rewards of one prompt. Functions take one completion and one prompt's references; callers
vmap. A mask selects the n <= N references that are there, so prompts with different n share a
shape; what stands under a False is never looked at, NaN included.

Two estimators turn a rank k among n references into a quantile: `ecdf`, k / n, as published, and `midpoint`,
(k + 1/2) / (n + 1). The rank of a completion of the reference policy is uniform on 0..n if rewards do not tie, or ties
are ranked at random; what that does to the partition function is told in `partition`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from qrpo_jax.transforms import Transform

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
    """Numbers of references below the reward, tied with it, and present, as floats."""
    if jnp.ndim(reward) != 0:
        raise ValueError(f"reward must be a scalar, got shape {jnp.shape(reward)}: vmap over completions")
    references, present = _references(reference_rewards, mask)
    dtype = jnp.result_type(reward, references, float)
    below = jnp.sum(present & (references < reward), dtype=dtype)
    tied = jnp.sum(present & (references == reward), dtype=dtype)
    # Comparisons with NaN are False and would pass as the lowest rank: make them visible instead.
    unknown = jnp.isnan(reward) | jnp.any(present & jnp.isnan(references))
    return jnp.where(unknown, jnp.nan, below), tied, jnp.sum(present, dtype=dtype)


def _rank(below: Array, tied: Array, ties: str, key: Array | None) -> Array:
    if ties == "upper":
        return below + tied
    if ties == "mid":
        return below + tied / 2
    if ties != "random":
        raise ValueError(f"unknown ties {ties!r}: set ties to one of {list(TIES)}")
    if key is None:
        raise ValueError("ties='random' draws a rank and needs a key: pass key, or set ties to 'upper' or 'mid'")
    drawn = jax.random.randint(key, (), 0, tied.astype(jnp.int32) + 1)
    return below + drawn.astype(below.dtype)


def ecdf(
    reward: ArrayLike,
    reference_rewards: ArrayLike,
    mask: ArrayLike | None = None,
    ties: str = "upper",
    key: Array | None = None,
) -> Array:
    """Empirical quantile k / n, with k the reward's rank among n references.

    Args:
      reward: [], the completion's reward.
      reference_rewards: [N], rewards of completions that the reference policy drew for the same
        prompt.
      mask: [N] bool, the references that are there; all by default.
      ties: where a reward ranks among references equal to it. "upper": above them, the published
        mean_j 1{r_j <= R}; "mid": halfway; "random": uniformly among the places, which makes the
        rank of a completion drawn from the reference policy exactly uniform on 0..n.
      key: PRNG key, for ties="random".

    Returns:
      [] in [0, 1], in the floating dtype of the rewards; NaN if a reward is NaN or n is 0.

    Raises:
      ValueError: wrong ranks, unknown `ties`, or no key for ties="random".

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
    """Mid-point quantile (k + 1/2) / (n + 1), inside (0, 1) for every rank k: needs no clamp.

    For a completion of the reference policy k is uniform on 0..n and these are the mid-points of n
    + 1 equal cells. Arguments, result and errors are those of `ecdf`.

    >>> float(midpoint(0.5, [1.0, 2.0, 3.0])), float(midpoint(9.0, [1.0, 2.0, 3.0]))
    (0.125, 0.875)
    """
    below, tied, count = _compare(reward, reference_rewards, mask)
    return ESTIMATORS["midpoint"](_rank(below, tied, ties, key), count)


def of_rank(rank: ArrayLike, count: ArrayLike, estimator: str, clamped: str = "none") -> Array:
    """The quantile that an estimator gives to rank k among n references.

    Args:
      rank: [...], k in 0..n; halves where ties rank "mid".
      count: n, broadcasts against `rank`.
      estimator: a key of `ESTIMATORS`.
      clamped: `Transform.clamp`; `midpoint` lies inside (0, 1) and needs none.

    Returns:
      [...], floating.

    Raises:
      ValueError: unknown estimator or clamp.

    >>> of_rank(3, 4, "ecdf"), of_rank(4, 4, "ecdf", "both"), of_rank(3, 4, "midpoint")
    (Array(0.75, dtype=float32), Array(0.75, dtype=float32), Array(0.7, dtype=float32))
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator!r}: set the estimator to one of {list(ESTIMATORS)}")
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
    """Quantile of a reward by the estimator of that name, kept where a transform is finite.

    Arguments, result and errors are those of `ecdf` and `of_rank`.

    >>> round(float(estimate(9.0, [1.0, 2.0, 3.0], clamped="both")), 4)
    0.6667
    """
    below, tied, count = _compare(reward, reference_rewards, mask)
    return of_rank(_rank(below, tied, ties, key), count, estimator, clamped)


def clamp(quantile: ArrayLike, count: ArrayLike, kind: str) -> Array:
    """Keep an empirical quantile where a transform is finite, as published.

    Args:
      quantile: [...], from `ecdf` (`midpoint` needs no clamp).
      count: n, broadcasts against `quantile`.
      kind: `Transform.clamp`: "none" leaves it, "lower" clamps to [1/n, 1], "upper" to [0, (n-1)/n], "both" to
        [1/n, (n-1)/n]. At n = 1 these are a single point or empty: refuse such data first, with
        `check_references`.

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
    """Refuses, on the host, reference sets that are too small for transform and estimator.

    Args:
      count: numbers of reference rewards per prompt, any shape; concrete, not traced.
      transform: the transform to be applied to the quantiles.
      estimator: a key of `ESTIMATORS`; `midpoint` is never clamped and makes do with one reference.

    Raises:
      ValueError: the smallest n is below 1, or is 1 where `ecdf` is clamped: every completion would then have the same
        quantile, or an infinite reward.

    >>> from qrpo_jax import transforms
    >>> check_references(1, transforms.identity)
    >>> check_references([6, 1], transforms.normal_icdf)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: a prompt has n = 1 reference reward(s), ...
    """
    needed = 2 if transform.clamp != "none" and estimator == "ecdf" else 1
    smallest = int(jnp.min(jnp.asarray(count)))
    if smallest < needed:
        raise ValueError(
            f"a prompt has n = {smallest} reference reward(s), transform {transform.name!r} with estimator "
            f"{estimator!r} needs at least {needed}: sample more references per prompt or set another transform"
        )


def tied_share(reward: ArrayLike, reference_rewards: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Share of a reward's comparisons with its references that are ties.

    Args:
      reward: [].
      reference_rewards: [N].
      mask: [N] bool, the references that are there; all by default.

    Returns:
      [] in [0, 1]; NaN without references.

    >>> float(tied_share(2.0, [1.0, 2.0, 2.0, 3.0]))
    0.5
    """
    _, tied, count = _compare(reward, reference_rewards, mask)
    return tied / count


def reward_std(reference_rewards: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """Standard deviation of one prompt's reference rewards, with n - 1 in the denominator.

    Over its mean across prompts it is the reward_scale of "scaled-normal-icdf".

    Args:
      reference_rewards: [N].
      mask: [N] bool, the references that are there; all by default.

    Returns:
      []; NaN for n <= 1.

    >>> float(reward_std([1.0, 2.0, 3.0]))
    1.0
    """
    references, present = _references(reference_rewards, mask)
    references = references.astype(jnp.result_type(references, float))
    count = jnp.sum(present, dtype=references.dtype)
    mean = jnp.sum(jnp.where(present, references, 0)) / count
    variance = jnp.sum(jnp.where(present, jnp.square(references - mean), 0)) / (count - 1)
    # sqrt has an infinite slope at 0, the value for references that are all equal.
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), variance)


def exclude_own(reward: ArrayLike, reference_rewards: ArrayLike, mask: ArrayLike | None = None) -> Array:
    """The mask without one reference equal to the reward.

    For a completion that is itself among its prompt's references: its own reward says nothing about
    its rank.

    Args:
      reward: [].
      reference_rewards: [N].
      mask: [N] bool, the references that are there; all by default.

    Returns:
      [N] bool: `mask` with the first equal entry removed; `mask` itself if none is equal.

    >>> exclude_own(2.0, [1.0, 2.0, 2.0]).tolist()
    [True, False, True]
    """
    references, present = _references(reference_rewards, mask)
    equal = present & (references == reward)
    own = jnp.arange(references.size) == jnp.argmax(equal)
    return present & ~(equal & own)
