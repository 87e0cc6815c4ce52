"""Values of states: what the head computes, what it leaves alone, and its gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.hugging_face.lora_targets import make_lora
from qrpo_jax.model import decoder, lora, value_head
from qrpo_jax.model.compute import Compute
from qrpo_jax.model.log_probs import log_probs_and_values
from qrpo_jax.model.token_log_probs import NO_TARGET
from qrpo_jax.training.state import forward_layout, parameter_layout
from tests.helpers import sequences, tiny
from tests.helpers.row_log_probs import row_log_probs
from tests.helpers.value_heads import filled, with_head

BATCH = tiny.batch(tiny.examples(14, pairs=True))
ROWS = BATCH.tokens_BxL, BATCH.layout, BATCH.targets_BxL
PREDICTED = BATCH.targets_BxL != NO_TARGET


@functools.cache
def scorer(compute=None, graph=tiny.GRAPH):
    compute = compute or Compute()
    return jax.jit(lambda p, *rows: log_probs_and_values(graph, p, *rows, vocab_chunk=7, compute=compute))


def moved(tree, path, by):
    return jax.tree.map_with_path(lambda p, x: x + by if p == path else x, tree)


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


@pytest.mark.parametrize("parameter, compute", [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16",) * 2])
def test_a_head_changes_no_bit_of_a_log_prob(parameter, compute):
    policy, run = cast(tiny.parameters(), parameter), scorer(Compute(dtype=jnp.dtype(compute)))
    alone, no_values = run(policy, *ROWS)
    beside, values = run(with_head(policy), *ROWS)
    assert no_values is None and np.array_equal(alone, beside), np.abs(alone - beside).max()
    assert values.dtype == jnp.float32 and np.std(values[PREDICTED]) > 0.5, values
    plain = jax.jit(
        lambda p: row_log_probs(tiny.GRAPH, p, *ROWS, vocab_chunk=7, compute=Compute(dtype=jnp.dtype(compute)))
    )
    assert np.array_equal(plain(with_head(policy)), alone)


@pytest.mark.parametrize("compute, bound", [("float32", 1e-5), ("bfloat16", 1e-5)])
def test_a_value_is_the_heads_product_with_the_hidden_state_that_predicts_the_token(compute, bound):
    """In NumPy's float64 from the hidden states; nothing but these is of the type of the computation."""
    dtype = jnp.dtype(compute)

    @jax.jit
    def hidden(parameters):
        return nnx.merge(tiny.GRAPH, parameters)(BATCH.tokens_BxL, BATCH.layout, compute=Compute(dtype=dtype))[0]

    hidden_BxLxD = np.asarray(hidden(tiny.parameters()).astype(jnp.float32), np.float64)
    expected = hidden_BxLxD @ np.asarray(filled()["kernel"], np.float64) + float(filled()["bias"])
    values = np.asarray(scorer(Compute(dtype=dtype))(with_head(), *ROWS)[1])
    assert PREDICTED.sum() == 72 and (~PREDICTED).sum() == 44
    assert (values[~PREDICTED] == 0).all()
    np.testing.assert_allclose(values[PREDICTED], expected[PREDICTED], rtol=0, atol=bound)


def test_a_new_head_values_every_state_at_0():
    values = scorer()(with_head(head=value_head.initial_head(tiny.SETTINGS.d_model)), *ROWS)[1]
    assert (np.asarray(values) == 0).all()


def test_values_of_packed_completions_are_those_of_each_alone():
    table = tiny.examples(14, pairs=True)
    packed = np.asarray(scorer()(with_head(), *ROWS)[1])
    for c, alone in enumerate(tiny.one_by_one(table)):
        b, s = np.argwhere(BATCH.example_BxS == c)[0]
        here = BATCH.layout.segments_BxL[b] == s + 1
        got = np.asarray(scorer()(with_head(), *alone[:3])[1])[alone.targets_BxL != NO_TARGET]
        assert len(got) == table.completions_C.length[c]
        np.testing.assert_allclose(packed[b][here], got, rtol=1e-5, atol=1e-5)


def test_a_value_depends_on_what_stands_before_its_token_and_on_nothing_else():
    """Not on the token itself, or a baseline of values would bias the policy's gradient; nor on siblings."""
    rng = np.random.default_rng(7)
    group = sequences.Group(*(rng.integers(1, 45, 5), tuple(rng.integers(1, 45, n) for n in (4, 3))))
    packed, length = sequences.pack([[group]], 13), 13
    tokens = np.tile(packed.tokens_BxL, (length + 1, 1))
    tokens[1:][np.diag_indices(length)] += 1
    layout = jax.tree.map(lambda x: np.tile(x, (length + 1, 1)), packed.layout)
    targets = np.tile(packed.targets_BxL, (length + 1, 1))
    values = np.asarray(scorer()(with_head(), tokens, layout, targets)[1])
    change = np.abs(values[1:] - values[0])  # by a change of the token that position i reads, at position j
    before = np.tril(np.ones((length, length), bool)).T  # j reads i or comes after it
    prompt, first, second = (np.isin(np.arange(length), places) for places in (range(4), range(4, 8), range(8, 11)))
    inside = (first[:, None] & first) | (second[:, None] & second) | (prompt[:, None] & (first | second))
    assert (change[~(before & inside)] == 0).all() and (change[before & inside] > 0).all(), change


def test_gradients_of_values_are_finite_differences_in_float64():
    """Of the head, and through the shared trunk of every array of the decoder that a hidden state depends on."""
    settings = dataclasses.replace(tiny.UNTIED, layers=2)
    graph, rng = decoder.graph(settings), np.random.default_rng(3)
    weights = rng.normal(size=BATCH.tokens_BxL.shape)
    with jax.enable_x64(True):
        wide = cast(with_head(tiny.parameters(settings)), jnp.float64)

        @jax.jit
        def loss(parameters):
            compute = Compute(dtype=jnp.float64, remat="full")
            log_probs, values = log_probs_and_values(graph, parameters, *ROWS, vocab_chunk=7, compute=compute)
            return (weights * (values**2 + values * log_probs)).sum()

        gradient, step = jax.jit(jax.grad(loss))(wide), 1e-5
        for path, slope in jax.tree.leaves_with_path(gradient):
            direction = rng.normal(size=slope.shape)
            ends = [float(loss(moved(wide, path, by * direction))) for by in (step, -step)]
            difference, product = (ends[0] - ends[1]) / (2 * step), float((slope * direction).sum())
            assert abs(product) > 1e-3, (jax.tree_util.keystr(path), product)
            assert product == pytest.approx(difference, rel=1e-6), jax.tree_util.keystr(path)


def test_a_head_beside_adapters_values_as_beside_the_joined_parameters():
    adapted = make_lora(tiny.SETTINGS, rank=3, alpha=5, targets=".*_proj")
    rng = np.random.default_rng(0)
    shapes = decoder.abstract_parameters(tiny.SETTINGS, adapted)
    adapters = jax.tree.map(lambda s: jnp.asarray(0.2 * rng.normal(size=s.shape), jnp.float32), shapes)
    run = scorer(graph=decoder.graph(tiny.SETTINGS, adapted))
    beside = run(lora.join(tiny.parameters(), with_head(adapters)), *ROWS)
    after = run(with_head(lora.join(tiny.parameters(), adapters)), *ROWS)
    assert all(np.array_equal(a, b) for a, b in zip(beside, after, strict=True))
    assert np.abs(beside[1] - scorer()(with_head(), *ROWS)[1])[PREDICTED].max() > 0.1


def test_split_takes_a_tree_apart_as_join_made_it():
    policy, head = value_head.split(with_head())
    tiny.assert_trees_equal(policy, tiny.parameters())
    tiny.assert_trees_equal(head, filled())
    assert value_head.split(tiny.parameters()) == (tiny.parameters(), None)


def test_the_layout_of_a_head_is_float32_split_as_norm_scales_are_and_kept_for_forward_passes():
    layout = parameter_layout(make_mesh(2, 2, 2), tiny.SETTINGS, jnp.bfloat16, with_value_head=True)
    policy, head = value_head.split(layout)
    assert policy == parameter_layout(make_mesh(2, 2, 2), tiny.SETTINGS, jnp.bfloat16)
    assert jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), head) == {
        "kernel": ((26,), "float32"),
        "bias": ((), "float32"),
    }
    assert head["kernel"].sharding == policy["norm"]["scale"].sharding
    assert head["bias"].sharding.spec == PartitionSpec()
    assert value_head.split(forward_layout(layout, jnp.bfloat16))[1] == head
