"""Log-probabilities: chunked = full, packed = unpacked, and only completions count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.data.loader import assemble
from qrpo_jax.data.packing import Plan
from qrpo_jax.model import log_probs
from qrpo_jax.training.step import LogProbSettings, completion_log_probs
from tests.helpers import sequences, tiny
from tests.helpers.row_log_probs import row_log_probs

TABLE = tiny.examples(11)


@functools.cache
def scorer(settings):
    return jax.jit(lambda p, b: completion_log_probs(tiny.GRAPH, p, b, settings))


def scored(batch, **settings):
    return np.asarray(scorer(LogProbSettings(**settings))(tiny.parameters(), batch))


def spread_out():
    """One completion a row."""
    alone, ends = np.arange(11, dtype=np.int32), np.arange(12)
    tokens = int(TABLE.packing_units().tokens_U(share=False).sum())
    return assemble(TABLE, Plan(alone, ends, ends, np.asarray([0, 11]), 11, 29, 4, tokens, tokens), 0)


@pytest.fixture(scope="module")
def unpacked():
    return scored(spread_out())[:, 0]


@pytest.mark.parametrize("row_tokens, slots, row_multiple", [(29, 4, 11), (17, 2, 7)])
def test_packing_does_not_change_a_completions_log_prob(unpacked, row_tokens, slots, row_multiple):
    batch = tiny.batch(TABLE, row_tokens=row_tokens, slots=slots, row_multiple=row_multiple)
    assert batch.present_BxS.sum(1).max() > 1
    got = scored(batch)
    np.testing.assert_allclose(got[batch.present_BxS], unpacked[batch.example_BxS[batch.present_BxS]], rtol=2e-5)
    assert (got[~batch.present_BxS] == 0).all()


def test_padding_does_not_change_a_completions_log_prob(unpacked):
    """Compared with batches of one completion, exactly as long as it is."""
    for c, batch in enumerate(tiny.one_by_one(TABLE)[:3]):
        np.testing.assert_allclose(scored(batch), [[unpacked[c]]], rtol=2e-5)


def test_packing_does_not_change_the_gradient():
    def total(parameters, batch):
        weights = jnp.where(batch.example_BxS >= 0, 1.0 + batch.example_BxS % 5, 0.0)
        return jnp.sum(weights * completion_log_probs(tiny.GRAPH, parameters, batch, LogProbSettings()))

    gradient = jax.jit(jax.grad(total))
    packed = gradient(tiny.parameters(), tiny.batch(TABLE, row_multiple=11))
    apart = gradient(tiny.parameters(), spread_out())
    tiny.assert_trees_close(packed, apart, rtol=1e-4, atol=1e-5 * tiny.largest(packed))


def test_tokens_in_padding_change_nothing():
    batch = tiny.batch(TABLE, row_multiple=11)
    noise = np.random.default_rng(0).integers(0, 46, batch.tokens_BxL.shape)
    tokens = np.where(batch.layout.groups_BxL == 0, noise, batch.tokens_BxL).astype(np.int32)
    np.testing.assert_array_equal(scored(batch), scored(batch._replace(tokens_BxL=tokens)))


def test_chunks_change_no_completion():
    batch = tiny.batch(TABLE, row_multiple=11)
    np.testing.assert_allclose(scored(batch, vocab_chunk=7), scored(batch), rtol=2e-6, atol=2e-6)


def test_next_token_probabilities_add_up_to_one():
    """Over all 46 ways to end the same sequence, at a temperature."""
    length = 5
    tokens = np.tile(np.random.default_rng(4).integers(1, 46, length), (46, 1)).astype(np.int32)
    tokens[:, -1] = np.arange(46)
    shape = (46, length)
    targets = sequences.targets(tokens, np.broadcast_to(np.arange(length) == length - 1, shape))
    run = jax.jit(lambda p, *arrays: row_log_probs(tiny.GRAPH, p, *arrays, temperature=0.7))
    got = np.asarray(run(tiny.parameters(), tokens, sequences.one_a_row(shape), targets))
    assert (np.delete(got, -2, 1) == 0).all()
    assert abs(np.exp(got[:, -2]).sum() - 1) < 1e-5, np.exp(got[:, -2]).sum()


def test_sums_go_to_the_slot_of_their_segment():
    values = np.asarray([[1.0, 2, 4, 8, 16, np.nan]], np.float32)
    segments = np.asarray([[1, 1, 3, 3, 3, 0]])
    np.testing.assert_array_equal(log_probs.sum_by_completion(values, segments, 5), [[3, 0, 28, 0, 0]])
