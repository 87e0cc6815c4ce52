"""Completions that share a copy of their prompt have the log-probs and gradients of separate rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.model import decoder
from qrpo_jax.model.compute import Compute
from qrpo_jax.model.token_log_probs import NO_TARGET
from tests.helpers import backends, sequences, tiny
from tests.helpers.row_log_probs import row_log_probs

LENGTH = 43
WINDOWS = dict(sliding_window=5, sliding_layers=(True, False, True))  # shorter than most prompts
CASES = {
    "plain": tiny.SETTINGS,
    "windows of some layers": dataclasses.replace(tiny.SETTINGS, **WINDOWS),
    "soft caps and windows": dataclasses.replace(tiny.SETTINGS, attention_cap=2.0, logit_cap=3.0, **WINDOWS),
}


def drawn(seed):
    """The same completions with shared prompts in packed rows, and each in a row of its own."""
    rng = np.random.default_rng(seed)
    groups = sequences.random_groups(rng, 6, tiny.SETTINGS.vocab_size)
    shared = sequences.pack_randomly(rng, groups, LENGTH)
    apart = sequences.pack([[one] for group in groups for one in group.apart()], 17)
    return shared, apart


def value_and_gradient(settings, packed, compute, parameters):
    """Log-probs of all targets in order, and the gradient of a weighted sum of them."""
    chosen = packed.targets_BxL != NO_TARGET
    weights_BxL = np.zeros(chosen.shape, np.float32)
    weights_BxL[chosen] = np.random.default_rng(2).normal(size=chosen.sum())
    graph = decoder.graph(settings)

    def total(parameters):
        log_probs_BxL = row_log_probs(graph, parameters, *packed, vocab_chunk=17, compute=compute)
        return jnp.sum(weights_BxL * log_probs_BxL), log_probs_BxL

    gradient, log_probs_BxL = jax.jit(jax.grad(total, has_aux=True))(parameters)
    return np.asarray(log_probs_BxL)[chosen], gradient


@pytest.mark.parametrize("backend, case", backends.crossed(CASES, "soft caps and windows"))
def test_shared_prompts_are_separate_rows(backend, case):
    shared, apart = drawn(list(CASES).index(case))
    assert (shared.layout.groups_BxL > 0).sum() < (apart.layout.groups_BxL > 0).sum()
    run = CASES[case], shared, Compute(attention=backends.ALL[backend]), tiny.parameters(CASES[case])
    log_probs, gradient = value_and_gradient(*run)
    expected_log_probs, expected = value_and_gradient(CASES[case], apart, Compute(), tiny.parameters(CASES[case]))
    np.testing.assert_allclose(log_probs, expected_log_probs, rtol=1e-5, atol=1e-5)
    tiny.assert_trees_close(gradient, expected, rtol=1e-5, atol=1e-5 * tiny.largest(expected))


@pytest.mark.parametrize("case, seed", zip(CASES, (3, 4, 5), strict=True))
def test_shared_prompts_are_separate_rows_in_float64(case, seed):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tiny.parameters(CASES[case]))
        got, want = (value_and_gradient(CASES[case], one, Compute(jnp.float64), wide) for one in drawn(seed))
        assert got[0].dtype == np.float64
        np.testing.assert_allclose(got[0], want[0], rtol=1e-12, atol=1e-12)
        tiny.assert_trees_close(got[1], want[1], rtol=1e-11, atol=1e-12 * tiny.largest(want[1]))


def test_a_completion_depends_on_its_prompt_and_on_no_sibling():
    """Log-probs of the second of three completions, after a change of one token of the row."""
    rng = np.random.default_rng(7)
    group = sequences.Group(*(rng.integers(1, 45, 5), tuple(rng.integers(1, 45, n) for n in (4, 3, 5))))
    packed = sequences.pack([[group, group]], 37)
    tokens = np.tile(packed.tokens_BxL, (38, 1))
    tokens[1:][np.diag_indices(37)] += 1
    layout = jax.tree.map(lambda x: np.tile(x, (38, 1)), packed.layout)
    targets = np.tile(packed.targets_BxL, (38, 1))
    score = jax.jit(lambda p, *rows: row_log_probs(tiny.GRAPH, p, *rows))
    second = np.asarray(score(tiny.parameters(), tokens, layout, targets))[:, 8:11]
    moved = np.abs(second[1:] - second[0]).max(1)
    seen = np.isin(np.arange(37), (0, 1, 2, 3, 8, 9, 10))  # the shared part of the prompt, and its own tokens
    assert (moved[~seen] == 0).all() and (moved[seen] > 0).all(), moved
