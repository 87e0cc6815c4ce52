"""Attention of decoding: one new query a completion, to the keys of a cache."""

import jax.numpy as jnp
from jax import Array

from qrpo_jax.devices.dtypes import at_least_float32
from qrpo_jax.model.attention.rules import in_window, soft_cap


def attend_cached(
    q_BxHxK: Array,
    prompt_k_PxGxKxL: Array,
    prompt_v_PxGxKxL: Array,
    prompt_lengths_P: Array,
    k_BxGxKxT: Array,
    v_BxGxKxT: Array,
    filled: Array,
    *,
    scale: float | None = None,
    cap: float | None = None,
    window: Array | int | None = None,
) -> Array:
    """Attention [B, H, K] of each completion's new token: to the prompt, which n = B/P share, and to its past.

    Prompt and completion share one softmax without being joined in memory. Slots are the last axis of keys and values,
    so that the inner loop reads adjacent memory.

    Args:
      q_BxHxK: one query a completion; the n completions of a prompt are adjacent.
      prompt_lengths_P: how many of a prompt's L slots are filled.
      filled: [] how many of a completion's T slots are filled, the new token's included.
      scale, cap, window: as in `Backend`.
    """
    prompts, kv_heads, k_dim, width = prompt_k_PxGxKxL.shape
    batch, heads, _ = q_BxHxK.shape
    repeat, wide = heads // kv_heads, at_least_float32(q_BxHxK.dtype)
    q_BxGxRxK = q_BxHxK.reshape(batch, kv_heads, repeat, k_dim)
    q_PxnxGxRxK = q_BxHxK.reshape(prompts, batch // prompts, kv_heads, repeat, k_dim)
    scale = k_dim**-0.5 if scale is None else scale
    # The n completions of a prompt are rows of one product per kv-head. On a CPU, XLA cannot multiply bfloat16 with
    # float32 sums where the batch axes do not come first.
    q_PxGxnRxK = q_PxnxGxRxK.swapaxes(1, 2).reshape(prompts, kv_heads, -1, k_dim)
    prompt = jnp.einsum("PGMK,PGKL->PGML", q_PxGxnRxK, prompt_k_PxGxKxL, preferred_element_type=wide) * scale
    prompt = prompt.reshape(prompts, kv_heads, -1, repeat, width).swapaxes(1, 2)
    completion = jnp.einsum("BGRK,BGKT->BGRT", q_BxGxRxK, k_BxGxKxT, preferred_element_type=wide) * scale
    prompt, completion = soft_cap(prompt, cap), soft_cap(completion, cap)
    in_prompt_PxL = jnp.arange(width)[None] < prompt_lengths_P[:, None]
    in_completion_T = jnp.arange(completion.shape[-1]) < filled
    if window is not None:
        # The query is at position prompt length + filled - 1; slot t of its completion at prompt length + t.
        in_prompt_PxL &= in_window(prompt_lengths_P[:, None] + filled - 1, jnp.arange(width)[None], window)
        in_completion_T &= in_window(filled - 1, jnp.arange(completion.shape[-1]), window)
    prompt = jnp.where(in_prompt_PxL[:, None, None, None, :], prompt, -jnp.inf)
    completion = jnp.where(in_completion_T[None, None, None], completion, -jnp.inf)
    high = jnp.maximum(prompt.max(-1).reshape(completion.shape[:-1]), completion.max(-1))[..., None]
    prompt = jnp.exp(prompt - high.reshape(*prompt.shape[:-1], 1))
    completion = jnp.exp(completion - high)
    total = prompt.sum(-1, keepdims=True).reshape(high.shape) + completion.sum(-1, keepdims=True)
    dtype = prompt_v_PxGxKxL.dtype
    mixed = jnp.einsum("PnGRL,PGKL->PnGRK", prompt.astype(dtype), prompt_v_PxGxKxL, preferred_element_type=wide)
    mixed = mixed.reshape(q_BxGxRxK.shape)
    mixed += jnp.einsum("BGRT,BGKT->BGRK", completion.astype(dtype), v_BxGxKxT, preferred_element_type=wide)
    return (mixed / total).astype(q_BxHxK.dtype).reshape(batch, heads, k_dim)
