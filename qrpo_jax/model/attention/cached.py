"""Attention of decoding: one new query a completion, to the keys of a cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from qrpo_jax.devices.dtypes import at_least_float32
from qrpo_jax.model.attention.rules import soft_cap
from qrpo_jax.model.cache import RING_BLOCK, Cache, Ring

FAR = 1 << 30  # a window that hides nothing


class Sums(NamedTuple):
    """A softmax that grows block by block, of queries [B, G, R]."""

    high: Array  # [B, G, R] the largest score so far
    total: Array  # [B, G, R] the sum of exponentials
    mixed: Array  # [B, G, R, K] the weighted values


def block_count(cache: Cache, window: int | None = None) -> Array:
    """[] blocks of a ring that hold tokens of some completion, which layers with a window see."""
    oldest = cache.ages_B.max() if window is None else jnp.minimum(cache.ages_B.max(), window)
    behind = (cache.step - 1) % RING_BLOCK + 1  # tokens in the block that was written to last
    return (oldest > 0) + (jnp.maximum(oldest - behind, 0) + RING_BLOCK - 1) // RING_BLOCK


def attend_cached(
    q_BxHxK: Array,
    k_BxGxK: Array,
    v_BxGxK: Array,
    cache: Cache,
    ring: Ring,
    layer: Array,
    prompt_k: Array,
    prompt_v: Array,
    blocks: Array,
    *,
    slots_last: bool,
    scale: float | None = None,
    cap: float | None = None,
    window: Array | int | None = None,
) -> Array:
    """Attention [B, H, K] of each completion's new token: to the prompt, which m = B/Q share, and to its past.

    Prompt and completion share one softmax without being joined in memory.

    Args:
      q_BxHxK: one query a completion; the m completions of a prompt are adjacent.
      k_BxGxK, v_BxGxK: of the new tokens, which are not in the cache yet. What only reads the cache copies none of it.
      ring: of `cache`, for the layer.
      layer: [] among those of the ring.
      prompt_k, prompt_v: of the prompts in this layer, as `Cache` has them.
      blocks: of `block_count`.
      slots_last: the order of the axes of all keys and values.
      scale, cap, window: as in `Backend`.
    """
    batch, heads, k_dim = q_BxHxK.shape
    prompts, kv_heads = prompt_k.shape[:2]
    axis, keys = (3, "BGKL") if slots_last else (2, "BGLK")  # of the slots
    width, places, wide = prompt_k.shape[axis], ring.k.shape[axis + 1], at_least_float32(q_BxHxK.dtype)
    repeat, group, block = heads // kv_heads, batch // prompts, min(RING_BLOCK, places)
    scale = k_dim**-0.5 if scale is None else scale
    far = FAR if window is None else window
    q_BxGxRxK = q_BxHxK.reshape(batch, kv_heads, repeat, k_dim)
    ages_Bx1 = cache.ages_B[:, None]

    def scores(q: Array, k: Array) -> Array:
        return soft_cap(jnp.einsum(f"BGRK,{keys}->BGRL", q, k, preferred_element_type=wide) * scale, cap)

    def weighed(weights: Array, v: Array) -> Array:
        return jnp.einsum(f"BGRL,{keys}->BGRK", weights.astype(v.dtype), v, preferred_element_type=wide)

    def joined(sums: Sums, found: Array, v: Array) -> Sums:
        high = jnp.maximum(sums.high, found.max(-1))
        weights, kept = jnp.exp(found - high[..., None]), jnp.exp(sums.high - high)
        return Sums(high, sums.total * kept + weights.sum(-1), sums.mixed * kept[..., None] + weighed(weights, v))

    def of_prompt() -> Sums:
        # The completions of a prompt are rows of one product per kv-head. On a CPU, XLA cannot multiply bfloat16 with
        # float32 sums where the batch axes do not come first.
        q_QxmxGxRxK = q_BxHxK.reshape(prompts, group, kv_heads, repeat, k_dim)
        found = scores(q_QxmxGxRxK.swapaxes(1, 2).reshape(prompts, kv_heads, -1, k_dim), prompt_k)
        found_QxGxmxRxL = found.reshape(prompts, kv_heads, group, repeat, width)
        slots_1x1xL, lengths_Qx1x1 = jnp.arange(width)[None, None], cache.prompt_lengths_Q[:, None, None]
        distance_QxmxL = lengths_Qx1x1 + cache.ages_B.reshape(prompts, group, 1) - slots_1x1xL
        seen_QxmxL = (slots_1x1xL < lengths_Qx1x1) & (distance_QxmxL < far)
        found_QxGxmxRxL = jnp.where(seen_QxmxL[:, None, :, None], found_QxGxmxRxL, -jnp.inf)
        # A prompt that the window hides has no score; -inf less -inf would be no number.
        high = jnp.maximum(found_QxGxmxRxL.max(-1), jnp.finfo(wide).min)
        weights = jnp.exp(found_QxGxmxRxL - high[..., None])
        mixed = weighed(weights.reshape(found.shape), prompt_v).reshape(*high.shape, k_dim)
        sums = Sums(high, weights.sum(-1), mixed)
        return Sums(*(x.swapaxes(1, 2).reshape(batch, kv_heads, *x.shape[3:]) for x in sums))

    def of_block(at: Array, sums: Sums) -> Sums:
        """One block of the ring, counted back from the newest."""
        start = ((cache.step - 1) // block - at) * block % places
        of_layer = (jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in ring)
        k, v = (jax.lax.dynamic_slice_in_dim(x, start, block, axis) for x in of_layer)
        distance_1xW = ((cache.step - 1 - start - jnp.arange(block)) % places + 1)[None]  # from the new token
        seen_BxW = (distance_1xW <= ages_Bx1) & (distance_1xW < far)
        return joined(sums, jnp.where(seen_BxW[:, None, None], scores(q_BxGxRxK, k), -jnp.inf), v)

    own_k, own_v = (jnp.expand_dims(x.astype(ring.k.dtype), axis) for x in (k_BxGxK, v_BxGxK))
    sums = joined(of_prompt(), scores(q_BxGxRxK, own_k), own_v)
    sums = jax.lax.fori_loop(0, blocks, of_block, sums) if places > block else of_block(jnp.int32(0), sums)
    return (sums.mixed / sums.total[..., None]).astype(q_BxHxK.dtype).reshape(batch, heads, k_dim)
