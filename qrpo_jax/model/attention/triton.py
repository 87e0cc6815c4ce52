"""Flash attention on NVIDIA GPUs: Pallas kernels, compiled by Triton, that visit only blocks with visible keys.

The algorithm is FlashAttention-2 (Dao 2023, arXiv 2307.08691) with lists of block indices as in FlexAttention (Dong et
al. 2024, arXiv 2412.05496). Each query sees two ranges of keys (`key_ranges`). A block of keys that all queries of a
block see whole needs no mask; one that none of them sees is not on the list. Prompts are shared at no extra pass.

Why no library: rows are packed and share prompts, windows of scanned layers are traced, and Gemma 2 caps its scores.
cuDNN through jax (0.10 to 0.12) has fixed windows, no cap and no float32, and its packed layout places the keys by the
stride of the queries, which is wrong for grouped heads. tokamax 0.0.12 does not run on jax 0.11.2; its backward kernel
for Hopper visits blocks outside of the ranges of keys, the one for Triton stores a mask of L x M. The Triton kernels
that come with jax have neither ranges nor grouped heads. jax announces that it will drop Pallas for Triton in a later
release than 0.12; these kernels then need another compiler.

Milliseconds of forward and backward pass, 8 rows of 2,048 tokens, 32 heads and 8 kv-heads of size 64 | 128, bfloat16,
one H200, jax 0.11.2, cuDNN 9.19, 2026-11-27 (tiles have changed since, which moved the kernels alone by 2 % on one
sequence and made packed rows faster); jax's Triton kernel with keys and values repeated for each head:

| rows                                         | these kernels | cuDNN       | jax's Triton |
|----------------------------------------------|---------------|-------------|--------------|
| one sequence                                 | 1.92 | 3.09   | 1.62 | 2.48 | 2.99 | 4.51  |
| three of prompt 200 + completion 350         | 0.75 | 1.24   |             |              |
| two of prompt 200 + two completions of 350   | 0.93 | 1.49   |             |              |
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from qrpo_jax.model.attention import triton_kernels
from qrpo_jax.model.attention.key_ranges import KeyRanges, block_order, empty, key_ranges
from qrpo_jax.model.attention.triton_kernels import Options, Tiles, Tuning
from qrpo_jax.model.layout import Layout


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
        padded = [
            jnp.pad(x, ((0, 0), (0, more_queries)), constant_values=e) for x, e in zip(ranges, empty(row), strict=True)
        ]
        ranges = KeyRanges(*padded)
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
        functools.partial(triton_kernels.forward, options),
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
        functools.partial(triton_kernels.query_gradient, options),
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
        functools.partial(triton_kernels.key_gradients, options),
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
