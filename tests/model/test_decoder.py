"""The decoder: which tokens each position depends on, and that it computes a Llama as defined."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qrpo_jax.devices.program.memory import memory
from qrpo_jax.errors import UserError
from qrpo_jax.model import decoder, rope
from qrpo_jax.model.cache import Order, start_cache
from qrpo_jax.model.compute import REMAT, Compute, check_remat
from qrpo_jax.model.layout import one_sequence
from qrpo_jax.model.settings import inverse_frequencies
from tests.helpers import sequences, tiny

TOKENS = np.random.default_rng(1).integers(1, 46, (2, 13)).astype(np.int32)
# Two segments and padding in the first row, one segment in the second.
SEGMENTS = np.asarray([[1] * 5 + [2] * 6 + [0] * 2, [1] * 13], np.int32)
POSITIONS = np.asarray([[*range(5), *range(6), 0, 0], [*range(13)]], np.int32)
LAYOUT = sequences.layout(SEGMENTS, POSITIONS)


def forward(settings, parameters, tokens, layout=LAYOUT, **options):
    graph = decoder.graph(settings)
    run = jax.jit(lambda p, *arrays: nnx.merge(graph, p)(*arrays, **options))
    return np.asarray(run(parameters, tokens, layout)[0])


@pytest.fixture(scope="module")
def hidden():
    return forward(tiny.SETTINGS, tiny.parameters(), TOKENS)


def plain_llama(settings, parameters, tokens):
    """Hidden states [L, D] of one sequence in float64, one layer, head and query at a time."""
    parameters = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters)

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + settings.norm_epsilon) * scale

    def rotated(x_LxK):
        half = settings.head_dim // 2
        angle = np.arange(len(x_LxK))[:, None] * inverse_frequencies(settings).astype(np.float64)
        spun = (x_LxK[:, :half] + 1j * x_LxK[:, half:]) * np.exp(1j * angle)
        return np.concatenate([spun.real, spun.imag], -1)

    x = parameters["embedding"][tokens]
    for n in range(settings.layers):
        layer = jax.tree.map(lambda p, n=n: p[n], parameters["layers"])
        y = norm(x, layer["attention_norm"]["scale"])
        for h in range(settings.heads):
            g = h // (settings.heads // settings.kv_heads)
            q, k = rotated(y @ layer["attention"]["q"][:, h]), rotated(y @ layer["attention"]["k"][:, g])
            v = y @ layer["attention"]["v"][:, g]
            for i in range(len(tokens)):
                score = np.exp(q[i] @ k[: i + 1].T / np.sqrt(settings.head_dim))
                x[i] = x[i] + (score / score.sum() @ v[: i + 1]) @ layer["attention"]["o"][h]
        y = norm(x, layer["mlp_norm"]["scale"])
        gate = y @ layer["mlp"]["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ layer["mlp"]["up"])) @ layer["mlp"]["down"]
    return norm(x, parameters["norm"]["scale"])


def test_forward_is_llama_written_as_loops(hidden):
    expected = plain_llama(tiny.SETTINGS, tiny.parameters(), TOKENS[1])
    np.testing.assert_allclose(hidden[1], expected, rtol=1e-4, atol=1e-5)


def test_packed_segments_are_independent_sequences(hidden):
    for columns in (slice(0, 5), slice(5, 11)):
        expected = plain_llama(tiny.SETTINGS, tiny.parameters(), TOKENS[0, columns])
        np.testing.assert_allclose(hidden[0, columns], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changed", [4, 7, 10, 12])
def test_a_token_changes_nothing_before_it_nor_in_other_segments(hidden, changed):
    tokens = TOKENS.copy()
    tokens[0, changed] = tokens[0, changed] % 45 + 1
    moved = np.abs(forward(tiny.SETTINGS, tiny.parameters(), tokens) - hidden).max(-1)
    may = (SEGMENTS[0] == SEGMENTS[0, changed]) & (np.arange(13) >= changed) | (SEGMENTS[0] == 0)
    assert (moved[0, ~may] == 0).all() and (moved[1] == 0).all(), moved
    assert (moved[0, (SEGMENTS[0] > 0) & may] > 0).all(), moved


def test_untied_head_and_not_the_embedding_makes_logits():
    parameters = tiny.parameters(tiny.UNTIED)
    model = nnx.merge(decoder.graph(tiny.UNTIED), parameters)
    x = np.random.default_rng(0).normal(size=(3, 26)).astype(np.float32)
    np.testing.assert_allclose(model.logits(x), x @ np.asarray(parameters["head"]).T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slots_last", [False, True])
def test_decoding_with_a_cache_equals_the_whole_forward(monkeypatch, slots_last):
    """n = 2 completions of prompts of different lengths, token by token, for both orders of the cache's axes."""
    order = Order(slots_last, pinned=not slots_last)
    monkeypatch.setattr(Compute, "cache_order", order)
    settings, parameters = tiny.SETTINGS, tiny.parameters()
    rng = np.random.default_rng(2)
    prompts, lengths, steps = rng.integers(1, 46, (2, 7)).astype(np.int32), np.asarray([3, 7], np.int32), 3
    answers = rng.integers(1, 46, (4, steps)).astype(np.int32)
    model = nnx.merge(decoder.graph(settings), parameters)
    within = np.broadcast_to(np.arange(7), (2, 7))
    _, (k, v) = model(prompts, one_sequence(lengths, within), keep_keys=True)
    cache = start_cache(k, v, jnp.asarray(lengths), 2, steps, settings, order)
    decode = jax.jit(lambda p, tokens, c: nnx.merge(decoder.graph(settings), p).decode(tokens, c))
    got = []
    for t in range(steps):
        step, cache = decode(parameters, answers[:, t], cache)
        got.append(step)
    for b in range(4):
        whole = np.concatenate([prompts[b // 2, : lengths[b // 2]], answers[b]])
        expected = plain_llama(settings, parameters, whole)[-steps:]
        np.testing.assert_allclose(np.stack(got, 1)[b], expected, rtol=1e-4, atol=1e-5)


@functools.cache
def value_and_gradient(remat):
    def loss(parameters):
        model = nnx.merge(tiny.GRAPH, parameters)
        return jnp.sum(jnp.sin(model(TOKENS, LAYOUT, compute=Compute(remat=remat))[0]))

    return jax.jit(jax.value_and_grad(loss))(tiny.parameters())


@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
def test_remat_changes_neither_value_nor_gradient(remat):
    tiny.assert_trees_close(value_and_gradient("none"), value_and_gradient(remat), rtol=1e-4, atol=1e-5)


def gradient(remat, unroll, layers=7):
    """The gradient of a model for a row that is long for it, and parameters for it."""
    settings = dataclasses.replace(tiny.SETTINGS, layers=layers)
    graph, compute = decoder.graph(settings), Compute(remat=remat, unroll=unroll)
    tokens = jnp.ones((1, 307), jnp.int32)
    layout = one_sequence(jnp.asarray([307]), jnp.arange(307)[None])

    def loss(parameters):
        return jnp.sum(nnx.merge(graph, parameters)(tokens, layout, compute=compute)[0])

    return jax.grad(loss), decoder.abstract_parameters(settings)


def test_what_is_recomputed_is_not_kept():
    kept, recomputed = (
        memory(jax.jit(of).lower(parameters).compile()).temporaries
        for of, parameters in (gradient("none", unroll=1), gradient("full", unroll=1))
    )
    assert recomputed < 0.5 * kept, (recomputed, kept)


@pytest.mark.parametrize(("unroll", "barriers"), [(1, False), (3, False), (7, True), (8, True)])
def test_without_a_loop_barriers_keep_the_compiler_from_merging_both_passes(unroll, barriers):
    of, parameters = gradient("full", unroll)
    program = str(jax.make_jaxpr(of)(parameters))
    assert f"prevent_cse={barriers}" in program and f"prevent_cse={not barriers}" not in program


def test_an_unknown_remat_is_refused_with_those_that_exist():
    with pytest.raises(UserError, match="remat is 'some'; allowed: none, dots, attention, full, offload") as caught:
        check_remat("some")
    assert caught.value.about == ("remat",)


def test_bfloat16_compute_stays_near_float32(hidden):
    low = forward(tiny.SETTINGS, tiny.parameters(), TOKENS, compute=Compute(jnp.bfloat16)).astype(np.float32)
    assert np.abs(low - hidden)[SEGMENTS > 0].max() < 0.15 * np.abs(hidden).max()


def test_program_does_not_grow_with_depth():
    def equations(layers):
        settings = dataclasses.replace(tiny.SETTINGS, layers=layers)
        graph, shapes = decoder.graph(settings), decoder.abstract_parameters(settings)
        jaxpr = jax.make_jaxpr(lambda p: nnx.merge(graph, p)(TOKENS, LAYOUT)[0])(shapes)
        return str(jaxpr).count("\n")

    assert equations(2) == equations(11)


def test_llama3_scaling_keeps_short_wavelengths_and_stretches_long_ones():
    scaling = rope.RopeScaling(
        factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_max_positions=61
    )
    settings = dataclasses.replace(tiny.SETTINGS, head_dim=62)
    plain = inverse_frequencies(settings)
    ratio = inverse_frequencies(dataclasses.replace(settings, rope_scaling=scaling)) / plain
    turns = 61 * plain / (2 * np.pi)
    np.testing.assert_allclose(ratio[turns > 4], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[turns < 1], 1 / 8, rtol=1e-6)
    between = ratio[(turns > 1) & (turns < 4)]
    assert len(between) and ((between > 1 / 8) & (between < 1)).all() and (np.diff(ratio) <= 1e-6).all()


@pytest.mark.parametrize("settings", [tiny.SETTINGS, tiny.UNTIED])
def test_axes_shapes_and_count_describe_the_parameters(settings):
    parameters, axes = tiny.parameters(settings), decoder.logical_axes(settings)
    named = jax.tree.map(lambda p, names: (p.ndim, len(names)), parameters, axes)
    assert all(a == b for a, b in jax.tree.leaves(named, is_leaf=lambda x: isinstance(x, tuple)))
    shapes = jax.tree.map(lambda p: (p.shape, p.dtype), parameters)
    assert shapes == jax.tree.map(lambda p: (p.shape, p.dtype), decoder.abstract_parameters(settings))
    assert decoder.parameter_count(settings) == sum(p.size for p in jax.tree.leaves(parameters))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layers": 0}, "layers is 0"),
        ({"heads": 7}, "7 heads and 2 kv_heads"),
        ({"head_dim": 7}, "head_dim is 7"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(tiny.SETTINGS, **change)
