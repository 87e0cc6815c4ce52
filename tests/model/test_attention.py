"""Attention backends: another way to compute attention plugs in and changes no number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.errors import UserError
from qrpo_jax.model import attention, decoder
from qrpo_jax.model.attention import plain
from qrpo_jax.model.compute import Compute
from qrpo_jax.model.layout import Layout
from qrpo_jax.sampling.sampler import make_sampler
from tests.helpers import backends, sequences, tiny
from tests.helpers.row_log_probs import row_log_probs

BLOCK = 5  # does not divide the 13 tokens of a row
WINDOWS = dict(sliding_window=4, sliding_layers=(True, False, True))
CASES = {
    "plain": tiny.SETTINGS,
    "window": dataclasses.replace(tiny.SETTINGS, sliding_window=3),
    "windows of some layers": dataclasses.replace(tiny.SETTINGS, **WINDOWS),
    "soft cap": dataclasses.replace(tiny.SETTINGS, attention_cap=2.0, query_scalar=7),
    "soft cap and windows": dataclasses.replace(tiny.SETTINGS, attention_cap=2.0, **WINDOWS),
}
TOKENS = np.random.default_rng(1).integers(1, 46, (2, 13)).astype(np.int32)
# Two segments and padding in the first row; padding before and after one segment in the second.
SEGMENTS = np.asarray([[1] * 5 + [2] * 6 + [0] * 2, [0] * 1 + [1] * 11 + [0] * 1], np.int32)
POSITIONS = np.asarray([[*range(5), *range(6), 0, 0], [0, *range(11), 0]], np.int32)
LAYOUT = sequences.layout(SEGMENTS, POSITIONS)
ROWS = (TOKENS, LAYOUT, sequences.targets(TOKENS, (SEGMENTS > 0) & (POSITIONS > 1)))


def by_key_blocks(q, k, v, queries, keys, start, window, *, scale, cap):
    """The softmax as running sums over blocks of keys; queries that see no key return 0."""
    batch, length, heads, k_dim = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(batch, length, kv_heads, heads // kv_heads, k_dim) * (k_dim**-0.5 if scale is None else scale)
    missing = -length % BLOCK

    def blocks(x):
        x = jnp.pad(x, ((0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(batch, -1, BLOCK, *x.shape[2:]), 1, 0)

    def step(carry, block):
        high, total, mixed = carry
        k, v, *of_keys = block
        group, segment, position = (x[:, None] for x in of_keys)
        seen = (queries.groups_BxL[:, :, None] == group) & (group > 0)
        seen = seen & ((queries.segments_BxL[:, :, None] == segment) | (segment == 0))
        back = queries.positions_BxL[:, :, None] - position
        seen = seen & (back >= 0) & (True if window is None else back < window)
        scores = jnp.einsum("BLGRK,BMGK->BLGRM", q, k)
        scores = scores if cap is None else cap * jnp.tanh(scores / cap)
        scores = jnp.where(seen[:, :, None, None], scores, -1e30)
        new_high = jnp.maximum(high, scores.max(-1))
        weights = jnp.where(seen[:, :, None, None], jnp.exp(scores - new_high[..., None]), 0.0)
        shrink = jnp.exp(high - new_high)
        total = total * shrink + weights.sum(-1)
        mixed = mixed * shrink[..., None] + jnp.einsum("BLGRM,BMGK->BLGRK", weights, v)
        return (new_high, total, mixed), None

    start = (jnp.full(q.shape[:-1], -1e30), jnp.zeros(q.shape[:-1]), jnp.zeros(q.shape))
    (_, total, mixed), _ = jax.lax.scan(step, start, tuple(map(blocks, (k, v, *keys))))
    return (mixed / jnp.maximum(total, 1e-30)[..., None]).reshape(batch, length, heads, k_dim)


def value_and_gradient(settings, backend, remat="none"):
    """Log-probs of all targets, and the gradient of a weighted sum of them."""
    weights = np.random.default_rng(2).normal(size=TOKENS.shape).astype(np.float32)
    graph, compute = decoder.graph(settings), Compute(remat=remat, attention=backend)

    def total(parameters):
        log_probs_BxL = row_log_probs(graph, parameters, *ROWS, compute=compute)
        return jnp.sum(weights * log_probs_BxL), log_probs_BxL

    gradient, log_probs_BxL = jax.jit(jax.grad(total, has_aux=True))(tiny.parameters(settings))
    return log_probs_BxL, gradient


# The plain formula is the standard that all others are compared with.
OTHERS = {"key blocks": by_key_blocks, **backends.ALL}
del OTHERS["plain"]


@pytest.mark.parametrize("backend, case", backends.crossed(CASES, "soft cap and windows", OTHERS))
def test_a_backend_by_another_formula_gives_the_same_log_probs_and_gradients(backend, case):
    log_probs_BxL, gradient = value_and_gradient(
        CASES[case], OTHERS[backend], remat="full" if case == "plain" else "none"
    )
    expected_BxL, expected = value_and_gradient(CASES[case], plain.attend)
    np.testing.assert_allclose(log_probs_BxL, expected_BxL, rtol=1e-5, atol=1e-5)
    tiny.assert_trees_close(gradient, expected, rtol=1e-5, atol=1e-5 * tiny.largest(expected))


@pytest.mark.parametrize(
    "case, window, scale, cap",
    [("plain", None, None, None), ("window", 3, None, None), ("soft cap and windows", (), None, 2.0)]
    + [("soft cap", None, 7**-0.5, 2.0)],
)
def test_a_backend_receives_layouts_and_window_of_its_layer(case, window, scale, cap):
    """A window that differs between layers is a traced scalar, shape ()."""
    received = []

    def record(*arrays, **options):
        *arrays, start, window = arrays
        received.append((jax.tree.map(jnp.shape, arrays), start, getattr(window, "shape", window), options))
        return plain.attend(*arrays, start, window, **options)

    graph, shapes = decoder.graph(CASES[case]), decoder.abstract_parameters(CASES[case])
    compute = Compute(attention=record)
    jax.eval_shape(lambda p: row_log_probs(graph, p, *ROWS, compute=compute), shapes)
    layout = Layout((2, 13), (2, 13), (2, 13))
    expected = [(2, 13, 6, 10), (2, 13, 2, 10), (2, 13, 2, 10), layout, layout]
    assert received and all(each == (expected, 0, window, {"scale": scale, "cap": cap}) for each in received), received


def test_prompts_of_samples_pass_through_the_chosen_backend():
    prompts, lengths = TOKENS[:, :7], np.asarray([3, 7], np.int32)
    calls = []

    def counted(*arrays, **options):
        calls.append(1)
        return by_key_blocks(*arrays, **options)

    def draw(backend):
        options = dict(completions=3, max_new_tokens=5, temperature=0.8, end_tokens=(46,))
        sampler = make_sampler(tiny.GRAPH, **options, compute=Compute(attention=backend))
        return jax.jit(sampler)(tiny.parameters(), prompts, lengths, jax.random.split(jax.random.key(0), 2))

    samples, expected = draw(counted), draw(plain.attend)
    assert calls
    np.testing.assert_array_equal(samples.tokens_PxnxT, expected.tokens_PxnxT)
    np.testing.assert_allclose(samples.log_probs_Pxn, expected.log_probs_Pxn, rtol=1e-5)


def test_a_soft_cap_far_above_all_scores_changes_nothing():
    rng = np.random.default_rng(3)
    q, k, v = (rng.normal(size=(2, 13, heads, 10)).astype(np.float32) for heads in (6, 2, 2))
    run = jax.jit(plain.attend, static_argnames=("scale", "cap"))
    capped, uncapped = (run(q, k, v, LAYOUT, LAYOUT, 0, 4, scale=0.9, cap=cap) for cap in (1e4, None))
    np.testing.assert_allclose(capped[SEGMENTS > 0], uncapped[SEGMENTS > 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_a_name_chooses_a_backend_and_auto_the_best_of_the_platform(platform):
    best = {"gpu": "triton", "tpu": "splash"}
    assert attention.choose("plain", platform) is plain.attend
    for name, backend in best.items():
        assert (attention.choose("auto", platform) is attention.backend(backend)) == (name == platform)


def test_an_unknown_name_is_refused_with_those_that_exist():
    with pytest.raises(UserError, match="attention is 'fast'; allowed: auto, plain") as caught:
        attention.choose("fast", "cpu")
    assert caught.value.about == ("attention",)


def test_a_backend_of_another_platform_is_refused():
    with pytest.raises(UserError, match="attention is 'splash', which runs on tpu; these devices are cpu") as caught:
        attention.choose("splash", "cpu")
    assert caught.value.about == ("attention",)
