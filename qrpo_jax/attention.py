"""Attention between tokens that know which segment they belong to and where they stand in it."""

import jax
import jax.numpy as jnp
from jax import Array


def visible(segments_BxL: Array, positions_BxL: Array) -> Array:
    """Which keys (last axis) each query may see, bool [B, L, L].

    One rule serves packed and padded rows: same segment, not later than the query, not padding (segment 0).
    Packing therefore cannot leak between completions.
    """
    same = segments_BxL[:, :, None] == segments_BxL[:, None, :]
    past = positions_BxL[:, :, None] >= positions_BxL[:, None, :]
    return same & past & (segments_BxL > 0)[:, None, :]


def attend(q_BxLxHxK: Array, k_BxLxGxK: Array, v_BxLxGxK: Array, mask_BxLxL: Array) -> Array:
    """Softmax attention with grouped key-value heads, [B, L, H, K]; the softmax is float32.

    A query that may see nothing (padding) gets a uniform mean, which nothing downstream reads.
    """
    return jax.nn.dot_product_attention(
        q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, mask=mask_BxLxL[:, None, :, :], implementation="xla"
    )


def attend_cached(
    q_BxHxK: Array,
    prompt_k_PxGxKxL: Array,
    prompt_v_PxGxKxL: Array,
    prompt_lengths_P: Array,
    k_BxGxKxT: Array,
    v_BxGxKxT: Array,
    filled: Array,
) -> Array:
    """Attention [B, H, K] of one new token a completion: over its prompt, shared by n = B/P, and its own past.

    The two parts share one softmax without being joined in memory. Slots are the last axis of keys and values,
    so that a processor runs along them.

    Args:
      q_BxHxK: one query a completion; the n completions of a prompt stand next to each other.
      prompt_lengths_P: how many of the L prompt slots count.
      filled: [] how many of the T own slots count, this token included.
    """
    prompts, kv_heads, k_dim, width = prompt_k_PxGxKxL.shape
    batch, heads, _ = q_BxHxK.shape
    repeat, f32 = heads // kv_heads, jnp.float32
    q_BxGxRxK = q_BxHxK.reshape(batch, kv_heads, repeat, k_dim)
    q_PxnxGxRxK = q_BxHxK.reshape(prompts, batch // prompts, kv_heads, repeat, k_dim)
    past = jnp.einsum("PnGRK,PGKL->PnGRL", q_PxnxGxRxK, prompt_k_PxGxKxL, preferred_element_type=f32) * k_dim**-0.5
    own = jnp.einsum("BGRK,BGKT->BGRT", q_BxGxRxK, k_BxGxKxT, preferred_element_type=f32) * k_dim**-0.5
    in_prompt_PxL = jnp.arange(width) < prompt_lengths_P[:, None]
    past = jnp.where(in_prompt_PxL[:, None, None, None, :], past, -jnp.inf)
    own = jnp.where(jnp.arange(own.shape[-1]) < filled, own, -jnp.inf)
    high = jnp.maximum(past.max(-1).reshape(own.shape[:-1]), own.max(-1))[..., None]
    past = jnp.exp(past - high.reshape(*past.shape[:-1], 1))
    own = jnp.exp(own - high)
    total = past.sum(-1, keepdims=True).reshape(high.shape) + own.sum(-1, keepdims=True)
    dtype = prompt_v_PxGxKxL.dtype
    mixed = jnp.einsum("PnGRL,PGKL->PnGRK", past.astype(dtype), prompt_v_PxGxKxL, preferred_element_type=f32)
    mixed = mixed.reshape(q_BxGxRxK.shape)
    mixed += jnp.einsum("BGRT,BGKT->BGRK", own.astype(dtype), v_BxGxKxT, preferred_element_type=f32)
    return (mixed / total).astype(q_BxHxK.dtype).reshape(batch, heads, k_dim)


def rotate(x_BxLxHxK: Array, positions_BxL: Array, inverse_frequencies: Array) -> Array:
    """Rotary position embedding in the half-split layout of Hugging Face checkpoints (Su et al. 2021)."""
    angles = positions_BxL[..., None].astype(jnp.float32) * inverse_frequencies
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    first, second = jnp.split(x_BxLxHxK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxLxHxK.dtype)
