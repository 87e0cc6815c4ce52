"""Laws of drawing: tokens come as often as their probabilities say, and never without probability."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from qrpo_jax.sampling.draw import CHUNK, pick, truncate

LARGEST = np.float32(1) - np.float32(2) ** -24  # below 1


@pytest.mark.parametrize("vocabulary", [2, 5, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_frequencies_are_probabilities(vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    logits_V = rng.normal(size=vocabulary).astype(np.float32) * 2
    logits_V[::3] = -np.inf
    if not np.isfinite(logits_V[1:]).any():
        logits_V[0] = 0.0
    count = 200_003
    uniform = jax.random.uniform(jax.random.key(1), (count,))
    tokens = np.asarray(pick(jnp.broadcast_to(logits_V, (count, vocabulary)), uniform))
    found = np.bincount(tokens, minlength=vocabulary)
    assert len(found) == vocabulary
    probs = np.exp(logits_V.astype(np.float64) - logits_V.max())
    probs /= probs.sum()
    assert found[probs == 0].sum() == 0, "a token without probability was drawn"
    kept = probs * count > 5
    if kept.sum() > 1:
        expected = probs[kept] / probs[kept].sum() * found[kept].sum()
        assert stats.chisquare(found[kept], expected).pvalue > 1e-3, (found, probs * count)


def test_the_ends_of_the_unit_interval_draw_tokens_with_probability() -> None:
    rng = np.random.default_rng(5)
    for vocabulary in (3, CHUNK, 2 * CHUNK + 3):
        for _ in range(50):
            logits = (rng.normal(size=(2, vocabulary)) * 5).astype(np.float32)
            logits[:, rng.random(vocabulary) < 0.5] = -np.inf
            logits[:, rng.integers(vocabulary)] = 1.0
            first, last = np.asarray(pick(jnp.asarray(logits), jnp.asarray([0.0, LARGEST])))
            there = np.flatnonzero(np.isfinite(logits[0]) & (logits[0] > logits[0].max() - 80))
            assert first == there[0], (first, there)
            assert np.isfinite(logits[1, last]), (last, there)


def test_the_numbers_of_a_row_are_its_distribution_function() -> None:
    """Against the plain inverse in float64, but for numbers within rounding of a step."""
    rng = np.random.default_rng(7)
    logits = (rng.normal(size=(997, 401)) * 3).astype(np.float32)
    uniform = rng.random(997).astype(np.float32)
    probs = np.exp(logits.astype(np.float64))
    cumulative = np.cumsum(probs, -1) / probs.sum(-1, keepdims=True)
    expected = (cumulative <= uniform[:, None]).sum(-1)
    got = np.asarray(pick(jnp.asarray(logits), jnp.asarray(uniform)))
    near = np.abs(cumulative - uniform[:, None]).min(-1) < 1e-6
    assert (got == expected)[~near].all() and near.mean() < 0.05, np.flatnonzero(got != expected)


def test_min_p_keeps_tokens_with_a_share_of_the_largest_probability() -> None:
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]]))
    kept = [np.isfinite(np.asarray(truncate(logits, 0, 1.0, share))).tolist()[0] for share in (0.0, 0.2, 0.5, 1.0)]
    assert kept == [[True] * 4, [True, True, True, False], [True, True, False, False], [True, False, False, False]]
