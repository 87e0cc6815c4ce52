"""The cache of decoding: keys and values that are already computed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

RING_BLOCK = 128  # places of the ring that attention reads at a time


class Cache(NamedTuple):
    """Keys and values of Q prompts, and of B = Q·m completions that are being decoded, in all N layers.

    The m completions of a prompt share its keys and values. Their own are in a ring of R places: all completions write
    their token of one step to the same place, so that a completion which begins when another has ended needs no room
    and no shift. A completion's tokens are those of its last `ages_B` places.
    """

    prompt_k_NxQxGxKxL: Array
    prompt_v_NxQxGxKxL: Array
    prompt_lengths_Q: Array
    k_NxBxGxKxR: Array
    v_NxBxGxKxR: Array
    ages_B: Array  # int32, tokens of each completion in the ring
    step: Array  # [] int32, steps so far; the next token goes to place step mod R


def ring_places(max_new_tokens: int) -> int:
    """R, for completions of up to T = `max_new_tokens`: one block, or whole blocks and one more.

    The block that is written to holds the newest tokens at its front and the oldest behind; with one block to spare the
    oldest ones are no longer needed.
    """
    if max_new_tokens <= RING_BLOCK:
        return max_new_tokens
    return (-(-max_new_tokens // RING_BLOCK) + 1) * RING_BLOCK


def start_cache(
    prompt_k_NxQxGxKxL: Array, prompt_v_NxQxGxKxL: Array, prompt_lengths_Q: Array, completions: int, max_new_tokens: int
) -> Cache:
    """The cache of prompts with m = `completions` empty completions each."""
    layers, prompts, kv_heads, head_dim, _ = prompt_k_NxQxGxKxL.shape
    shape = (layers, prompts * completions, kv_heads, head_dim, ring_places(max_new_tokens))
    empty = jnp.zeros(shape, prompt_k_NxQxGxKxL.dtype)
    ages_B, step = jnp.zeros(prompts * completions, jnp.int32), jnp.zeros((), jnp.int32)
    return Cache(prompt_k_NxQxGxKxL, prompt_v_NxQxGxKxL, prompt_lengths_Q, empty, empty, ages_B, step)


def extended(cache: Cache, k_NxBxGxKx1: Array, v_NxBxGxKx1: Array) -> Cache:
    """The cache with one more token of every completion, written in place where the cache is the carry of a loop."""
    at = (0, 0, 0, 0, cache.step % cache.k_NxBxGxKxR.shape[-1])
    dtype = cache.k_NxBxGxKxR.dtype
    return cache._replace(
        k_NxBxGxKxR=jax.lax.dynamic_update_slice(cache.k_NxBxGxKxR, k_NxBxGxKx1.astype(dtype), at),
        v_NxBxGxKxR=jax.lax.dynamic_update_slice(cache.v_NxBxGxKxR, v_NxBxGxKx1.astype(dtype), at),
        ages_B=cache.ages_B + 1,
        step=cache.step + 1,
    )


def slots_last(x_BxLxGxK: Array) -> Array:
    """Keys or values in the cache's layout [B, G, K, L]."""
    return x_BxLxGxK.transpose(0, 2, 3, 1)
