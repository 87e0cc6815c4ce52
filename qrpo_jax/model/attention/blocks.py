"""Attention block by block in plain XLA: fast on a CPU, and possible on every device.

Queries and keys are cut into blocks. A block of queries visits the blocks of keys of which one of its queries sees a
key: prompt and own completion, but neither the future, nor siblings, nor other groups, nor what a window hides. Scores
exist for one pair of blocks at a time, so memory grows with L and not with L * M, and on a CPU they stay in the cache.
The softmax runs over the blocks with running sums (Milakov & Gimelshein 2018, arXiv 1805.02867); the backward pass
recomputes the scores from the log of these sums (Dao et al. 2022, arXiv 2205.14135).

Axes beside those of the package: N blocks of queries and J blocks of keys of all rows, Y keys of a block, and X queries
of a block, those of the H / G heads side by side that read the same kv-head. Queries are the last axis of scores, so
that one matrix product serves all heads of a kv-head, and a sum over keys adds vectors of queries.

Forward and backward on one core of an Intel Xeon (Sapphire Rapids, 2 MiB of L2), 2026-11-27, in milliseconds:

    rows and tokens; heads, kv-heads and head size                 plain    blocks
    16 x 448, a prompt of 24 with 2 x 200; 8, 4 and 8                432        42
    64 x 64, a prompt of 37 with 2 x 13; 4, 4 and 32                15.8      13.9
    4 x 513, a prompt of 64 with 2 x 224; 6, 6 and 64                143        65
    1 x 4096, one sequence; 4, 2 and 128                               -       584
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from qrpo_jax.model.attention.key_ranges import KeyRanges, block_order, empty, key_ranges
from qrpo_jax.model.attention.rules import soft_cap
from qrpo_jax.model.layout import Layout

LOWEST = -1e30  # below any score, but finite: the difference of two of them is a number


def attend(
    q_BxLxHxK: Array,
    k_BxMxGxK: Array,
    v_BxMxGxK: Array,
    queries: Layout,
    keys: Layout,
    start: Array | int,
    window: Array | int | None,
    /,
    *,
    scale: float | None,
    cap: float | None,
) -> Array:
    """Attention [B, L, H, K] as `Backend` defines it; a query that sees no key returns 0."""
    batch, length, heads, k_dim = q_BxLxHxK.shape
    width, kv_heads = k_BxMxGxK.shape[1:3]
    across, down = block_tokens(length, heads, k_dim), block_tokens(width, heads, k_dim)
    ranges_BxL = KeyRanges(*(jax.lax.dynamic_slice_in_dim(x, start, length, 1) for x in key_ranges(keys, window)))
    ranges_BxL = KeyRanges(*(_filled(x, across, nothing) for x, nothing in zip(ranges_BxL, empty(width), strict=True)))
    k_BxMxGxK, v_BxMxGxK = _filled(k_BxMxGxK, down), _filled(v_BxMxGxK, down)
    visits = _visits(ranges_BxL, k_BxMxGxK.shape[1], across, down, heads // kv_heads)
    rule = Rule(k_dim**-0.5 if scale is None else scale, cap)
    q_NxGxKxX = _queries_last(_filled(q_BxLxHxK, across), across, kv_heads)
    k_JxGxYxK, v_JxGxYxK = (x.reshape(-1, down, kv_heads, k_dim).swapaxes(1, 2) for x in (k_BxMxGxK, v_BxMxGxK))
    mixed_NxGxKxX = _attend(rule, q_NxGxKxX, k_JxGxYxK, v_JxGxYxK, visits)
    return _heads_last(mixed_NxGxKxX, batch, heads)[:, :length]


def block_tokens(length: int, heads: int, k_dim: int) -> int:
    """Tokens of a block for rows of `length` tokens: a multiple of 8, chosen so that rows are filled up little.

    Small blocks skip more. Large ones spend less time between the products, which is worth more the larger a head is,
    until the scores of all heads leave a CPU's cache (2**18 are 1 MiB).
    """
    largest = 512
    if jax.default_backend() == "cpu":
        largest = 32 if k_dim < 32 else 64 if k_dim < 128 else 128
        while largest > 32 and heads * largest**2 > 2**18:
            largest //= 2
    blocks = -(-length // largest)
    return -(-length // (8 * blocks)) * 8


class Visits(NamedTuple):
    """What each block of queries sees; keys are counted through all rows.

    Attributes:
      ranges_NxX: the keys that each query sees.
      blocks_NxV: uint32, the blocks of keys to visit come first. Signed indices could count from the end, which costs
        operations.
      counts_N: uint32, how many these are.
    """

    ranges_NxX: KeyRanges
    blocks_NxV: Array
    counts_N: Array


def _visits(ranges_BxL: KeyRanges, keys: int, across: int, down: int, repeat: int) -> Visits:
    """The blocks of `down` keys, of `keys` a row, that blocks of `across` queries visit; X is `across * repeat`."""
    order = block_order(ranges_BxL, keys, across, down)
    row_Bx1 = jnp.arange(ranges_BxL.own_start.shape[0], dtype=jnp.int32)[:, None]
    return Visits(
        # A query's ranges are needed once for each of its heads.
        KeyRanges(*(jnp.tile((x + row_Bx1 * keys).reshape(-1, across), repeat) for x in ranges_BxL)),
        (order.blocks_BxIxJ + row_Bx1[:, None] * (keys // down)).reshape(-1, keys // down).astype(jnp.uint32),
        order.counts_BxIx2[..., 1].reshape(-1).astype(jnp.uint32),
    )


class Rule(NamedTuple):
    """The formula of a score: its factor and soft cap."""

    scale: float
    cap: float | None

    def scores(self, q_GxKxX: Array, k_GxYxK: Array) -> Array:
        """Scaled and capped scores [G, Y, X] of a pair of blocks."""
        return soft_cap(_product("GYK,GKX->GYX", k_GxYxK, q_GxKxX) * self.scale, self.cap)

    def slope(self, scores: Array) -> Array | float:
        """Derivative of `scores` by the product of query and key."""
        return self.scale if self.cap is None else self.scale * (1.0 - (scores / self.cap) ** 2)

    def hidden(self, scores_GxYxX: Array, ranges_X: KeyRanges, j: Array) -> Array:
        """Scores with -inf where a query does not see a key of block j, which is weight 0 after any softmax."""
        keys = scores_GxYxX.shape[1]
        key_Yx1 = (j.astype(jnp.int32) * keys + jnp.arange(keys, dtype=jnp.int32))[:, None]
        prompt_start, prompt_end, own_start, own_end = (x[None] for x in ranges_X)
        seen_YxX = (key_Yx1 >= prompt_start) & (key_Yx1 < prompt_end) | (key_Yx1 >= own_start) & (key_Yx1 < own_end)
        return jnp.where(seen_YxX[None], scores_GxYxX, -jnp.inf)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(rule: Rule, q_NxGxKxX: Array, k_JxGxYxK: Array, v_JxGxYxK: Array, visits: Visits) -> Array:
    return _forward(rule, q_NxGxKxX, k_JxGxYxK, v_JxGxYxK, visits)[0]


def _forward(
    rule: Rule, q_NxGxKxX: Array, k_JxGxYxK: Array, v_JxGxYxK: Array, visits: Visits
) -> tuple[Array, tuple[Any, ...]]:
    v_JxGxKxY = v_JxGxYxK.swapaxes(2, 3)
    wide = jnp.promote_types(q_NxGxKxX.dtype, jnp.float32)

    def block(arrays: tuple[Array, Visits]) -> tuple[Array, Array]:
        q_GxKxX, (ranges_X, blocks_V, count) = arrays

        def visit(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            high_Gx1xX, total_Gx1xX, mixed_GxKxX = carry
            j = _at(blocks_V, i)
            scores_GxYxX = rule.hidden(rule.scores(q_GxKxX, _at(k_JxGxYxK, j)), ranges_X, j)
            higher_Gx1xX = jnp.maximum(high_Gx1xX, scores_GxYxX.max(1, keepdims=True))
            shrink_Gx1xX = jnp.exp(high_Gx1xX - higher_Gx1xX)
            weights_GxYxX = jnp.exp(scores_GxYxX - higher_Gx1xX)
            total_Gx1xX = total_Gx1xX * shrink_Gx1xX + weights_GxYxX.sum(1, keepdims=True)
            more_GxKxX = _product("GKY,GYX->GKX", _at(v_JxGxKxY, j), weights_GxYxX.astype(v_JxGxKxY.dtype))
            return higher_Gx1xX, total_Gx1xX, mixed_GxKxX * shrink_Gx1xX + more_GxKxX

        zero_Gx1xX = jnp.zeros_like(q_GxKxX[:, :1], wide)
        carry = (zero_Gx1xX + LOWEST, zero_Gx1xX, jnp.zeros_like(q_GxKxX, wide))
        high_Gx1xX, total_Gx1xX, mixed_GxKxX = jax.lax.fori_loop(jnp.uint32(0), count, visit, carry)
        total_Gx1xX = jnp.where(total_Gx1xX > 0, total_Gx1xX, 1.0)
        return (mixed_GxKxX / total_Gx1xX).astype(q_GxKxX.dtype), high_Gx1xX + jnp.log(total_Gx1xX)

    kept = jax.lax.map(block, (q_NxGxKxX, visits))
    mixed_NxGxKxX, log_total_NxGx1xX = (checkpoint_name(x, "attention") for x in kept)
    return mixed_NxGxKxX, (q_NxGxKxX, k_JxGxYxK, v_JxGxYxK, visits, mixed_NxGxKxX, log_total_NxGx1xX)


def _backward(rule: Rule, residuals: tuple[Any, ...], gradient_NxGxKxX: Array) -> tuple[Any, ...]:
    q_NxGxKxX, k_JxGxYxK, v_JxGxYxK, visits, mixed_NxGxKxX, log_total_NxGx1xX = residuals
    k_JxGxKxY = k_JxGxYxK.swapaxes(2, 3)
    dtype, wide = q_NxGxKxX.dtype, log_total_NxGx1xX.dtype
    # A softmax turns the gradients g of its weights into weight * (g - mean of g by weight). The mean is the product of
    # output and gradient, because the output is the mean of the values.
    mean_NxGx1xX = (mixed_NxGxKxX.astype(wide) * gradient_NxGxKxX.astype(wide)).sum(2, keepdims=True)

    def block(carry: tuple[Array, Array], arrays: Any) -> tuple[tuple[Array, Array], Array]:
        q_GxKxX, (ranges_X, blocks_V, count), gradient_GxKxX, mean_Gx1xX, log_total_Gx1xX = arrays

        def visit(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            dq_GxKxX, dk_JxGxYxK, dv_JxGxYxK = carry
            j = _at(blocks_V, i)
            scores_GxYxX = rule.scores(q_GxKxX, _at(k_JxGxYxK, j))
            weights_GxYxX = jnp.exp(rule.hidden(scores_GxYxX, ranges_X, j) - log_total_Gx1xX)
            d_weights_GxYxX = _product("GYK,GKX->GYX", _at(v_JxGxYxK, j), gradient_GxKxX)
            d_scores_GxYxX = weights_GxYxX * (d_weights_GxYxX - mean_Gx1xX) * rule.slope(scores_GxYxX)
            d_scores_GxYxX = d_scores_GxYxX.astype(dtype)
            dq_GxKxX = dq_GxKxX + _product("GKY,GYX->GKX", _at(k_JxGxKxY, j), d_scores_GxYxX)
            dk_JxGxYxK = _add_at(dk_JxGxYxK, j, _product("GYX,GKX->GYK", d_scores_GxYxX, q_GxKxX))
            dv_GxYxK = _product("GYX,GKX->GYK", weights_GxYxX.astype(dtype), gradient_GxKxX)
            return dq_GxKxX, dk_JxGxYxK, _add_at(dv_JxGxYxK, j, dv_GxYxK)

        zero_GxKxX = jnp.zeros_like(q_GxKxX, wide)
        dq_GxKxX, dk_JxGxYxK, dv_JxGxYxK = jax.lax.fori_loop(jnp.uint32(0), count, visit, (zero_GxKxX, *carry))
        return (dk_JxGxYxK, dv_JxGxYxK), dq_GxKxX.astype(dtype)

    arrays = (q_NxGxKxX, visits, gradient_NxGxKxX, mean_NxGx1xX, log_total_NxGx1xX)
    zero_JxGxYxK = jnp.zeros_like(k_JxGxYxK, wide)
    of_keys, dq_NxGxKxX = jax.lax.scan(block, (zero_JxGxYxK, zero_JxGxYxK), arrays)
    return dq_NxGxKxX, *(x.astype(dtype) for x in of_keys), None


_attend.defvjp(_forward, _backward)


def _product(equation: str, a: Array, b: Array) -> Array:
    """A matrix product of two arrays of one type, summed in float32 at least."""
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _at(x_J: Array, j: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(x_J, j, keepdims=False)


def _add_at(x_J: Array, j: Array, more: Array) -> Array:
    """As `x_J.at[j].add(more)`, without its care for indices out of bounds."""
    return jax.lax.dynamic_update_index_in_dim(x_J, _at(x_J, j) + more, j, 0)


def _filled(x_BxL: Array, tokens: int, value: int = 0) -> Array:
    """[B, L, ...] with L filled up to whole blocks."""
    missing = -x_BxL.shape[1] % tokens
    return jnp.pad(x_BxL, ((0, 0), (0, missing), *[(0, 0)] * (x_BxL.ndim - 2)), constant_values=value)


def _queries_last(q_BxLxHxK: Array, tokens: int, kv_heads: int) -> Array:
    """[N, G, K, X]: the queries of a kv-head's first head, then those of its second, and so on."""
    heads, k_dim = q_BxLxHxK.shape[2:]
    q_NxTxGxRxK = q_BxLxHxK.reshape(-1, tokens, kv_heads, heads // kv_heads, k_dim)
    return q_NxTxGxRxK.transpose(0, 2, 4, 3, 1).reshape(-1, kv_heads, k_dim, heads // kv_heads * tokens)


def _heads_last(x_NxGxKxX: Array, batch: int, heads: int) -> Array:
    """[B, L, H, K], the inverse of `_queries_last`."""
    _, kv_heads, k_dim, across = x_NxGxKxX.shape
    repeat = heads // kv_heads
    x_NxGxKxRxT = x_NxGxKxX.reshape(-1, kv_heads, k_dim, repeat, across // repeat)
    return x_NxGxKxRxT.transpose(0, 4, 1, 3, 2).reshape(batch, -1, heads, k_dim)
