"""FLOPs counted from the shape: against what XLA counts, against the definition of what attention sees, and LoRA."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qrpo_jax.devices.program import hlo
from qrpo_jax.devices.program.matmuls import matmul_flops
from qrpo_jax.model import decoder
from qrpo_jax.model.attention.rules import visible
from qrpo_jax.model.compute import DEFAULT
from qrpo_jax.model.flops import (
    Pairs,
    causal_pairs,
    forward_flops,
    layout_pairs,
    matmul_parameters,
    step_flops,
)
from qrpo_jax.model.layout import Layout
from qrpo_jax.model.lora import join
from qrpo_jax.model.settings import DecoderSettings, Lora

TINY = DecoderSettings(
    vocab_size=384, d_model=160, layers=3, heads=4, kv_heads=2, head_dim=64, d_ff=448, max_positions=64
)
B, L = 2, 48
# `plain` attention computes the scores of all pairs.
ALL = Pairs(B * L * L, B * L * L)


def executed(settings, lora=None, backward=True):
    """The compiled gradient of a sum over all logits, or the sum alone, and the FLOPs of its matrix products."""
    graph = decoder.graph(settings, lora)
    base, adapters = decoder.abstract_parameters(settings), decoder.abstract_parameters(settings, lora)
    tokens = jax.ShapeDtypeStruct((B, L), jnp.int32)
    layout = Layout(tokens, tokens, tokens)

    def total(trained, frozen, tokens_BxL, layout):
        model = nnx.merge(graph, join(frozen, trained))
        hidden_BxLxD, _ = model(tokens_BxL, layout, compute=DEFAULT)
        # Squared, or its gradient would not depend on the logits.
        return jnp.sum(model.logits(hidden_BxLxD) ** 2)

    f = jax.grad(total) if backward else total
    trained, frozen = (base, {}) if lora is None else (adapters, base)
    compiled = jax.jit(f).lower(trained, frozen, tokens, layout).compile()
    return matmul_flops(hlo.parse(compiled.as_text())), compiled


@pytest.mark.parametrize("activation", ["silu", "xielu"])
def test_a_step_is_what_xla_executes_without_recomputation(activation):
    settings = dataclasses.replace(TINY, activation=activation)
    counted, found = step_flops(settings, B * L, ALL).total, executed(settings)[0]
    np.testing.assert_allclose(found, counted, rtol=0.02)


def test_a_forward_pass_is_what_xla_executes_and_counts():
    counted = forward_flops(TINY, B * L, ALL).total
    found, _ = executed(TINY, backward=False)
    np.testing.assert_allclose(found, counted, rtol=0.02)
    # XLA's own count has norms and activations too, and counts a loop over layers as one round.
    one = dataclasses.replace(TINY, layers=1)
    _, compiled = executed(one, backward=False)
    np.testing.assert_allclose(compiled.cost_analysis()["flops"], forward_flops(one, B * L, ALL).total, rtol=0.1)


def test_adapters_spare_the_weight_gradients_of_their_base():
    lora = Lora(rank=8, alpha=16.0, matrices=("q", "v", "down"))
    counted, found = step_flops(TINY, B * L, ALL, lora=lora).total, executed(TINY, lora)[0]
    # The first layer's inputs need no gradient, which XLA sees and the count does not.
    np.testing.assert_allclose(found, counted, rtol=0.06)
    assert counted < 0.75 * step_flops(TINY, B * L, ALL).total


def test_six_flops_a_parameter_and_token():
    """The rule of thumb, with the published size of Llama 3.1 8B."""
    llama = DecoderSettings(128_256, 4096, 32, 32, 8, 128, 14336, 131_072, tie_embeddings=False)
    layers, head = matmul_parameters(llama)
    embedding, norms = 128_256 * 4096, 65 * 4096
    assert layers + head + embedding + norms == 8_030_261_248
    step = step_flops(llama, 1000, Pairs(0, 0))
    assert step.total == 6 * 1000 * (layers + head)
    assert step_flops(llama, 1000, Pairs(0, 0), with_reference=True).total == 8 * 1000 * (layers + head)
    assert step_flops(llama, 1000, Pairs(0, 0), targets=100).total == 6 * (1000 * layers + 100 * head)


def test_pairs_are_those_that_attention_sees():
    """Random rows with shared prompts, padding and a window."""
    random = np.random.default_rng(3)
    groups, segments, positions = (np.zeros((3, 101), np.int32) for _ in range(3))
    for row in range(3):
        at, group, slot = 0, 0, 0
        while at < 90:
            at += int(random.integers(0, 3))
            group += 1
            prompt = int(random.integers(0, 7))
            parts = [(0, np.arange(prompt))]
            for _ in range(int(random.integers(1, 4))):
                slot += 1
                parts.append((slot, prompt + np.arange(int(random.integers(1, 9)))))
            for segment, places in parts:
                end = min(at + len(places), 101)
                groups[row, at:end], segments[row, at:end] = group, segment
                positions[row, at:end] = places[: end - at]
                at = end
    layout = Layout(groups, segments, positions)
    for window in (None, 5):
        seen_BxLxL = np.asarray(visible(layout, layout, window))
        # Queries that are padding see nothing of their group, which is 0.
        assert layout_pairs(layout, window).sliding == seen_BxLxL.sum() or window is None
        assert layout_pairs(layout, window).all == np.asarray(visible(layout, layout)).sum()


def test_pairs_of_whole_rows_are_those_of_their_layout():
    row = np.arange(23, dtype=np.int32)[None].repeat(2, axis=0)
    layout = Layout(row * 0 + 1, row * 0, row)
    for window in (None, 1, 7, 23, 40):
        assert causal_pairs(2, 23, window)[window is not None] == layout_pairs(layout, window)[window is not None]


def test_sliding_layers_cost_less():
    sliding = dataclasses.replace(TINY, sliding_window=5, sliding_layers=(True, False, True))
    pairs = causal_pairs(B, L, 5)
    assert forward_flops(sliding, B * L, pairs).attention == 4 * 4 * 64 * (pairs.all + 2 * pairs.sliding)
    assert pairs.sliding < pairs.all
