"""Splash attention by Pallas' interpreter: the numbers of the plain formula, from blocks where something is visible."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.errors import UserError
from qrpo_jax.model.attention import plain, splash
from qrpo_jax.model.attention.rules import visible
from qrpo_jax.model.layout import Layout
from tests.helpers.programs import equations

LENGTH = 389  # four blocks of 128, the last one not full
NO_LIMIT = np.int32(np.iinfo(np.int32).max)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(splash, "BLOCK", 128)


def random_rows(seed, batch=2, length=LENGTH, most=4):
    """Groups of random size with up to `most` completions, and padding between them; some prompts have no token."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((3, batch, length), np.int32)
    for row in range(batch):
        at, group, slot = rng.integers(9), 1, 1
        while True:
            prompt, completions = rng.integers(100), rng.integers(1, 70, rng.integers(1, most + 1))
            if at + prompt + completions.sum() > length:
                break
            for segment, begin, tokens in [(0, 0, prompt)] + [(slot + i, prompt, n) for i, n in enumerate(completions)]:
                part = rows[:, row, at : at + tokens]
                part[0], part[1], part[2] = group, segment, begin + np.arange(tokens)
                at += tokens
            group, slot = group + 1, slot + len(completions)
            at += rng.integers(4)
    return Layout(*rows)


def inputs(heads, kv_heads, k_dim, batch=2, length=LENGTH, dtype=np.float32):
    """Queries, keys, values, and a gradient of the output."""
    rng = np.random.default_rng(heads * k_dim)
    return [jnp.asarray(rng.normal(size=(batch, length, n, k_dim)), dtype) for n in (heads, kv_heads, kv_heads, heads)]


def output_and_gradients(backend, arrays, keys, window=None, **options):
    """Output at tokens that are not padding, and gradients of its product with the last array."""
    *arrays, weights = arrays
    tokens = (keys.groups_BxL > 0)[..., None, None]

    def total(q, k, v, keys, window):
        out = jnp.where(tokens, backend(q, k, v, keys, keys, 0, window, **{"scale": None, "cap": None} | options), 0)
        return jnp.sum((out * weights).astype(jnp.float32)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*arrays, keys, window)
    return [out, *gradients]


def assert_close(results, expected, tolerance):
    for name, x, y in zip(("output", "d_q", "d_k", "d_v"), results, expected, strict=True):
        assert np.isfinite(x).all(), name
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * np.abs(y).max(), err_msg=name)


interpreted = partial(splash.attend, interpret=True)


@pytest.mark.parametrize(
    "heads, kv_heads, k_dim, options",
    [
        pytest.param(2, 2, 64, dict(), id="head size 64", marks=pytest.mark.slow),
        pytest.param(6, 2, 128, dict(), id="grouped heads of size 128"),
        pytest.param(3, 1, 96, dict(cap=2.0), id="soft cap, one kv-head of size 96"),
        pytest.param(2, 1, 256, dict(scale=0.2, window=np.int32(83)), id="window, scale, size 256"),
        pytest.param(2, 1, 64, dict(cap=5.0, window=np.int32(2)), id="window of two tokens"),
        pytest.param(2, 1, 64, dict(window=NO_LIMIT), id="window without limit", marks=pytest.mark.slow),
    ],
)
def test_outputs_and_gradients_are_those_of_the_plain_formula(heads, kv_heads, k_dim, options):
    """Windows are traced, as in a scan over layers."""
    arrays, keys = inputs(heads, kv_heads, k_dim), random_rows(k_dim)
    expected = output_and_gradients(plain.attend, arrays, keys, **options)
    assert_close(output_and_gradients(interpreted, arrays, keys, **options), expected, 1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_random_packings(seed):
    """Every second one is over rows without shared prompts, where one pass is enough."""
    shared = seed % 2 == 0
    keys = random_rows(seed, most=5 if shared else 1)
    window = None if seed % 3 else np.int32(50)
    longest = max(np.bincount(row[row > 0]).max() for row in keys.groups_BxL)
    arrays = inputs(2, 1, 64)
    expected = output_and_gradients(plain.attend, arrays, keys, window)
    options = dict(shared=shared, longest=int(longest))
    assert_close(output_and_gradients(interpreted, arrays, keys, window, **options), expected, 1e-5)


def test_one_pass_misses_what_shared_prompts_need():
    """Otherwise `shared` would save nothing."""
    keys, arrays = random_rows(0), inputs(2, 1, 64)
    expected = output_and_gradients(plain.attend, arrays, keys)[0]
    assert np.abs(output_and_gradients(interpreted, arrays, keys, shared=False)[0] - expected).max() > 0.1


def test_bfloat16_is_within_rounding_of_the_plain_formula_in_float32():
    """Rounded are the scaled queries, the output of each pass, and the gradients: 2^-8 each."""
    shape = dict(batch=1, length=250)
    arrays, keys = inputs(2, 1, 128, dtype=jnp.bfloat16, **shape), random_rows(3, **shape)
    results = output_and_gradients(interpreted, arrays, keys)
    assert all(x.dtype == jnp.bfloat16 for x in results)
    expected = output_and_gradients(plain.attend, [x.astype(jnp.float32) for x in arrays], keys)
    assert_close(results, expected, 0.02)


def test_padding_takes_and_gives_no_gradient():
    arrays, keys = inputs(2, 1, 64), random_rows(1)
    padding = keys.groups_BxL == 0
    assert padding.any()
    unmasked = []

    def recorded(*args, **options):
        out = interpreted(*args, **options)
        jax.debug.callback(unmasked.append, out)
        return out

    for gradient in output_and_gradients(recorded, arrays, keys)[1:]:
        np.testing.assert_array_equal(gradient[padding], 0)
    jax.effects_barrier()
    assert np.isfinite(unmasked[0]).all()


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_rows_give_the_output_of_whole_rows(parts):
    """The queries of a context-parallel device; where they begin is traced."""
    length = 128 * parts + 64 * parts
    (q, k, v, _), keys = inputs(4, 2, 64, length=length), random_rows(2, length=length)
    expected = plain.attend(q, k, v, keys, keys, 0, np.int32(90), scale=None, cap=None)

    @jax.jit
    def part(start):
        def cut(x):
            return jax.lax.dynamic_slice_in_dim(x, start, length // parts, axis=1)

        queries = Layout(*map(cut, keys))
        return interpreted(cut(q), k, v, queries, keys, start, np.int32(90), scale=None, cap=None)

    out = np.concatenate([part(np.int32(i * length // parts)) for i in range(parts)], axis=1)
    tokens = keys.groups_BxL > 0
    np.testing.assert_allclose(out[tokens], expected[tokens], rtol=1e-5, atol=1e-5)


def test_more_rows_than_a_call_takes_go_one_call_after_another(monkeypatch):
    monkeypatch.setattr(splash, "LARGEST", 2 * 512)
    arrays, keys = inputs(2, 1, 64, batch=4), random_rows(4, batch=4)
    expected = output_and_gradients(plain.attend, arrays, keys)
    assert_close(output_and_gradients(interpreted, arrays, keys), expected, 1e-5)


@pytest.mark.parametrize("window", [None, 40])
def test_kernels_visit_the_blocks_in_which_a_query_sees_a_key(window):
    batch, length, block = 3, 640, 128
    keys = random_rows(5, batch, length)
    seen = np.asarray(visible(keys, keys, window)) | np.eye(length, dtype=bool)[None]  # padding sees itself
    blocks = seen.reshape(batch, length // block, block, length // block, block).any((2, 4))
    expected = {(b * 5 + i, b * 5 + j) for b, i, j in zip(*np.nonzero(blocks), strict=True)}
    from_queries, from_keys = set(), set()
    for span in splash.spans(Layout(*map(jnp.asarray, keys)), window):
        visits = splash._visits(span, length, splash.Options(block, block, None, True), None)
        for i, (to, run) in enumerate(zip(visits.keys_1xIxW[0], visits.keys_run_1xIxW[0], strict=True)):
            from_queries |= {(i, int(j)) for j in to[run > 0]}
        for j, (to, run) in enumerate(zip(visits.queries_1xUxJ[0].T, visits.queries_run_1xUxJ[0].T, strict=True)):
            from_keys |= {(int(i), j) for i in to[run > 0]}
    assert from_queries == expected and from_keys == expected
    assert len(expected) < batch * 5 * 6 / 2  # fewer than causal blocks


def test_the_longest_group_bounds_the_grid():
    keys = Layout(*(jnp.ones((1, 4096), jnp.int32) for _ in range(3)))
    span, options = splash.spans(keys, None)[0], splash.Options(128, 128, None, True)
    widths = [splash._visits(span, 4096, options, longest).keys_1xIxW.shape[2] for longest in (None, 4096, 300, 1)]
    assert widths == [32, 32, 5, 3]


def traced(backend, length):
    """All equations of output and gradients for one row."""
    keys = Layout(*np.zeros((3, 1, length), np.int32))
    arrays = [jax.ShapeDtypeStruct((1, length, heads, 64), np.float32) for heads in (2, 1, 1, 2)]
    return list(equations(jax.make_jaxpr(partial(output_and_gradients, backend, keys=keys))(arrays).jaxpr))


def test_no_array_has_queries_times_keys_elements():
    for backend, below in (splash.attend, True), (plain.attend, False):
        outputs = [v.aval for equation in traced(backend, 4096) for v in equation.outvars]
        assert (max(np.prod(x.shape, dtype=int) for x in outputs if hasattr(x, "shape")) < 4096**2) == below


def test_the_policy_attention_keeps_output_and_log_sum_exp(capsys):
    arrays, keys = inputs(2, 1, 64, batch=1, length=128), Layout(*np.ones((3, 1, 128), np.int32))
    policy = jax.checkpoint_policies.save_only_these_names("attention")

    @partial(jax.checkpoint, policy=policy)
    def kept(q, k, v):
        return splash.attend(q, k, v, keys, keys, 0, None, scale=None, cap=None)

    jax.ad_checkpoint.print_saved_residuals(kept, *arrays[:3])
    named = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "named 'attention'" in line]
    assert named == ["f32[2,128,64]", "f32[2,128]"]


def test_rows_that_cannot_be_counted_are_refused():
    shapes = [jax.ShapeDtypeStruct((1, 65537, 1, 64), np.float32)] * 3
    layout = Layout(*[jax.ShapeDtypeStruct((1, 65537), np.int32)] * 3)
    with pytest.raises(UserError, match="rows of up to 65536 tokens") as caught:
        jax.eval_shape(lambda q, k, v, x: splash.attend(q, k, v, x, x, 0, None, scale=None, cap=None), *shapes, layout)
    assert caught.value.about == ("attention",)


COMPILE = """
import jax, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from qrpo_jax.model.attention import splash
from qrpo_jax.model.layout import Layout

devices = np.asarray(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)
mesh = Mesh(devices.reshape(1, 2, 2), ("data", "tensor", "context"))
queries, keys = P("data", "context", "tensor"), P("data", None, "tensor")

def local(q, k, v, layout, window):
    start = jax.lax.axis_index("context") * q.shape[1]
    part = Layout(*(jax.lax.dynamic_slice_in_dim(x, start, q.shape[1], axis=1) for x in layout))
    return splash.attend(q, k, v, part, layout, start, window, scale=None, cap=CAP)

def loss(*arrays):
    specs = (queries, keys, keys, P("data"), P())
    attend = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=queries, check_vma=False)
    attend = jax.checkpoint(attend, policy=jax.checkpoint_policies.save_only_these_names("attention"))
    return (attend(*arrays).astype("float32") ** 2).sum()

def shape(dims, dtype, spec):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, spec))

for K, CAP, dtype in (64, None, "bfloat16"), (96, None, "bfloat16"), (128, 50.0, "bfloat16"), (256, None, "float32"):
    q, k = shape((2, 3000, 4, K), dtype, queries), shape((2, 3000, 2, K), dtype, keys)
    layout, window = Layout(*[shape((2, 3000), "int32", P("data"))] * 3), shape((), "int32", P())
    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k, layout, window).compile().as_text()
    print("calls", sum('custom_call_target="tpu_custom_call"' in line for line in text.splitlines()))
"""


@pytest.mark.slow
def test_the_kernels_compile_for_tpu():
    """Ahead of time, in a process of its own: two passes with three kernels each, as the forward ones run once."""
    pytest.importorskip("libtpu")
    root = Path(__file__).resolve().parents[2]
    names = dict(TPU_SKIP_MDS_QUERY="1", JAX_PLATFORMS="cpu", ALLOW_MULTIPLE_LIBTPU_LOAD="1", PYTHONPATH=str(root))
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | names
    run = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert run.stdout.split() == ["calls", "6"] * 4, run.stdout + run.stderr
