"""The cache of decoding: keys and values that are already computed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint

RING_BLOCK = 128  # places of the ring that attention reads at a time


class Cache(NamedTuple):
    """Keys and values of Q prompts, and of B = Q·m completions that are being decoded, in all N layers.

    The m completions of a prompt share its keys and values. Their own are in a ring of R places: all completions write
    their token of one step to the same place, so that a completion which begins when another has ended needs no room
    and no shift. A completion's tokens are those of its last `ages_B` places.

    Attributes:
      prompt_k, prompt_v: [N, Q, G, L, K] or, where slots are last, [N, Q, G, K, L].
      ring_k, ring_v: [N, B, G, R, K] or [N, B, G, K, R].
      ages_B: int32, tokens of each completion in the ring.
      step: [] int32, steps so far; the next token goes to place step mod R.
    """

    prompt_k: Array
    prompt_v: Array
    prompt_lengths_Q: Array
    ring_k: Array
    ring_v: Array
    ages_B: Array
    step: Array


def ring_places(max_new_tokens: int) -> int:
    """R, for completions of up to T = `max_new_tokens`: one block, or whole blocks and one more.

    The block that is written to holds the newest tokens at its front and the oldest behind; with one block to spare the
    oldest ones are no longer needed.
    """
    if max_new_tokens <= RING_BLOCK:
        return max_new_tokens
    return (-(-max_new_tokens // RING_BLOCK) + 1) * RING_BLOCK


def start_cache(
    prompt_k: Array, prompt_v: Array, prompt_lengths_Q: Array, completions: int, max_new_tokens: int, slots_last: bool
) -> Cache:
    """The cache of prompts with m = `completions` empty completions each."""
    layers, prompts, kv_heads, *rest = prompt_k.shape
    head_dim, places = rest[0 if slots_last else 1], ring_places(max_new_tokens)
    shape = (layers, prompts * completions, kv_heads, *((head_dim, places) if slots_last else (places, head_dim)))
    empty = jnp.zeros(shape, prompt_k.dtype)
    ages_B, step = jnp.zeros(prompts * completions, jnp.int32), jnp.zeros((), jnp.int32)
    return Cache(prompt_k, prompt_v, prompt_lengths_Q, empty, empty, ages_B, step)


def extended(cache: Cache, k_NxBxGxK: Array, v_NxBxGxK: Array, slots_last: bool) -> Cache:
    """The cache with one more token of every completion, written in place where the cache is the carry of a loop."""
    axis = 4 if slots_last else 3
    place = cache.step % cache.ring_k.shape[axis]

    def written(ring: Array, x_NxBxGxK: Array) -> Array:
        token = jnp.expand_dims(x_NxBxGxK.astype(ring.dtype), axis)
        return in_order(jax.lax.dynamic_update_slice_in_dim(ring, token, place, axis))

    return cache._replace(
        ring_k=written(cache.ring_k, k_NxBxGxK),
        ring_v=written(cache.ring_v, v_NxBxGxK),
        ages_B=cache.ages_B + 1,
        step=cache.step + 1,
    )


def in_order(x: Array) -> Array:
    """x with its axes in memory in the order of its shape.

    The compiler for TPUs would store a cache so that a part of it is replaced fastest, and copy all of it to read it.
    """
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def stored(x_BxLxGxK: Array, slots_last: bool) -> Array:
    """Keys or values of prompts as the cache has them."""
    return x_BxLxGxK.transpose(0, 2, 3, 1) if slots_last else x_BxLxGxK.transpose(0, 2, 1, 3)
