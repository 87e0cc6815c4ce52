"""Attention by blocks equals the plain formula, skips what no query sees, and stores no scores of whole rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.devices.program import hlo
from qrpo_jax.devices.program.memory import large_arrays
from qrpo_jax.model import attention
from qrpo_jax.model.attention import blocks, plain
from qrpo_jax.model.layout import Layout, one_sequence
from tests.helpers.attention_cases import CASES, both, distance, draw
from tests.helpers.packings import random_layout
from tests.helpers.samples import sampled


@pytest.mark.parametrize("case", sampled(CASES))
def test_float32_outputs_and_gradients(case):
    heads, kv_heads, k_dim, window, scale, cap = CASES[case]
    rng = np.random.default_rng(list(CASES).index(case))
    layout = random_layout(rng, rows=2, length=149, longest=29)
    *arrays, d_out = draw(rng, layout, heads, kv_heads, k_dim)
    got, want = (
        both(attend, layout, 0, window, arrays, d_out, scale=scale, cap=cap) for attend in (blocks.attend, plain.attend)
    )
    errors = distance(got, want, layout)
    assert max(errors) < 1e-5, errors


@pytest.mark.parametrize("seed", range(3))
def test_float64_outputs_and_gradients(seed):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        layout = random_layout(rng, rows=3, length=113, longest=17)
        *arrays, d_out = draw(rng, layout, 4, 2, 7, np.float64)
        got, want = (both(attend, layout, 0, 13, arrays, d_out, cap=2.0) for attend in (blocks.attend, plain.attend))
        assert {x.dtype for x in got} == {jnp.dtype("float64")}
        errors = distance(got, want, layout)
    assert max(errors) < 1e-13, errors


@pytest.mark.parametrize("seed", range(3))
def test_bfloat16_is_as_close_to_float32_as_the_plain_formula_is(seed):
    rng = np.random.default_rng(seed)
    layout = random_layout(rng, rows=2, length=128, longest=40)
    low = draw(rng, layout, 4, 2, 16, jnp.bfloat16)
    *exact, exact_d_out = (x.astype(jnp.float32) for x in low)
    *low, d_out = low
    want = both(plain.attend, layout, 0, None, exact, exact_d_out)
    ours, plains = (
        distance(both(attend, layout, 0, None, low, d_out), want, layout) for attend in (blocks.attend, plain.attend)
    )
    assert max(ours) < 1.5 * max(plains) and max(ours) < 0.02, (ours, plains)


def test_padding_returns_0_and_has_no_gradient_whatever_comes_back_for_it():
    rng = np.random.default_rng(5)
    layout = random_layout(rng, rows=2, length=97, longest=23)
    padding = np.asarray(layout.groups_BxL) == 0
    *arrays, d_out = draw(rng, layout, 4, 2, 16)
    found = both(blocks.attend, layout, 0, None, arrays, jnp.ones_like(d_out))
    assert padding.any()
    for x in map(np.asarray, found):
        assert np.isfinite(x).all() and not x[padding].any()


def test_queries_of_a_part_of_the_row():
    """Rows split over the mesh: the parts' outputs are those of the row, and their gradients by keys add up to it."""
    rng = np.random.default_rng(6)
    layout = random_layout(rng, rows=2, length=141, longest=23)
    q, k, v, d_out = draw(rng, layout, 4, 2, 16)
    out, d_q, d_k, d_v = both(plain.attend, layout, 0, 9, (q, k, v), d_out)
    total_k, total_v = jnp.zeros_like(d_k), jnp.zeros_like(d_v)
    for start in range(0, 141, 47):
        at = slice(start, start + 47)
        queries = Layout(*(x[:, at] for x in layout))
        part = both(blocks.attend, layout, jnp.int32(start), 9, (q[:, at], k, v), d_out[:, at], queries)
        assert max(distance(part[:2], (out[:, at], d_q[:, at]), queries)) < 1e-5
        total_k, total_v = total_k + part[2], total_v + part[3]
    assert max(distance((total_k, total_v), (d_k, d_v), layout)) < 1e-5


def test_blocks_of_keys_that_no_query_sees_are_not_read():
    """Values of all other blocks are NaN. That a score is hidden would not help: 0 times NaN is NaN."""
    size = blocks.block_tokens(160, 2, 8)
    groups = np.repeat(np.arange(1, 6), size)[None].astype(np.int32)
    positions = np.tile(np.arange(size, dtype=np.int32), 5)[None]
    layout = Layout(jnp.asarray(groups), jnp.zeros_like(groups), jnp.asarray(positions))
    q, k, v, d_out = draw(np.random.default_rng(7), layout, 2, 1, 8)
    want = both(blocks.attend, layout, 0, None, (q, k, v), d_out)
    own = groups[0] == 3
    spoiled = jnp.where(own[None, :, None, None], v, jnp.nan)
    got = both(blocks.attend, layout, 0, None, (q, k, spoiled), d_out)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a[:, own], b[:, own])


def test_no_array_has_as_many_elements_as_queries_times_keys():
    length, heads = 2048, 2
    layout = one_sequence(jnp.asarray([length]), jnp.arange(length, dtype=jnp.int32)[None])

    def loss(q, k, v):
        return blocks.attend(q, k, v, layout, layout, 0, None, scale=None, cap=None).sum()

    q, k = (jax.ShapeDtypeStruct((1, length, h, 16), jnp.float32) for h in (heads, 1))
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, k).compile()
    module, inputs = hlo.parse(compiled.as_text()), length * heads * 16
    assert large_arrays(module, inputs), "the queries themselves must be found"
    assert not (found := large_arrays(module, inputs + 1)), found


@pytest.mark.parametrize("length", [1, 7, 64, 65, 448, 4097])
@pytest.mark.parametrize("heads, k_dim", [(8, 8), (4, 32), (32, 128)])
def test_blocks_fill_rows_up_by_less_than_8_tokens_a_block(length, heads, k_dim):
    size = blocks.block_tokens(length, heads, k_dim)
    assert size % 8 == 0 and -length % size < 8 * -(-length // size), size


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu", "metal"])
def test_every_platform_has_it_and_those_without_kernels_get_it_by_default(platform):
    assert attention.choose("blocks", platform) is blocks.attend
    assert (attention.choose("auto", platform) is blocks.attend) == (attention.best(platform).name == "blocks")
    assert attention.best("metal") == ("blocks", None)
