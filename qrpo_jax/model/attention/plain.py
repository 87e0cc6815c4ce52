"""The plain formula: softmax over a score matrix [B, H, L, M] that exists in memory. It runs on every device."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from qrpo_jax.devices.dtypes import at_least_float32
from qrpo_jax.model.attention.rules import soft_cap, visible
from qrpo_jax.model.layout import Layout


def attend(
    q_BxLxHxK: Array,
    k_BxMxGxK: Array,
    v_BxMxGxK: Array,
    queries: Layout,
    keys: Layout,
    start: Array | int,
    window: Array | int | None,
    *,
    scale: float | None,
    cap: float | None,
) -> Array:
    """Attention [B, L, H, K] as `Backend` defines it; a query that sees no key returns the mean of all values.

    `jax.nn.dot_product_attention` is not used: it has no soft cap, and rounds the softmax of float64 to float32.
    """
    batch, length, heads, k_dim = q_BxLxHxK.shape
    kv_heads, wide = k_BxMxGxK.shape[2], at_least_float32(q_BxLxHxK.dtype)
    q_BxLxGxRxK = q_BxLxHxK.reshape(batch, length, kv_heads, heads // kv_heads, k_dim)
    scores = jnp.einsum("BLGRK,BMGK->BGRLM", q_BxLxGxRxK, k_BxMxGxK, preferred_element_type=wide)
    scores = soft_cap(scores * (k_dim**-0.5 if scale is None else scale), cap)
    scores = jnp.where(visible(queries, keys, window)[:, None, None], scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BxMxGxK.dtype)
    mixed = jnp.einsum("BGRLM,BMGK->BLGRK", weights, v_BxMxGxK)
    return checkpoint_name(mixed.reshape(q_BxLxHxK.shape).astype(q_BxLxHxK.dtype), "attention")
