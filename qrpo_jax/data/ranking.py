"""Ranking: quantiles, ties, log Z and reward scales of completions among their prompts' reference rewards."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qrpo_jax import partition, quantiles, transforms
from qrpo_jax.data import ragged
from qrpo_jax.data.per_completion import PerCompletion
from qrpo_jax.data.ragged import Ragged
from qrpo_jax.data.rows import COMPLETION_SOURCES, Row
from qrpo_jax.data.views import View
from qrpo_jax.errors import UserError
from qrpo_jax.transforms import Transform

PART = 1 << 16  # completions ranked at a time, at most
PART_REWARDS = 1 << 26  # of references at a time; a single row with many widens the table of all
PART_COMPARISONS = 1 << 24  # of rewards at a time, where all references are compared with each other


class References(NamedTuple):
    """Reference rewards of R rows.

    Attributes:
      rewards: Ragged float32.
      own_K: bool, whether a completion's own reward is among those of its row.
    """

    rewards: Ragged
    own_K: np.ndarray

    def sets(self, row_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rewards of these rows padded to the longest set of all, float32 [B, N], and which are no padding, bool."""
        counts_R = self.rewards.counts_R
        most = max(int(counts_R.max(initial=0)), 1)
        mask_BxN = np.arange(most) < counts_R[row_B][:, None]
        at_BxN = self.rewards.first_R1[row_B][:, None] + np.arange(most)
        rewards_BxN = np.zeros(mask_BxN.shape, np.float32)
        rewards_BxN[mask_BxN] = self.rewards.values[at_BxN[mask_BxN]]
        return rewards_BxN, mask_BxN


def find_references(rewards: Ragged, sources_K: np.ndarray, further: Ragged, most: int) -> References:
    """The rewards that the completions of each row are ranked against.

    These are the rewards of completions of the reference policy, then `further` ones. Where a data set brings several
    completions and no references, each completion with a reward is a reference of the others.

    Args:
      rewards, sources_K: as in `corpus.Corpus`.
      further: `corpus.Corpus.reference_rewards`.
      most: only the first so many of a row; 0 for all.
    """
    row_K = rewards.row_V
    others_K1 = ragged.true_before(sources_K != COMPLETION_SOURCES.index("dataset"))
    brought_R = np.diff(others_K1[rewards.first_R1]) == 0
    alone_R = brought_R & (rewards.counts_R > 1) & (further.counts_R == 0)
    own_K = sources_K == COMPLETION_SOURCES.index("reference")
    own_K |= alone_R[row_K] & np.isfinite(rewards.values)
    before_K1 = ragged.true_before(own_K)
    place_K = before_K1[:-1] - before_K1[rewards.first_R1[:-1]][row_K]  # among the references of its row
    if most:
        own_K &= place_K < most
    counts_R = np.diff(ragged.true_before(own_K)[rewards.first_R1])
    row_V = further.row_V
    further_place_V = np.arange(len(row_V)) - further.first_R1[row_V] + counts_R[row_V]
    kept_V = further_place_V < (most or np.iinfo(np.int64).max)
    first_R1 = ragged.starts(counts_R + np.bincount(row_V[kept_V], minlength=len(counts_R)))
    values = np.zeros(first_R1[-1], np.float32)
    values[first_R1[row_K[own_K]] + place_K[own_K]] = rewards.values[own_K]
    values[first_R1[row_V[kept_V]] + further_place_V[kept_V]] = further.values[kept_V]
    return References(Ragged(values, first_R1), own_K)


def own_references(row: Row) -> bool:
    """Whether a data set brings several completions and no references, so that they are each other's references."""
    brought = len(row.completions) > 1 and all(c.source == "dataset" for c in row.completions)
    return brought and not len(row.reference_rewards)


def rank(
    completions_C: PerCompletion,
    references: References,
    row_C: np.ndarray,
    own_C: np.ndarray,
    *,
    view: View,
    transform: Transform,
    beta: Callable[[np.ndarray], Any] | None,
    need_references: bool,
) -> PerCompletion:
    """Completions with quantile, ties, number of references, log Z and reward scale filled in.

    Args:
      completions_C: reward and length are read.
      row_C: index of each completion's row in `references`.
      own_C: whether a completion's own reward is in its row's set.
      transform: f; decides clamps, the smallest number of references and log Z.
      beta: β of completions of these lengths, [C] -> [C] or []; None leaves log Z unknown.
      need_references: refuse sets that are too small; otherwise their quantiles are NaN.

    Raises:
      UserError: too few references, no scale, or a β for which Z is infinite.
    """
    exclude_C = own_C & view.exclude_own
    count_C = references.rewards.counts_R.astype(np.int32)[row_C] - exclude_C
    if len(row_C) and need_references:
        quantiles.check_references(count_C, transform, view.estimator)
    scale_C = reward_scale(references, transform)[row_C].astype(np.float32)
    beta_C = None if beta is None else np.broadcast_to(beta(completions_C.length), len(row_C))
    # The log Z of finite samples depends on the references as the quantiles do, and is computed with them.
    sampled = view.partition if beta_C is not None and view.partition != "population" else None
    betas_C = np.ones(len(row_C), np.float32) if beta_C is None else beta_C.astype(np.float32)
    settings = {"transform": transform, "estimator": view.estimator, "ties": view.ties, "partition_name": sampled}
    columns_C = (completions_C.reward, exclude_C, betas_C, scale_C)
    quantile_C, ties_C, log_z_C = _in_parts(references, row_C, columns_C, view.seed, settings)
    if beta_C is not None and sampled is None:
        log_z_C = population_log_z(transform, beta_C, scale_C)
    return completions_C._replace(
        quantile=quantile_C,
        ties=ties_C,
        references=count_C.astype(np.int32),
        log_z=log_z_C,
        reward_scale=scale_C,
    )


def _in_parts(
    references: References, row_C: np.ndarray, columns_C: tuple[Any, ...], seed: int, settings: dict[str, Any]
) -> list[np.ndarray]:
    """Results of `_rank_part` for all completions, float32 [C] each, computed in parts that fit the memory."""
    size = _rows_at_once(references)
    if settings["partition_name"] is not None:
        most = int(references.rewards.counts_R.max(initial=0))
        size = min(size, max(256, PART_COMPARISONS // (most + 1) ** 2))
    parts: list[tuple[np.ndarray, ...]] = [(np.zeros(0, np.float32),) * 3]
    for part in _slices(len(row_C), size):
        key = jax.random.fold_in(jax.random.key(seed), part.start)
        results = _rank_part(*references.sets(row_C[part]), key, *(column[part] for column in columns_C), **settings)
        parts.append(tuple(np.asarray(values, np.float32) for values in results))
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


@partial(jax.jit, static_argnames=("transform", "estimator", "ties", "partition_name"))
def _rank_part(
    references_CxN: Array,
    mask_CxN: Array,
    key: Array,
    reward_C: Array,
    exclude_C: Array,
    beta_C: Array,
    scale_C: Array,
    *,
    transform: Transform,
    estimator: str,
    ties: str,
    partition_name: str | None,
) -> tuple[Array, Array, Array]:
    """Quantile, share of ties and log Z (NaN without a partition) of each completion, [C]."""
    how = {"estimator": estimator, "ties": ties}

    def one(
        references_N: Array, mask_N: Array, reward: Array, exclude: Array, key: Array, beta: Array, scale: Array
    ) -> tuple[Array, Array, Array]:
        others_N = jnp.where(exclude, quantiles.exclude_own(reward, references_N, mask_N), mask_N)
        quantile = quantiles.estimate(reward, references_N, others_N, **how, clamped=transform.clamp, key=key)
        log_z = jnp.float32(jnp.nan)
        if partition_name is not None:
            scaled = transforms.scale_by(transform, scale)
            log_z = partition.log_z(partition_name, scaled, beta, reward, references_N, others_N, **how)
        return quantile, quantiles.tied_share(reward, references_N, others_N), log_z

    keys_C = jax.random.split(key, len(reward_C))
    return jax.vmap(one)(references_CxN, mask_CxN, reward_C, exclude_C, keys_C, beta_C, scale_C)


def reward_scale(references: References, transform: Transform) -> np.ndarray:
    """Each row's std of reference rewards over its mean across rows, [R].

    Raises:
      UserError: a scaled transform where no row's references differ.
    """
    counts_R = references.rewards.counts_R
    rows_R = np.arange(len(counts_R))
    parts = [_spread(*references.sets(rows_R[part])) for part in _slices(len(rows_R), _rows_at_once(references))]
    std_R = np.concatenate([np.zeros(0, np.float32), *(np.asarray(part) for part in parts)])
    # A single reference has no spread; as NaN it stays out of the mean.
    std_R = np.where(counts_R > 1, std_R, np.nan)
    mean_std = np.nanmean(std_R) if np.isfinite(std_R).any() else np.nan
    if transform.scaled and not mean_std > 0:
        raise UserError(
            f"every prompt's reference rewards are equal; transform {transform.name!r} has no scale", about="transform"
        )
    return std_R / mean_std if mean_std > 0 else np.ones_like(std_R)


_spread = jax.jit(jax.vmap(quantiles.reward_std))


def population_log_z(transform: Transform, beta_C: np.ndarray, scale_C: np.ndarray) -> np.ndarray:
    """log Z of exact quantiles at each completion's β, [C], computed once for each pair of β and scale."""

    def bits(part: slice) -> np.ndarray:
        # A pair of float32 as one whole number: rows of a table are sorted far slower.
        scales = scale_C[part] if transform.scaled else np.ones_like(scale_C[part])
        return np.stack([beta_C[part], scales], 1, dtype=np.float32).view(np.uint64).reshape(-1)

    parts = [slice(0, 0), *_slices(len(scale_C), PART)]
    distinct_U = np.unique(np.concatenate([np.unique(bits(part)) for part in parts]))
    beta_U, scale_U = distinct_U.view(np.float32).reshape(-1, 2).T
    log_z_U = np.asarray(transforms.scale_by(transform, scale_U).log_z(beta_U), np.float32)
    return np.concatenate([log_z_U[np.searchsorted(distinct_U, bits(part))] for part in parts])


def _rows_at_once(references: References) -> int:
    """How many sets of `References.sets` fit the memory, padded to the longest: at most `PART`, and at least one."""
    return max(1, min(PART, PART_REWARDS // max(int(references.rewards.counts_R.max(initial=0)), 1)))


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, count)) for i in range(0, count, size))
