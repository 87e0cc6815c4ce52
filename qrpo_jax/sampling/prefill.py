"""Prefill: prompts pass through the decoder once, in parts that a device can hold.

Short prompts are read several at a time. A prompt with more tokens than a part is read alone, piece by piece: each
piece sees the keys and values of those before it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from qrpo_jax.model.cache import empty_row, with_tokens
from qrpo_jax.model.compute import Compute
from qrpo_jax.model.decoder import Decoder, Past
from qrpo_jax.model.layout import one_sequence


class Prompts(NamedTuple):
    """P prompts on each of D devices, after their pass through the decoder."""

    k: Any  # [N, D, P, ...], as the cache has them
    v: Any
    lengths_DxP: Any
    logits_DxPxV: Any  # of the first token of a completion


PROMPT_AXES = Prompts(2, 2, 1, 1)


def read_prompts(decoder: Decoder, tokens_PxL: Array, lengths_P: Array, at_once: int, compute: Compute) -> Prompts:
    """All prompts, padded on the right; what a layer computes of all of them need not be there at once.

    Args:
      at_once: places of prompts that each device reads at a time; 0: all.
    """
    devices = compute.row_parts
    tokens_DxPxL, lengths_DxP = (x.reshape(devices, -1, *x.shape[1:]) for x in (tokens_PxL, lengths_P))
    count, width = tokens_DxPxL.shape[1:]
    parts = min(count, -(-count * width // at_once)) if at_once else 1
    size = -(-count // parts)
    read = functools.partial(_read_part, decoder, at_once=at_once, compute=compute)
    if size == count:
        return read(tokens_DxPxL, lengths_DxP)

    def some(start: Array) -> Prompts:
        return read(*(jax.lax.dynamic_slice_in_dim(x, start, size, 1) for x in (tokens_DxPxL, lengths_DxP)))

    def with_more(part: Array, prompts: Prompts) -> Prompts:
        start = jnp.minimum(part * size, count - size)  # the last part may read some once more
        update = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start)
        return jax.tree.map(lambda x, found, axis: update(x, found, axis=axis), prompts, some(start), PROMPT_AXES)

    def room(found: jax.ShapeDtypeStruct, axis: int) -> Array:
        shape = (*found.shape[:axis], count, *found.shape[axis + 1 :])
        return jnp.zeros(shape, found.dtype)

    empty = jax.tree.map(room, jax.eval_shape(some, jnp.int32(0)), PROMPT_AXES)
    return jax.lax.fori_loop(0, parts, with_more, empty)


def _read_part(decoder: Decoder, tokens_DxPxL: Array, lengths_DxP: Array, *, at_once: int, compute: Compute) -> Prompts:
    tokens_PxL, lengths_P = tokens_DxPxL.reshape(-1, tokens_DxPxL.shape[-1]), lengths_DxP.reshape(-1)
    pieces = 1 if at_once == 0 else -(-tokens_PxL.shape[1] // at_once)
    kept, last_PxD = (
        _read_whole(decoder, tokens_PxL, lengths_P, compute)
        if pieces == 1
        else _read_pieces(decoder, tokens_PxL, lengths_P, pieces, compute)
    )
    k, v = (x.reshape(x.shape[0], len(lengths_DxP), -1, *x.shape[2:]) for x in kept)
    logits_PxV = decoder.logits(last_PxD)
    return Prompts(k, v, lengths_DxP, logits_PxV.reshape(*lengths_DxP.shape, logits_PxV.shape[-1]))


def _read_whole(decoder: Decoder, tokens_PxL: Array, lengths_P: Array, compute: Compute) -> tuple[Any, Array]:
    """Keys and values of all layers, and hidden states of last tokens."""
    positions_PxL = jnp.broadcast_to(jnp.arange(tokens_PxL.shape[1]), tokens_PxL.shape)
    layout = one_sequence(lengths_P, positions_PxL)
    hidden_PxLxD, kept = decoder(tokens_PxL, layout, compute=compute, keep_keys=True)
    return kept, jnp.take_along_axis(hidden_PxLxD, (lengths_P - 1)[:, None, None], axis=1)[:, 0]


def _read_pieces(
    decoder: Decoder, tokens_PxL: Array, lengths_P: Array, pieces: int, compute: Compute
) -> tuple[Any, Array]:
    """As `_read_whole`; pieces behind the end of the longest prompt are left out."""
    (count, width), order = tokens_PxL.shape, compute.cache_order
    size = -(-width // pieces)
    positions_PxL = jnp.broadcast_to(jnp.arange(width), tokens_PxL.shape)
    layout = one_sequence(lengths_P, positions_PxL)

    def with_piece(piece: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        (k, v), last_PxD = carry
        start = jnp.minimum(piece * size, width - size)  # the last piece may read some tokens once more
        tokens_PxS = jax.lax.dynamic_slice_in_dim(tokens_PxL, start, size, 1)
        hidden_PxSxD, found = decoder(tokens_PxS, layout, compute=compute, keep_keys=True, past=Past(k, v, start))
        kept = tuple(with_tokens(x, more, start, order) for x, more in zip((k, v), found, strict=True))
        at_P = lengths_P - 1 - start
        there_PxD = jnp.take_along_axis(hidden_PxSxD, jnp.clip(at_P, 0, size - 1)[:, None, None], axis=1)[:, 0]
        return kept, jnp.where(((at_P >= 0) & (at_P < size))[:, None], there_PxD, last_PxD)

    row = empty_row(decoder.settings, count, width, compute.dtype, order)
    last_PxD = jnp.zeros((count, decoder.settings.d_model), compute.dtype)
    needed = -(-jnp.max(lengths_P) // size)
    return jax.lax.fori_loop(0, needed, with_piece, ((row, row), last_PxD))
