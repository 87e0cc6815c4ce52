"""Attention of decoding: one new query a completion, to the keys of a cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from qrpo_jax.devices.dtypes import at_least_float32
from qrpo_jax.model.attention.rules import soft_cap
from qrpo_jax.model.cache import RING_BLOCK, Cache

FAR = 1 << 30  # a window that hides nothing


class Sums(NamedTuple):
    """A softmax that grows block by block: the largest score so far, the sum of exponentials, the weighted values."""

    high: Array  # [..., R]
    total: Array  # [..., R]
    mixed: Array  # [..., R, K]


class Split(NamedTuple):
    """How B completions are cut: `parts` devices have them, each `runs` times `size`, which are computed together.

    A run reads no more blocks of the ring than its oldest completion has, so short runs read less; long ones are fewer.
    """

    parts: int
    runs: int
    size: int


def split_batch(batch: int, group: int, parts: int, size: int) -> Split:
    """The split of a batch into runs of about `size` completions, each of whole groups.

    Args:
      group: completions that share a prompt.
      parts: devices over which the batch is split.
      size: 0: no runs.
    """
    own = batch // parts
    groups = own // group
    runs = next(runs for runs in range(max(1, own // size if size else 1), 0, -1) if groups % runs == 0)
    return Split(parts, runs, own // runs)


def block_counts(cache: Cache, split: Split) -> Array:
    """[runs] blocks of the ring that hold tokens of each run's completions."""
    oldest = cache.ages_B.reshape(split.parts, split.runs, split.size).max((0, 2))
    behind = (cache.step - 1) % RING_BLOCK + 1  # tokens in the block that was written to last
    return (oldest > 0) + (jnp.maximum(oldest - behind, 0) + RING_BLOCK - 1) // RING_BLOCK


def attend_cached(
    q_BxHxK: Array,
    k_BxGxK: Array,
    v_BxGxK: Array,
    cache: Cache,
    layer: Array,
    prompt_k_QxGxKxL: Array,
    prompt_v_QxGxKxL: Array,
    blocks: Array,
    split: Split,
    *,
    scale: float | None = None,
    cap: float | None = None,
    window: Array | int | None = None,
) -> Array:
    """Attention [B, H, K] of each completion's new token: to the prompt, which m = B/Q share, and to its past.

    Prompt and completion share one softmax without being joined in memory. Slots are the last axis of keys and values,
    so that the inner loop reads adjacent memory.

    Args:
      q_BxHxK: one query a completion; the m completions of a prompt are adjacent.
      k_BxGxK, v_BxGxK: of the new tokens, which are not in the cache yet. What only reads the cache copies none of it.
      layer: [] whose keys are meant.
      blocks, split: of `block_counts`.
      scale, cap, window: as in `Backend`.
    """
    batch, heads, k_dim = q_BxHxK.shape
    prompts, kv_heads, _, width = prompt_k_QxGxKxL.shape
    places, wide = cache.k_NxBxGxKxR.shape[-1], at_least_float32(q_BxHxK.dtype)
    repeat, group = heads // kv_heads, batch // prompts
    block, count = min(RING_BLOCK, places), -(-places // min(RING_BLOCK, places))
    parts, runs, size = split
    scale = k_dim**-0.5 if scale is None else scale
    far = FAR if window is None else window
    # [parts, runs, ...] in front: the first is split over devices, the second is looped over.
    front = (parts, runs)
    q = q_BxHxK.reshape(*front, size, kv_heads, repeat, k_dim)
    own_k, own_v = (x.reshape(*front, size, kv_heads, k_dim).astype(cache.k_NxBxGxKxR.dtype) for x in (k_BxGxK, v_BxGxK))
    ages = cache.ages_B.reshape(*front, size)
    lengths = cache.prompt_lengths_Q.reshape(*front, size // group)
    prompt_k, prompt_v = (x.reshape(*front, size // group, *x.shape[1:]) for x in (prompt_k_QxGxKxL, prompt_v_QxGxKxL))
    ring_k, ring_v = (
        x.reshape(x.shape[0], *front, size, *x.shape[2:]) for x in (cache.k_NxBxGxKxR, cache.v_NxBxGxKxR)
    )

    def scores(q: Array, k: Array) -> Array:
        return soft_cap(jnp.einsum("...RK,...KL->...RL", q, k, preferred_element_type=wide) * scale, cap)

    def weighed(weights: Array, v: Array) -> Array:
        return jnp.einsum("...RL,...KL->...RK", weights.astype(v.dtype), v, preferred_element_type=wide)

    def prompt_sums(q: Array, k: Array, v: Array, lengths: Array, ages: Array) -> Sums:
        """Over the prompt: [parts, size, G, R]."""
        # The completions of a prompt are rows of one product per kv-head. On a CPU, XLA cannot multiply bfloat16 with
        # float32 sums where the batch axes do not come first.
        shape = (parts, size // group, group, kv_heads, repeat)
        rows = q.reshape(*shape, k_dim).swapaxes(2, 3).reshape(*shape[:2], kv_heads, group * repeat, k_dim)
        back = (*shape[:2], kv_heads, group, repeat)
        found = scores(rows, k).reshape(*back, width)
        slots = jnp.arange(width)
        seen = slots < lengths[..., None, None]  # [parts, prompts, 1, L]
        distance = (lengths[..., None] + ages.reshape(shape[:3]))[..., None] - slots
        seen = (seen & (distance < far))[:, :, None, :, None]
        found = jnp.where(seen, found, -jnp.inf)
        # A prompt that the window hides has no score; -inf less -inf would be no number.
        high = jnp.maximum(found.max(-1), jnp.finfo(wide).min)
        weights = jnp.exp(found - high[..., None])
        mixed = weighed(weights.reshape(*back[:3], group * repeat, width), v).reshape(*back, k_dim)
        sums = Sums(high, weights.sum(-1), mixed)
        return Sums(*(x.swapaxes(2, 3).reshape(parts, size, kv_heads, *x.shape[4:]) for x in sums))

    def run(index: Array) -> Array:
        """[parts, size, G, R, K]: the attention of one run."""
        q_run, k_run, v_run, ages_run, *of_prompt = (
            jax.lax.dynamic_index_in_dim(x, index, 1, keepdims=False)
            for x in (q, own_k, own_v, ages, prompt_k, prompt_v, lengths)
        )

        def joined(sums: Sums, found: Array, v: Array) -> Sums:
            high = jnp.maximum(sums.high, found.max(-1))
            weights, kept = jnp.exp(found - high[..., None]), jnp.exp(sums.high - high)
            return Sums(high, sums.total * kept + weights.sum(-1), sums.mixed * kept[..., None] + weighed(weights, v))

        def add(at: Array, sums: Sums) -> Sums:
            """One block of the ring, counted back from the newest."""
            start = ((cache.step - 1) // block - at) % count * block
            begin = (layer, 0, index, 0, 0, 0, start)
            k, v = (
                jax.lax.dynamic_slice(x, begin, (1, parts, 1, size, kv_heads, k_dim, block))[0, :, 0]
                for x in (ring_k, ring_v)
            )
            distance = (cache.step - 1 - start - jnp.arange(block)) % places + 1  # from the new token
            seen = (distance <= ages_run[..., None]) & (distance < far)
            return joined(sums, jnp.where(seen[:, :, None, None], scores(q_run, k), -jnp.inf), v)

        begin = prompt_sums(q_run, *of_prompt, ages_run)
        begin = joined(begin, scores(q_run, k_run[..., None]), v_run[..., None])
        end = jax.lax.fori_loop(0, blocks[index], add, begin) if count > 1 else add(jnp.int32(0), begin)
        return (end.mixed / end.total[..., None]).astype(q_BxHxK.dtype)

    mixed = run(jnp.int32(0))[:, None] if runs == 1 else jnp.moveaxis(jax.lax.map(run, jnp.arange(runs)), 0, 1)
    return mixed.reshape(batch, heads, k_dim)
