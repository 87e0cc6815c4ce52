"""The cache of decoding: keys and values that are already computed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint

from qrpo_jax.model.settings import DecoderSettings

RING_BLOCK = 128  # places of the ring that attention reads at a time


class Order(NamedTuple):
    """How keys and values of a cache lie in memory.

    Attributes:
      slots_last: the axis of tokens is the last one, behind that of the head dimension.
      pinned: the compiler is told to keep the order of the axes. The one for TPUs would store a cache so that a part of
        it is replaced fastest, and copy all of it to read it. That for CPUs keeps it anyway, and would gather what is
        split over devices to obey; those for GPUs are not told either.
    """

    slots_last: bool
    pinned: bool


class Ring(NamedTuple):
    """Keys and values of B completions in M layers, in a ring of R places.

    All completions write their token of one step to the same place, so that a completion which begins when another has
    ended needs no room and no shift. Its tokens are those of as many last places as it is old.

    Attributes:
      k, v: [M, B, G, R, K] or, where slots are last, [M, B, G, K, R].
    """

    k: Array
    v: Array


class Cache(NamedTuple):
    """Keys and values of Q prompts, and of B = Q·m completions that are being decoded, in all N layers.

    The m completions of a prompt share its keys and values. Layers with a sliding window have a ring of their own, with
    no more places than the window needs.

    Attributes:
      prompt_k, prompt_v: [N, Q, G, L, K] or, where slots are last, [N, Q, G, K, L].
      rings: of the layers without a window, and of those with one; None where there are no such layers.
      ages_B: int32, tokens of each completion so far.
      step: [] int32, steps so far; the next token goes to place step mod R.
    """

    prompt_k: Array
    prompt_v: Array
    prompt_lengths_Q: Array
    rings: tuple[Ring | None, Ring | None]
    ages_B: Array
    step: Array


def ring_places(tokens: int) -> int:
    """R, for so many tokens of each completion: one block, or whole blocks and one more.

    The block that is written to holds the newest tokens at its front and the oldest behind; with one block to spare the
    oldest ones are no longer needed.
    """
    if tokens <= RING_BLOCK:
        return tokens
    return (-(-tokens // RING_BLOCK) + 1) * RING_BLOCK


def window_places(window: int | None, max_new_tokens: int) -> int:
    """R of the layers with a window: for the window, if that is shorter than completions may be."""
    return ring_places(max_new_tokens if window is None else min(window, max_new_tokens))


def start_cache(
    prompt_k: Array,
    prompt_v: Array,
    prompt_lengths_Q: Array,
    completions: int,
    max_new_tokens: int,
    settings: DecoderSettings,
    order: Order,
) -> Cache:
    """The cache of prompts with m = `completions` empty completions each."""
    _, prompts, kv_heads, *rest = prompt_k.shape
    head_dim, batch = rest[0 if order.slots_last else 1], prompts * completions

    def ring(layers: int, places: int) -> Ring | None:
        shape = (layers, batch, kv_heads, *((head_dim, places) if order.slots_last else (places, head_dim)))
        return Ring(*[jnp.zeros(shape, prompt_k.dtype)] * 2) if layers else None

    narrow = sum(settings.slides)
    rings = (
        ring(settings.layers - narrow, ring_places(max_new_tokens)),
        ring(narrow, window_places(settings.sliding_window, max_new_tokens)),
    )
    ages_B, step = jnp.zeros(batch, jnp.int32), jnp.zeros((), jnp.int32)
    return Cache(prompt_k, prompt_v, prompt_lengths_Q, rings, ages_B, step)


def ring_layers(settings: DecoderSettings) -> np.ndarray:
    """The place of each layer among those of its ring, int32 [N]."""
    slides_N = np.asarray(settings.slides)
    return np.where(slides_N, np.cumsum(slides_N), np.cumsum(~slides_N)).astype(np.int32) - 1


def extended(cache: Cache, k_NxBxGxK: Array, v_NxBxGxK: Array, settings: DecoderSettings, order: Order) -> Cache:
    """The cache with one more token of every completion, written in place where the cache is the carry of a loop."""
    axis = 4 if order.slots_last else 3

    def written(x: Array, token_MxBxGxK: Array) -> Array:
        token = jnp.expand_dims(token_MxBxGxK.astype(x.dtype), axis)
        return pinned(jax.lax.dynamic_update_slice_in_dim(x, token, cache.step % x.shape[axis], axis), order)

    slides_N = np.asarray(settings.slides)
    wide, narrow = (
        None if ring is None else Ring(written(ring.k, k_NxBxGxK[layers]), written(ring.v, v_NxBxGxK[layers]))
        for ring, layers in zip(cache.rings, (np.flatnonzero(~slides_N), np.flatnonzero(slides_N)), strict=True)
    )
    return cache._replace(rings=(wide, narrow), ages_B=cache.ages_B + 1, step=cache.step + 1)


def pinned(x: Array, order: Order) -> Array:
    """x, which is a part of a cache that was written to."""
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim)))) if order.pinned else x


def stored(x_BxLxGxK: Array, order: Order) -> Array:
    """Keys or values of prompts as the cache has them."""
    return x_BxLxGxK.transpose(0, 2, 3, 1) if order.slots_last else x_BxLxGxK.transpose(0, 2, 1, 3)


def as_rows(x: Array, order: Order) -> Array:
    """Keys or values [B, L, G, K] of what `stored` made of them."""
    return x.transpose(0, 3, 1, 2) if order.slots_last else x.transpose(0, 2, 1, 3)


def empty_row(settings: DecoderSettings, prompts: int, width: int, dtype: Any, order: Order) -> Array:
    """Room for the keys or values of `prompts` prompts of `width` tokens in all layers, as the cache has them."""
    places = (settings.head_dim, width) if order.slots_last else (width, settings.head_dim)
    return jnp.zeros((settings.layers, prompts, settings.kv_heads, *places), dtype)


def with_tokens(x: Array, tokens: Array, start: Array, order: Order) -> Array:
    """Keys or values of prompts with those of some tokens from place `start` on; both as the cache has them."""
    axis = x.ndim - (1 if order.slots_last else 2)
    return pinned(jax.lax.dynamic_update_slice_in_dim(x, tokens.astype(x.dtype), start, axis), order)
