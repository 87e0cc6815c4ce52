"""Flash attention on GPUs: Pallas kernels, compiled by Triton, that visit only the blocks of keys a query can see.

No library at hand serves packed rows with shared prompts, windows that differ by layer, and soft caps in both
passes. cuDNN through jax 0.11 takes packed segments only with as many kv-heads as heads, fixed windows, no soft cap and no float32.
tokamax 0.0.12 skips no block by ranges of keys in its backward pass, and its Triton kernel stores an L x M mask there.

The algorithm is that of FlashAttention-2 (Dao 2023, arXiv 2307.08691), with lists of block indices as in
FlexAttention (Dong et al. 2024, arXiv 2412.05496). Blocks that all queries of a block see whole need no mask.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from qrpo_jax.model.attention.key_ranges import KeyRanges, block_order, key_ranges
from qrpo_jax.model.layout import Layout

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


def tuning(head_dim: int, dtype: Any) -> Tuning:
    """The fastest tiles for heads of this size on an H200 that also fit the shared memory of an A100.

    Measured on 2026-11-27 among five to nine for each kernel, on rows of 2,048 tokens, whole and packed.
    """
    if jnp.dtype(dtype).itemsize > 2:
        small = Tiles(32, 32, 4, 2)  # float32 products run outside of the tensor cores and need many registers
        return Tuning(small, small, small)
    if head_dim <= 64:
        return Tuning(Tiles(64, 32, 4, 3), Tiles(64, 32, 4, 3), Tiles(64, 64, 4, 2))
    if head_dim <= 128:
        return Tuning(Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 2))
    return Tuning(Tiles(64, 64, 4, 2), Tiles(64, 32, 4, 2), Tiles(32, 32, 4, 2))


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
    """Attention [B, L, H, K] as `Backend` defines it; padding queries return 0, and their gradient is 0.

    On another device than a GPU it runs in Pallas's interpreter, which is slow.
    """
    k_dim = q_BxLxHxK.shape[-1]
    options = Options(
        k_dim**-0.5 if scale is None else scale,
        cap,
        tuning(k_dim, q_BxLxHxK.dtype),
        interpret=jax.default_backend() != "gpu",
    )
    return attend_with(options, q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, queries, keys, start, window)


def attend_with(
    options: Options,
    q_BxLxHxK: Array,
    k_BxMxGxK: Array,
    v_BxMxGxK: Array,
    queries: Layout,
    keys: Layout,
    start: Array | int,
    window: Array | int | None,
) -> Array:
    """`attend` with the given tiles."""
    batch, length, _, k_dim = q_BxLxHxK.shape
    row = k_BxMxGxK.shape[1]
    ranges = key_ranges(keys, window)
    if length < row:
        ranges = KeyRanges(*(jax.lax.dynamic_slice(x, (0, start), (batch, length)) for x in ranges))
    # Tiles are powers of two, so short rows, row lengths that tiles do not divide and odd head sizes are filled up.
    tiles = Tuning(*(_shrink(t, length, row) for t in options.tuning))
    more_queries = -length % max(t.queries for t in tiles)
    more_keys = -row % max(t.keys for t in tiles)
    more_dims = max(16, pl.next_power_of_2(k_dim)) - k_dim

    def fill(x: Array, more: int) -> Array:
        return jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, more_dims))) if more or more_dims else x

    if more_queries:
        empty = KeyRanges(row, 0, row, 0)
        ranges = KeyRanges(
            *(
                jnp.pad(x, ((0, 0), (0, more_queries)), constant_values=value)
                for x, value in zip(ranges, empty, strict=True)
            )
        )
    q, k, v = fill(q_BxLxHxK, more_queries), fill(k_BxMxGxK, more_keys), fill(v_BxMxGxK, more_keys)
    out = _attend(options._replace(tuning=tiles), q, k, v, ranges)
    return out[:, :length, :, :k_dim] if more_queries or more_dims else out


def _shrink(tiles: Tiles, length: int, row: int) -> Tiles:
    def at_most(block: int, tokens: int) -> int:
        return min(block, max(16, pl.next_power_of_2(tokens)))

    return tiles._replace(queries=at_most(tiles.queries, length), keys=at_most(tiles.keys, row))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options: Options, q_BxLxHxK: Array, k_BxMxGxK: Array, v_BxMxGxK: Array, ranges: KeyRanges) -> Array:
    return _forward(options, q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, ranges)[0]


def _attend_forward(options: Options, q: Array, k: Array, v: Array, ranges: KeyRanges) -> tuple[Array, Any]:
    out, log_total = _forward(options, q, k, v, ranges)
    out, log_total = checkpoint_name(out, "attention"), checkpoint_name(log_total, "attention")
    return out, (q, k, v, ranges, out, log_total)


def _attend_backward(options: Options, kept: Any, d_out_BxLxHxK: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, ranges, out, log_total_BxHxL = kept
    # The sum over keys of weight times gradient of weight (FlashAttention-2, algorithm 2).
    mean_BxHxL = jnp.einsum("BLHK,BLHK->BHL", out, d_out_BxLxHxK, preferred_element_type=jnp.float32)
    gradients = options, q, k, v, ranges, log_total_BxHxL, mean_BxHxL, d_out_BxLxHxK
    return _query_gradient(*gradients), *_key_gradients(*gradients), None


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(options: Options, q: Array, k: Array, v: Array, ranges: KeyRanges) -> tuple[Array, Array]:
    """Output [B, L, H, K], and the base-2 logarithm [B, H, L] of each softmax's denominator."""
    shapes = (q, jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32))
    tiles = options.tuning.forward
    rows, columns = _row_specs(q.shape, k.shape, tiles)
    return _call(
        functools.partial(_forward_kernel, options),
        options,
        tiles,
        (q.shape[1] // tiles.queries, q.shape[2], q.shape[0]),
        [*rows.lists, rows.vectors, columns, columns],
        [rows.vectors, rows.numbers],
        shapes,
        "attention_forward",
    )(*block_order(ranges, k.shape[1], tiles.queries, tiles.keys), _stack(ranges), q, k, v)


def _query_gradient(
    options: Options, q: Array, k: Array, v: Array, ranges: KeyRanges, log_total: Array, mean: Array, d_out: Array
) -> Array:
    tiles = options.tuning.query_gradient
    rows, columns = _row_specs(q.shape, k.shape, tiles)
    return _call(
        functools.partial(_query_gradient_kernel, options),
        options,
        tiles,
        (q.shape[1] // tiles.queries, q.shape[2], q.shape[0]),
        [*rows.lists, rows.vectors, columns, columns, rows.numbers, rows.numbers, rows.vectors],
        rows.vectors,
        q,
        "attention_query_gradient",
    )(*block_order(ranges, k.shape[1], tiles.queries, tiles.keys), _stack(ranges), q, k, v, log_total, mean, d_out)


def _key_gradients(
    options: Options, q: Array, k: Array, v: Array, ranges: KeyRanges, log_total: Array, mean: Array, d_out: Array
) -> tuple[Array, Array]:
    tiles = options.tuning.key_gradient
    batch, length, heads, k_dim = q.shape
    row, kv_heads = k.shape[1:3]
    repeat, blocks = heads // kv_heads, row // tiles.keys
    order = block_order(ranges, row, tiles.queries, tiles.keys, by_keys=True)
    lists = [
        pl.BlockSpec((None, None, length // tiles.queries), lambda j, g, b: (b, j, 0)),
        pl.BlockSpec((None, None, 2), lambda j, g, b: (b, j, 0)),
        pl.BlockSpec((4, None, length), lambda j, g, b: (0, b, 0)),
    ]
    columns = pl.BlockSpec((None, tiles.keys, None, k_dim), lambda j, g, b: (b, j, g, 0))
    rows = pl.BlockSpec((None, length, repeat, k_dim), lambda j, g, b: (b, 0, g, 0))
    numbers = pl.BlockSpec((None, repeat, length), lambda j, g, b: (b, g, 0))
    return _call(
        functools.partial(_key_gradient_kernel, options),
        options,
        tiles,
        (blocks, kv_heads, batch),
        [*lists, rows, columns, columns, numbers, numbers, rows],
        [columns, columns],
        (k, v),
        "attention_key_gradient",
    )(*order, _stack(ranges), q, k, v, log_total, mean, d_out)


class _RowSpecs(NamedTuple):
    """What a program for one block of queries of one head reads and writes."""

    lists: list[pl.BlockSpec]
    vectors: pl.BlockSpec
    numbers: pl.BlockSpec


def _row_specs(q_shape: tuple[int, ...], k_shape: tuple[int, ...], tiles: Tiles) -> tuple[_RowSpecs, pl.BlockSpec]:
    """Specs of a grid (block of queries, head, row), and of the keys of the whole row."""
    _, length, heads, k_dim = q_shape
    _, row, kv_heads, _ = k_shape
    last, repeat = length // tiles.queries - 1, heads // kv_heads
    # The last queries of a row see most keys. They start first, so that no program runs alone at the end.
    lists = [
        pl.BlockSpec((None, None, row // tiles.keys), lambda i, h, b: (b, last - i, 0)),
        pl.BlockSpec((None, None, 2), lambda i, h, b: (b, last - i, 0)),
        pl.BlockSpec((4, None, tiles.queries), lambda i, h, b: (0, b, last - i)),
    ]
    vectors = pl.BlockSpec((None, tiles.queries, None, k_dim), lambda i, h, b: (b, last - i, h, 0))
    numbers = pl.BlockSpec((None, None, tiles.queries), lambda i, h, b: (b, h, last - i))
    columns = pl.BlockSpec((None, row, None, k_dim), lambda i, h, b: (b, 0, h // repeat, 0))
    return _RowSpecs(lists, vectors, numbers), columns


def _call(
    kernel: Any,
    options: Options,
    tiles: Tiles,
    grid: tuple[int, ...],
    in_specs: Any,
    out_specs: Any,
    shapes: Any,
    name: str,
) -> Any:
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes),
        compiler_params=plgpu.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        interpret=options.interpret,
        name=name,
    )


def _stack(ranges: KeyRanges) -> Array:
    return jnp.stack(ranges)


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


def _forward_kernel(
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


def _query_gradient_kernel(
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


def _key_gradient_kernel(
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
