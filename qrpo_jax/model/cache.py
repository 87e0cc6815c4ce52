"""The cache of decoding: keys and values that are already computed."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Cache(NamedTuple):
    """Keys and values of P prompts, and of B = P·n completions of up to T tokens, in all N layers.

    The n completions of a prompt share its keys and values, so the prompt's part does not grow with n.
    """

    prompt_k_NxPxGxKxL: Array
    prompt_v_NxPxGxKxL: Array
    prompt_lengths_P: Array
    k_NxBxGxKxT: Array
    v_NxBxGxKxT: Array
    step: Array  # [] tokens of each completion already in the cache


def start_cache(
    prompt_k_NxPxGxKxL: Array, prompt_v_NxPxGxKxL: Array, prompt_lengths_P: Array, completions: int, max_new_tokens: int
) -> Cache:
    """The cache of prompts with n = `completions` empty completions each."""
    layers, prompts, kv_heads, head_dim, _ = prompt_k_NxPxGxKxL.shape
    shape = (layers, prompts * completions, kv_heads, head_dim, max_new_tokens)
    empty = jnp.zeros(shape, prompt_k_NxPxGxKxL.dtype)
    return Cache(prompt_k_NxPxGxKxL, prompt_v_NxPxGxKxL, prompt_lengths_P, empty, empty, jnp.zeros((), jnp.int32))


def slots_last(x_BxLxGxK: Array) -> Array:
    """Keys or values in the cache's layout [B, G, K, L]."""
    return x_BxLxGxK.transpose(0, 2, 3, 1)
