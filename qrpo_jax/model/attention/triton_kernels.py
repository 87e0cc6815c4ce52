"""The three kernels of `triton`: what one program computes, for a block of queries or of keys of one head and row.

Axes: T queries and S keys of a block, K head size. Blocks arrive as references; `order_ref` and `counts_ref` say which
blocks of the other side to visit (`key_ranges.BlockOrder`), `ranges_ref` which keys each query sees (`KeyRanges`).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

LOG2_E = math.log2(math.e)
LOWEST = -1e30  # below every score; finite, so that differences are no NaN


class Tiles(NamedTuple):
    """Block sizes of a kernel and how Triton compiles it."""

    queries: int
    keys: int
    warps: int
    stages: int


class Tuning(NamedTuple):
    """Tiles of the three kernels."""

    forward: Tiles
    query_gradient: Tiles
    key_gradient: Tiles


class Options(NamedTuple):
    """What is fixed when a kernel is compiled.

    Attributes:
      scale: factor of the scores, positive.
      cap: soft cap of the scaled scores, or None.
      tuning: tiles of the kernels.
      interpret: run the kernels as plain jax, on any device.
    """

    scale: float
    cap: float | None
    tuning: Tuning
    interpret: bool


def _dot(a: Array, b: Array) -> Array:
    """a @ b with float32 sums; float32 factors are not rounded to tf32."""
    return plgpu.dot(a, b, precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None)


def _exp2(options: Options, x: Array) -> Array:
    """2^x by the GPU's own instruction; XLA's function adds instructions for results below the smallest normal one."""
    if options.interpret:
        return jnp.exp2(x)
    shape = [jax.ShapeDtypeStruct(x.shape, x.dtype)]
    return plgpu.elementwise_inline_asm(
        "ex2.approx.ftz.f32 $0, $1;", args=[x], constraints="=f,f", pack=1, result_shape_dtypes=shape
    )[0]


def _scores(options: Options, a: Array, b: Array) -> tuple[Array, float, Array | None]:
    """Scores of a @ b.T before the last factor, that factor, and their derivative by the scaled scores if it is not 1.

    Scores times factor are in units of log 2. The factor is positive and left to the exponent, where multiplication and
    subtraction are one instruction.
    """
    product = _dot(a, b.T)
    if options.cap is None:
        return product, options.scale * LOG2_E, None
    squeezed = jnp.tanh(product * (options.scale / options.cap))
    return squeezed, options.cap * LOG2_E, 1.0 - squeezed * squeezed


def _visible(first_key: Any, block: int, bounds: tuple[Array, ...], key_axis: int) -> Array:
    """Which of the block's keys each query sees, bool [T, S] with `key_axis` 1 and [S, T] with 0."""
    query_axis = 1 - key_axis
    keys = jnp.expand_dims(first_key + jnp.arange(block, dtype=jnp.int32), query_axis)
    prompt_start, prompt_end, own_start, own_end = (jnp.expand_dims(x, key_axis) for x in bounds)
    return ((keys >= prompt_start) & (keys < prompt_end)) | ((keys >= own_start) & (keys < own_end))


def _loop(order_ref: Any, counts_ref: Any, step: Any, carry: Any) -> Any:
    """Runs `step(block, masked, carry)` over the blocks of the order that are seen."""
    whole, seen = counts_ref[0], counts_ref[1]
    carry = jax.lax.fori_loop(0, whole, lambda i, c: step(order_ref[i], False, c), carry)
    return jax.lax.fori_loop(whole, seen, lambda i, c: step(order_ref[i], True, c), carry)


def _bounds(ranges_ref: Any, at: Any = slice(None)) -> tuple[Array, ...]:
    return tuple(ranges_ref[i, at] for i in range(4))


def forward(
    options: Options,
    order_ref: Any,
    counts_ref: Any,
    ranges_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    log_total_ref: Any,
) -> None:
    """Output of T queries, and the base-2 logarithm of each softmax's denominator; both 0 where no key is seen."""
    block = options.tuning.forward.keys
    q_TxK, bounds = q_ref[...], _bounds(ranges_ref)

    def step(index: Any, masked: bool, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mixed_TxK, high_T, total_T = carry
        at = pl.ds(index * block, block)
        scores_TxS, factor, _ = _scores(options, q_TxK, k_ref[at, :])
        if masked:
            visible_TxS = _visible(index * block, block, bounds, 1)
            scores_TxS = jnp.where(visible_TxS, scores_TxS, LOWEST)
        new_high_T = jnp.maximum(high_T, scores_TxS.max(1))
        weights_TxS = _exp2(options, scores_TxS * factor - (new_high_T * factor)[:, None])
        if masked:  # a query that sees none of these keys has the weight 1 for each
            weights_TxS = jnp.where(visible_TxS, weights_TxS, 0.0)
        shrink_T = _exp2(options, (high_T - new_high_T) * factor)
        v_SxK = v_ref[at, :]
        mixed_TxK = mixed_TxK * shrink_T[:, None] + _dot(weights_TxS.astype(v_SxK.dtype), v_SxK)
        return mixed_TxK, new_high_T, total_T * shrink_T + weights_TxS.sum(1)

    queries = q_TxK.shape[0]
    zero_T = jnp.zeros((queries,), jnp.float32)
    start = (jnp.zeros(q_TxK.shape, jnp.float32), zero_T + LOWEST, zero_T)
    mixed_TxK, high_T, total_T = _loop(order_ref, counts_ref, step, start)
    seen_T = total_T > 0
    total_T = jnp.where(seen_T, total_T, 1.0)
    out_ref[...] = (mixed_TxK / total_T[:, None]).astype(out_ref.dtype)
    factor = (options.scale if options.cap is None else options.cap) * LOG2_E
    log_total_ref[...] = jnp.where(seen_T, high_T * factor + jnp.log2(total_T), 0.0)


def query_gradient(
    options: Options,
    order_ref: Any,
    counts_ref: Any,
    ranges_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    log_total_ref: Any,
    mean_ref: Any,
    d_out_ref: Any,
    d_q_ref: Any,
) -> None:
    """Gradient of T queries; `mean_ref` holds the inner products of output and its gradient."""
    block = options.tuning.query_gradient.keys
    q_TxK, d_out_TxK, bounds = q_ref[...], d_out_ref[...], _bounds(ranges_ref)
    log_total_Tx1, mean_Tx1 = log_total_ref[...][:, None], mean_ref[...][:, None]

    def step(index: Any, masked: bool, d_q_TxK: Array) -> Array:
        at = pl.ds(index * block, block)
        k_SxK = k_ref[at, :]
        scores_TxS, factor, slope_TxS = _scores(options, q_TxK, k_SxK)
        weights_TxS = _exp2(options, scores_TxS * factor - log_total_Tx1)
        if masked:
            weights_TxS = jnp.where(_visible(index * block, block, bounds, 1), weights_TxS, 0.0)
        d_scores_TxS = weights_TxS * (_dot(d_out_TxK, v_ref[at, :].T) - mean_Tx1)
        d_scores_TxS = d_scores_TxS if slope_TxS is None else d_scores_TxS * slope_TxS
        return d_q_TxK + _dot(d_scores_TxS.astype(k_SxK.dtype), k_SxK)

    d_q_TxK = _loop(order_ref, counts_ref, step, jnp.zeros(q_TxK.shape, jnp.float32))
    d_q_ref[...] = (d_q_TxK * options.scale).astype(d_q_ref.dtype)


def key_gradients(
    options: Options,
    order_ref: Any,
    counts_ref: Any,
    ranges_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    log_total_ref: Any,
    mean_ref: Any,
    d_out_ref: Any,
    d_k_ref: Any,
    d_v_ref: Any,
) -> None:
    """Gradients of S keys and values, summed over the query heads that read them."""
    block, first_key = options.tuning.key_gradient.queries, pl.program_id(0) * options.tuning.key_gradient.keys
    k_SxK, v_SxK = k_ref[...], v_ref[...]

    def head(r: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        def step(index: Any, masked: bool, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            d_k_SxK, d_v_SxK = carry
            at = pl.ds(index * block, block)
            q_TxK, d_out_TxK = q_ref[at, r, :], d_out_ref[at, r, :]
            scores_SxT, factor, slope_SxT = _scores(options, k_SxK, q_TxK)
            weights_SxT = _exp2(options, scores_SxT * factor - log_total_ref[r, at][None, :])
            if masked:
                visible_SxT = _visible(first_key, k_SxK.shape[0], _bounds(ranges_ref, at), 0)
                weights_SxT = jnp.where(visible_SxT, weights_SxT, 0.0)
            d_v_SxK += _dot(weights_SxT.astype(d_out_TxK.dtype), d_out_TxK)
            d_scores_SxT = weights_SxT * (_dot(v_SxK, d_out_TxK.T) - mean_ref[r, at][None, :])
            d_scores_SxT = d_scores_SxT if slope_SxT is None else d_scores_SxT * slope_SxT
            d_k_SxK += _dot(d_scores_SxT.astype(q_TxK.dtype), q_TxK)
            return d_k_SxK, d_v_SxK

        return _loop(order_ref, counts_ref, step, carry)

    zero_SxK = jnp.zeros(k_SxK.shape, jnp.float32)
    d_k_SxK, d_v_SxK = jax.lax.fori_loop(0, q_ref.shape[1], head, (zero_SxK, zero_SxK))
    d_k_ref[...] = (d_k_SxK * options.scale).astype(d_k_ref.dtype)
    d_v_ref[...] = d_v_SxK.astype(d_v_ref.dtype)
