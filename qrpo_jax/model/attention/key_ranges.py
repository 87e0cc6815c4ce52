"""The keys of a row that a query sees, as two ranges: what kernels read instead of a mask.

A row holds a group's shared prompt first and then its completions one after another, each in order of position. So a
query sees one range of the prompt and one range of its own segment, also when a window cuts them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from qrpo_jax.model.layout import Layout


class KeyRanges(NamedTuple):
    """The keys that each query sees, as indices into the row, int32 [B, L] each.

    The two ranges do not overlap. A range without keys is [M, 0) for rows of M keys: its start is above and its end
    below that of every other range, so it neither widens nor fills the range of a block.

    Attributes:
      prompt_start, prompt_end: the part of the shared prompt that a token of a later completion sees, end excluded.
      own_start, own_end: the part of the query's own segment up to and including the query, end excluded. For the
        first completion of a group it includes the prompt.
    """

    prompt_start: Array
    prompt_end: Array
    own_start: Array
    own_end: Array


def empty(keys: int) -> tuple[int, int, int, int]:
    """The fields of `KeyRanges` for a query that sees none of M keys."""
    return keys, 0, keys, 0


def key_ranges(keys: Layout, window: Array | int | None = None) -> KeyRanges:
    """The ranges of the queries at all M places of rows of keys; padding sees no key.

    Args:
      keys: layout [B, M]; positions of a group's prompt are 0, 1, ..., and those of a completion go on from there.
      window: as in `Backend`.
    """
    groups_BxM, segments_BxM, positions_BxM = keys
    length = groups_BxM.shape[1]
    index_BxM = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], groups_BxM.shape)

    def before(x_BxM: Array) -> Array:
        return jnp.pad(x_BxM[:, :-1], ((0, 0), (1, 0)), constant_values=-1)

    first_of_group_BxM = groups_BxM != before(groups_BxM)
    first_of_segment_BxM = first_of_group_BxM | (segments_BxM != before(segments_BxM))
    after_prompt_BxM = (segments_BxM > 0) & (first_of_group_BxM | (before(segments_BxM) == 0))
    # One scan gives for every token the last such place at or before it.
    marks_3xBxM = jnp.stack([first_of_group_BxM, first_of_segment_BxM, after_prompt_BxM])
    last_3xBxM = jax.lax.cummax(jnp.where(marks_3xBxM, index_BxM[None], 0), axis=2)
    prompt_start, own_start, prompt_end = last_3xBxM
    # The first completion follows its prompt: both are one range, which no block's end falls between.
    follows_prompt_BxM = (segments_BxM == 0) | (own_start == prompt_end)
    own_start = jnp.where(follows_prompt_BxM, prompt_start, own_start)
    if window is not None:
        own_start = jnp.maximum(own_start, index_BxM - window + 1)
        prompt_start = jnp.maximum(prompt_start, prompt_start + positions_BxM - window + 1)
    sees_prompt_BxM = (groups_BxM > 0) & ~follows_prompt_BxM & (prompt_start < prompt_end)
    sees_own_BxM = groups_BxM > 0
    nothing = empty(length)
    return KeyRanges(
        jnp.where(sees_prompt_BxM, prompt_start, nothing[0]),
        jnp.where(sees_prompt_BxM, prompt_end, nothing[1]),
        jnp.where(sees_own_BxM, own_start, nothing[2]),
        jnp.where(sees_own_BxM, index_BxM + 1, nothing[3]),
    )


class BlockOrder(NamedTuple):
    """Which blocks of the other side each block needs: those seen whole come first, then those seen in part.

    Attributes:
      blocks_BxIxJ: int32, a permutation of the J blocks for each of the I blocks.
      counts_BxIx2: int32, how many blocks are seen whole, and how many are seen at all.
    """

    blocks_BxIxJ: Array
    counts_BxIx2: Array


def block_order(
    ranges: KeyRanges, keys: int, block_queries: int, block_keys: int, *, by_keys: bool = False
) -> BlockOrder:
    """The key blocks that each block of queries needs; the query blocks that each block of keys needs if `by_keys`.

    Args:
      ranges: [B, L], with L a multiple of `block_queries`.
      keys: M, a multiple of `block_keys`.
    """
    batch, length = ranges.own_start.shape
    blocks_BxIxT = KeyRanges(*(x.reshape(batch, length // block_queries, block_queries) for x in ranges))
    low_BxIx1 = KeyRanges(*(x.min(-1, keepdims=True) for x in blocks_BxIxT))
    high_BxIx1 = KeyRanges(*(x.max(-1, keepdims=True) for x in blocks_BxIxT))
    start_1x1xJ = jnp.arange(0, keys, block_keys, dtype=jnp.int32)[None, None]
    end_1x1xJ = start_1x1xJ + block_keys

    def touched(start: Array, end: Array) -> Array:
        return (end_1x1xJ > start) & (start_1x1xJ < end)

    def inside(start: Array, end: Array) -> Array:
        return (start_1x1xJ >= start) & (end_1x1xJ <= end)

    seen = touched(low_BxIx1.prompt_start, high_BxIx1.prompt_end) | touched(low_BxIx1.own_start, high_BxIx1.own_end)
    whole = inside(high_BxIx1.prompt_start, low_BxIx1.prompt_end) | inside(high_BxIx1.own_start, low_BxIx1.own_end)
    rank = jnp.where(whole, 0, jnp.where(seen, 1, 2)).astype(jnp.int32)
    rank = rank.swapaxes(1, 2) if by_keys else rank
    others = rank.shape[-1]
    # Rank and index in one number: a sort of one array, whose order is unique.
    order = jnp.sort(rank * others + jnp.arange(others, dtype=jnp.int32)[None, None], axis=-1) % others
    counts = jnp.stack([(rank == 0).sum(-1), (rank < 2).sum(-1)], axis=-1).astype(jnp.int32)
    return BlockOrder(order, counts)
