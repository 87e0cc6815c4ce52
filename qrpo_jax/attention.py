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
    prompt_k_PxGxLxK: Array,
    prompt_v_PxGxLxK: Array,
    prompt_lengths_P: Array,
    k_BxGxTxK: Array,
    v_BxGxTxK: Array,
    filled: Array,
) -> Array:
    """Attention [B, H, K] of one new token a completion: over its prompt, shared by n = B/P, and its own past.

    Args:
      q_BxHxK: one query a completion; the n completions of a prompt stand next to each other.
      prompt_lengths_P: how many of the L prompt slots count.
      filled: [] how many of the T own slots count, this token included.
    """
    prompts, kv_heads, width, k_dim = prompt_k_PxGxLxK.shape
    batch, heads, _ = q_BxHxK.shape
    grouped_BxGxRxK = q_BxHxK.reshape(batch, kv_heads, heads // kv_heads, k_dim)
    grouped_PxnxGxRxK = grouped_BxGxRxK.reshape(prompts, batch // prompts, *grouped_BxGxRxK.shape[1:])
    f32 = jnp.float32
    past = jnp.einsum("PnGRK,PGLK->PnGRL", grouped_PxnxGxRxK, prompt_k_PxGxLxK, preferred_element_type=f32)
    own = jnp.einsum("BGRK,BGTK->BGRT", grouped_BxGxRxK, k_BxGxTxK, preferred_element_type=f32)
    in_prompt_PxL = jnp.arange(width) < prompt_lengths_P[:, None]
    past = jnp.where(in_prompt_PxL[:, None, None, None, :], past, -jnp.inf)
    own = jnp.where(jnp.arange(own.shape[-1]) < filled, own, -jnp.inf)
    scores = jnp.concatenate([past.reshape(*own.shape[:-1], width), own], axis=-1)
    weights = jax.nn.softmax(scores * k_dim**-0.5, axis=-1).astype(q_BxHxK.dtype)
    of_past, of_own = weights[..., :width], weights[..., width:]
    of_past = of_past.reshape(grouped_PxnxGxRxK.shape[:-1] + (width,))
    mixed = jnp.einsum("PnGRL,PGLK->PnGRK", of_past, prompt_v_PxGxLxK).reshape(grouped_BxGxRxK.shape)
    mixed = mixed + jnp.einsum("BGRT,BGTK->BGRK", of_own, v_BxGxTxK)
    return mixed.reshape(batch, heads, k_dim)


def rotate(x_BxLxHxK: Array, positions_BxL: Array, inverse_frequencies: Array) -> Array:
    """Rotary position embedding in the half-split layout of Hugging Face checkpoints (Su et al. 2021)."""
    angles = positions_BxL[..., None].astype(jnp.float32) * inverse_frequencies
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    first, second = jnp.split(x_BxLxHxK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxLxHxK.dtype)
