"""Attention between tokens that know which segment they belong to and where they stand in it."""

import jax
import jax.numpy as jnp
from jax import Array


def visible(segments_BxL: Array, positions_BxL: Array, window: Array | int | None = None) -> Array:
    """Which keys (last axis) each query may see, bool [B, L, L].

    One rule serves packed and padded rows: same segment, not later than the query, not padding (segment 0), and
    with a window only the last `window` tokens, the query's own included. Packing therefore cannot leak between
    completions.
    """
    same = segments_BxL[:, :, None] == segments_BxL[:, None, :]
    past = positions_BxL[:, :, None] >= positions_BxL[:, None, :]
    seen = same & past & (segments_BxL > 0)[:, None, :]
    if window is None:
        return seen
    return seen & (positions_BxL[:, :, None] - positions_BxL[:, None, :] < window)


def soft_cap(x: Array, cap: float | None) -> Array:
    """x squeezed into (-cap, cap) by a tanh (Gemma 2); x itself without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
    q_BxLxHxK: Array,
    k_BxLxGxK: Array,
    v_BxLxGxK: Array,
    mask_BxLxL: Array,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> Array:
    """Softmax attention with grouped key-value heads, [B, L, H, K]; the softmax is float32.

    A query that may see nothing (padding) gets a uniform mean, which nothing downstream reads.

    Args:
      scale: what scores are multiplied with (default: K^-1/2).
      cap: soft cap of the scaled scores.
    """
    if cap is None:
        return jax.nn.dot_product_attention(
            q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, mask=mask_BxLxL[:, None, :, :], scale=scale, implementation="xla"
        )
    batch, length, heads, k_dim = q_BxLxHxK.shape
    kv_heads, f32 = k_BxLxGxK.shape[2], jnp.float32
    q_BxLxGxRxK = q_BxLxHxK.reshape(batch, length, kv_heads, heads // kv_heads, k_dim)
    scores = jnp.einsum("BLGRK,BMGK->BGRLM", q_BxLxGxRxK, k_BxLxGxK, preferred_element_type=f32)
    scores = soft_cap(scores * (k_dim**-0.5 if scale is None else scale), cap)
    scores = jnp.where(mask_BxLxL[:, None, None], scores, jnp.finfo(f32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BxLxGxK.dtype)
    mixed = jnp.einsum("BGRLM,BMGK->BLGRK", weights, v_BxLxGxK)
    return mixed.reshape(q_BxLxHxK.shape).astype(q_BxLxHxK.dtype)


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
    """Attention [B, H, K] of one new token a completion: over its prompt, shared by n = B/P, and its own past.

    The two parts share one softmax without being joined in memory. Slots are the last axis of keys and values,
    so that a processor runs along them.

    Args:
      q_BxHxK: one query a completion; the n completions of a prompt stand next to each other.
      prompt_lengths_P: how many of the L prompt slots count.
      filled: [] how many of the T own slots count, this token included.
      scale, cap: as in `attend`.
      window: the token sees only the last `window` tokens, its own included.
    """
    prompts, kv_heads, k_dim, width = prompt_k_PxGxKxL.shape
    batch, heads, _ = q_BxHxK.shape
    repeat, f32 = heads // kv_heads, jnp.float32
    q_BxGxRxK = q_BxHxK.reshape(batch, kv_heads, repeat, k_dim)
    q_PxnxGxRxK = q_BxHxK.reshape(prompts, batch // prompts, kv_heads, repeat, k_dim)
    scale = k_dim**-0.5 if scale is None else scale
    past = jnp.einsum("PnGRK,PGKL->PnGRL", q_PxnxGxRxK, prompt_k_PxGxKxL, preferred_element_type=f32) * scale
    own = jnp.einsum("BGRK,BGKT->BGRT", q_BxGxRxK, k_BxGxKxT, preferred_element_type=f32) * scale
    past, own = soft_cap(past, cap), soft_cap(own, cap)
    in_prompt_PxL = jnp.arange(width)[None] < prompt_lengths_P[:, None]
    in_own_T = jnp.arange(own.shape[-1]) < filled
    if window is not None:
        # The token stands at prompt length + filled - 1; own slot t at prompt length + t.
        in_prompt_PxL &= jnp.arange(width)[None] > (prompt_lengths_P[:, None] + filled - 1) - window
        in_own_T &= jnp.arange(own.shape[-1]) > filled - 1 - window
    past = jnp.where(in_prompt_PxL[:, None, None, None, :], past, -jnp.inf)
    own = jnp.where(in_own_T[None, None, None], own, -jnp.inf)
    high = jnp.maximum(past.max(-1).reshape(own.shape[:-1]), own.max(-1))[..., None]
    past = jnp.exp(past - high.reshape(*past.shape[:-1], 1))
    own = jnp.exp(own - high)
    total = past.sum(-1, keepdims=True).reshape(high.shape) + own.sum(-1, keepdims=True)
    dtype = prompt_v_PxGxKxL.dtype
    mixed = jnp.einsum("PnGRL,PGKL->PnGRK", past.astype(dtype), prompt_v_PxGxKxL, preferred_element_type=f32)
    mixed = mixed.reshape(q_BxGxRxK.shape)
    mixed += jnp.einsum("BGRT,BGKT->BGRK", own.astype(dtype), v_BxGxKxT, preferred_element_type=f32)
    return (mixed / total).astype(q_BxHxK.dtype).reshape(batch, heads, k_dim)


def rotate(x_BxLxHxK: Array, positions_BxL: Array, inverse_frequencies: Array, scale: float = 1.0) -> Array:
    """Rotary position embedding in the half-split layout of Hugging Face checkpoints (Su et al. 2021).

    Args:
      inverse_frequencies: [R/2], the first R of the K dimensions are rotated and the others left as they are.
      scale: what the rotated dimensions are multiplied with.
    """
    angles = positions_BxL[..., None].astype(jnp.float32) * inverse_frequencies[None, None]
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    if scale != 1.0:
        cos, sin = cos * scale, sin * scale
    turned = 2 * inverse_frequencies.shape[-1]
    first, second = jnp.split(x_BxLxHxK[..., :turned].astype(jnp.float32), 2, axis=-1)
    parts = [first * cos - second * sin, second * cos + first * sin]
    if turned < x_BxLxHxK.shape[-1]:
        parts.append(x_BxLxHxK[..., turned:].astype(jnp.float32))
    return jnp.concatenate(parts, axis=-1).astype(x_BxLxHxK.dtype)
