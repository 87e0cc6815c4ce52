"""Attention on TPU: jax's splash kernels, which skip blocks of keys that no query of a block sees.

The kernels are those of `jax.experimental.pallas.ops.tpu.splash_attention`; the functions that take mask data are
private, and the same in jax 0.10.2 and 0.12. tokamax's fork steps over visible blocks alone and has one fused kernel
for the backward pass. But that kernel either sums the gradient of bfloat16 queries in bfloat16 or stores one for each
block of keys, and its private functions changed from 0.0.12 to 0.0.17.

Splash makes its masks from static rules. Here the data of a mask is traced instead: each query sees the keys of a span
of its row, and the kernels get both ends of the span in the int32 that they hand to their mask function for each query.
So a row may pack any sequences, and a window may differ between the layers of a scan, in one compiled program. Two
passes over spans cover what a query sees, the exact rule of `rules.visible`:

1. its own completion up to itself; from the prompt on if the completion is the first one, which follows the prompt;
2. the shared prompt of a later completion.

Their softmaxes are joined by log-sum-exp, and the backward kernels of both get the joined output and log-sum-exp.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

from qrpo_jax.errors import UserError
from qrpo_jax.model.layout import Layout

LANES = 128  # blocks are multiples of it
BLOCK = 512  # tokens of a block at most; twice as many where rows are longer than LONG
LONG = 8192
LARGEST = 1 << 16  # keys of a kernel call at most: an int32 holds two indices of 16 bits
EMPTY = 1  # the code of a span from 1 to 0


class Span(NamedTuple):
    """The keys first, ..., last of its row that each query sees; none if last < first. int32 [B, L] each."""

    first_BxL: Array
    last_BxL: Array


class Visits(NamedTuple):
    """Mask data of the three kernels for one pass: the spans, and the blocks to visit.

    I and J count blocks of queries and of keys in all rows. W and U bound how many blocks are visited from one.

    Attributes:
      codes_N: both ends of each query's span, counted over all rows: last * 2^16 + first.
      keys_1xIxW, keys_run_1xIxW: blocks of keys to visit from each block of queries, and whether to visit them.
      queries_1xUxJ, queries_run_1xUxJ: blocks of queries to visit from each block of keys, and whether to visit them.
    """

    codes_N: Array
    keys_1xIxW: Array
    keys_run_1xIxW: Array
    queries_1xUxJ: Array
    queries_run_1xUxJ: Array


class Options(NamedTuple):
    """Static options of the kernels: tokens of a block of queries and of keys, soft cap, Pallas' interpreter."""

    block_q: int
    block_k: int
    cap: float | None
    interpret: bool


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
    shared: bool = True,
    longest: int | None = None,
    interpret: bool = False,
) -> Array:
    """Attention [B, L, H, K] as `Backend` defines it. Padding queries see themselves.

    Args:
      shared: whether any group has more than one completion. False saves the second pass, which costs reading and
        writing the output even where it visits no block.
      longest: tokens of the longest group, if known. The grid of a kernel is static, so it steps over all blocks of a
        row, without reading or computing, that it need not visit; this bounds how many there are.
      interpret: run the kernels by Pallas' interpreter, on any device.

    Raises:
      UserError: rows of more than 65,536 tokens.
    """
    batch, length, heads, k_dim = q_BxLxHxK.shape
    block_q, block_k = _block(length), _block(k_BxMxGxK.shape[1])
    scale = k_dim**-0.5 if scale is None else scale
    q_BxLxHxK = (q_BxLxHxK.astype(jnp.float32) * scale).astype(q_BxLxHxK.dtype)
    passes = [_part(span, start, length) for span in spans(keys, window)[: 2 if shared else 1]]
    q, passes = _padded((q_BxLxHxK, passes), block_q)
    k, v = _padded((k_BxMxGxK, v_BxMxGxK), block_k)
    # Padding to whole blocks sees its row's first key, where a span of zeros begins and ends.
    options = Options(block_q, block_k, cap, interpret)
    rows = _rows_at_once(batch, k.shape[1])

    def some_rows(arrays: Any) -> Array:
        q, k, v, passes = arrays
        visits = tuple(_visits(span, k.shape[1], options, longest) for span in passes)
        out = _attention(options, *map(_heads_first, (q, k, v)), visits)
        return jnp.moveaxis(out.reshape(heads, *q.shape[:2], k_dim), 0, 2)

    arrays = jax.tree.map(lambda x: x.reshape(batch // rows, rows, *x.shape[1:]), (q, k, v, passes))
    if rows == batch:
        out = some_rows(jax.tree.map(lambda x: x[0], arrays))
    else:
        out = jax.lax.map(some_rows, arrays).reshape(q.shape)
    return out[:, :length]


def spans(keys: Layout, window: Array | int | None) -> tuple[Span, Span]:
    """What the token at each place of the rows sees: the span that ends at itself, and that of a prompt before it.

    The first completion of a group follows the prompt directly, in position too, so that its first span includes the
    prompt and its second is empty.
    """
    groups_BxM, segments_BxM, positions_BxM = keys
    index_BxM = jnp.broadcast_to(jnp.arange(groups_BxM.shape[1], dtype=jnp.int32)[None], groups_BxM.shape)

    def previous(x_BxM: Array, before: int) -> Array:
        return jnp.pad(x_BxM[:, :-1], ((0, 0), (1, 0)), constant_values=before)

    def latest(marked_BxM: Array) -> Array:
        """Index of the last marked token up to each token."""
        return jax.lax.cummax(jnp.where(marked_BxM, index_BxM, 0), axis=1)

    new_group_BxM = groups_BxM != previous(groups_BxM, -1)
    new_segment_BxM = new_group_BxM | (segments_BxM != previous(segments_BxM, -1))
    after_prompt_BxM = new_group_BxM | (previous(segments_BxM, 0) == 0)
    group_BxM, segment_BxM = latest(new_group_BxM), latest(new_segment_BxM)
    prompt_end_BxM = latest(new_segment_BxM & after_prompt_BxM & (segments_BxM > 0))
    adjacent_BxM = (segments_BxM == 0) | (segment_BxM == prompt_end_BxM)
    own_BxM, prompt_BxM = jnp.where(adjacent_BxM, group_BxM, segment_BxM), group_BxM
    if window is not None:
        # Completions go on at the position where the prompt ended; prompts begin at position 0.
        own_BxM = jnp.maximum(own_BxM, index_BxM + 1 - window)
        prompt_BxM = jnp.maximum(prompt_BxM, group_BxM + (positions_BxM + 1 - window))
    own_BxM = jnp.where(groups_BxM == 0, index_BxM, own_BxM)
    return Span(own_BxM, index_BxM), Span(prompt_BxM, jnp.where(adjacent_BxM, -1, prompt_end_BxM - 1))


def _block(length: int) -> int:
    """Tokens of a block: the fewest blocks of equal size that hold a row."""
    blocks = -(-length // (BLOCK if length <= LONG else 2 * BLOCK))
    return -(-length // (blocks * LANES)) * LANES


def _padded(arrays: Any, block: int) -> Any:
    """Arrays [B, L, ...] with zeros up to whole blocks."""

    def pad(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), *[(0, 0)] * (x.ndim - 2)))

    return jax.tree.map(pad, arrays)


def _part(span: Span, start: Array | int, length: int) -> Span:
    return Span(*(jax.lax.dynamic_slice_in_dim(x, start, length, axis=1) for x in span))


def _rows_at_once(batch: int, length: int) -> int:
    """How many rows one kernel call takes: the most that divide the batch and whose keys can be counted."""
    if length > LARGEST:
        raise UserError(f"splash attention takes rows of up to {LARGEST} tokens, not {length}", about="attention")
    return max(rows for rows in range(1, batch + 1) if batch % rows == 0 and rows * length <= LARGEST)


def _heads_first(x_BxLxHxK: Array) -> Array:
    """[H, B L, K]: the kernels see the rows one after another as one long row."""
    return jnp.moveaxis(x_BxLxHxK, 2, 0).reshape(x_BxLxHxK.shape[2], -1, x_BxLxHxK.shape[3])


def _visits(span: Span, key_length: int, options: Options, longest: int | None) -> Visits:
    """Mask data for queries whose spans are given, over rows of key_length keys; both are whole blocks."""
    batch, length = span.first_BxL.shape
    q_blocks, k_blocks = length // options.block_q, key_length // options.block_k
    first, last = (x.reshape(batch, q_blocks, options.block_q, 1) for x in span)
    begin_J = (jnp.arange(k_blocks, dtype=jnp.int32) * options.block_k)[None, None, None]
    touched = (first <= last) & (first < begin_J + options.block_k) & (last >= begin_J)
    seen_BxIxJ = touched.any(axis=2)

    row_Bx1 = jnp.arange(batch, dtype=jnp.int32)[:, None]
    first_BxL, last_BxL = (x + row_Bx1 * key_length for x in span)
    codes_BxL = jnp.where(span.first_BxL <= span.last_BxL, (last_BxL << 16) | first_BxL, EMPTY)

    def bound(block: int, visited: int) -> int | None:
        """Blocks that a stretch of block + longest tokens touches."""
        return None if longest is None else -(-(block + longest) // visited) + 1

    keys_NxW, keys_run_NxW = _lists(seen_BxIxJ, bound(options.block_q, options.block_k))
    queries_NxU, queries_run_NxU = _lists(seen_BxIxJ.swapaxes(1, 2), bound(options.block_k, options.block_q))
    return Visits(
        codes_BxL.reshape(-1), keys_NxW[None], keys_run_NxW[None], queries_NxU.T[None], queries_run_NxU.T[None]
    )


def _lists(seen_BxIxJ: Array, most: int | None) -> tuple[Array, Array]:
    """Numbers of the blocks that each block visits, counted over all rows, and whether it does; [B I, W] each.

    The rest of a list repeats its last number: a kernel loads a block only if its number is another than before.
    """
    batch, _, count = seen_BxIxJ.shape
    width = count if most is None else min(most, count)
    order_BxIxW = jnp.argsort(~seen_BxIxJ, axis=-1, stable=True)[..., :width].astype(jnp.int32)
    visited_BxIx1 = seen_BxIxJ.sum(axis=-1, keepdims=True, dtype=jnp.int32)
    run_BxIxW = jnp.arange(width, dtype=jnp.int32)[None, None] < visited_BxIx1
    last_BxIx1 = jnp.take_along_axis(order_BxIxW, jnp.maximum(visited_BxIx1 - 1, 0), axis=-1)
    numbers_BxIxW = jnp.where(run_BxIxW, order_BxIxW, last_BxIx1)
    numbers_BxIxW += jnp.arange(batch, dtype=jnp.int32)[:, None, None] * count
    return numbers_BxIxW.reshape(-1, width), run_BxIxW.reshape(-1, width).astype(jnp.int32)


def _inside(codes: Array, keys: Array) -> Array:
    """Whether keys are inside the spans that the codes stand for; the kernels call it."""
    return (keys >= (codes & (LARGEST - 1))) & (keys <= jax.lax.shift_right_logical(codes, jnp.full_like(codes, 16)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options: Options, q_HxNxK: Array, k_GxMxK: Array, v_GxMxK: Array, passes: tuple[Visits, ...]) -> Array:
    """Attention [H, N, K] of scaled queries to the keys that any of the passes visits."""
    return _forward(options, q_HxNxK, k_GxMxK, v_GxMxK, passes)[0]


def _forward(
    options: Options, q_HxNxK: Array, k_GxMxK: Array, v_GxMxK: Array, passes: tuple[Visits, ...]
) -> tuple[Array, Any]:
    out, log_sum = _pass(options, q_HxNxK, k_GxMxK, v_GxMxK, passes[0])
    for visits in passes[1:]:
        more, more_log_sum = _pass(options, q_HxNxK, k_GxMxK, v_GxMxK, visits)
        # A query without a key in this pass has garbage here, and NaN if its block visited none.
        sees_1xN = (visits.codes_N != EMPTY)[None]
        joined = jnp.where(sees_1xN, jnp.logaddexp(log_sum, more_log_sum), log_sum)
        share = jnp.exp(log_sum - joined)[..., None]
        mixed = out.astype(jnp.float32) * share + more.astype(jnp.float32) * (1 - share)
        out, log_sum = jnp.where(sees_1xN[..., None], mixed.astype(out.dtype), out), joined
    out, log_sum = checkpoint_name(out, "attention"), checkpoint_name(log_sum, "attention")
    return out, (q_HxNxK, k_GxMxK, v_GxMxK, passes, out, log_sum)


def _mask(blocks: Any, run: Any, visits: Visits) -> MaskInfo:
    """Mask data of one kernel; without stored masks it calls the mask function."""
    codes_N: Any = visits.codes_N  # the library's types name numpy's arrays only
    return MaskInfo(blocks, None, run, None, codes_N)


def _pass(options: Options, q_HxNxK: Array, k_GxMxK: Array, v_GxMxK: Array, visits: Visits) -> tuple[Array, Array]:
    """Output [H, N, K] and log-sum-exp [H, N] of one pass."""
    out, (log_sum,) = kernels._splash_attention_forward(
        _mask(visits.keys_1xIxW, visits.keys_run_1xIxW, visits),
        q_HxNxK,
        k_GxMxK,
        v_GxMxK,
        segment_ids=None,
        sinks=None,
        mask_value=kernels.DEFAULT_MASK_VALUE,
        is_mqa=False,
        block_sizes=BlockSizes(options.block_q, options.block_k),
        residual_checkpoint_name=None,
        save_residuals=True,
        mask_function=_inside,
        attn_logits_soft_cap=options.cap,
        interpret=options.interpret,
    )
    return out, log_sum


def _backward(options: Options, saved: Any, d_out: Array) -> tuple[Array, Array, Array, None]:
    q_HxNxK, k_GxMxK, v_GxMxK, passes, out, log_sum = saved
    f32 = jnp.float32
    inputs = (q_HxNxK, k_GxMxK, v_GxMxK)
    d_sum = jnp.einsum("HNK,HNK->HN", out.astype(f32), d_out.astype(f32))
    layout = kernels.QKVLayout.HEAD_DIM_MINOR
    common: dict[str, Any] = dict(
        bq=options.block_q,
        bkv=options.block_k,
        is_mqa=False,
        mask_value=kernels.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=options.cap,
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
        mask_function=_inside,
        interpret=options.interpret,
    )
    sums: Any = None
    for visits in passes:
        arrays = (*inputs, None, None, log_sum, d_out, d_sum)
        mask = _mask(visits.keys_1xIxW, visits.keys_run_1xIxW, visits)
        d_q = kernels._splash_attention_bwd_dq(*arrays, mask_info=mask, **common)
        mask = _mask(visits.queries_1xUxJ, visits.queries_run_1xUxJ, visits)
        _, d_k, d_v = kernels._splash_attention_bwd_dkv(
            *arrays, mask_info=mask, bkv_compute=options.block_k, use_fused_bwd_kernel=False, **common
        )
        gradients = [x.astype(f32) for x in (d_q, d_k, d_v)]
        sums = gradients if sums is None else [x + y for x, y in zip(sums, gradients, strict=True)]
    d_q, d_k, d_v = (x.astype(like.dtype) for x, like in zip(sums, inputs, strict=True))
    return d_q, d_k, d_v, None


_attention.defvjp(_forward, _backward)
