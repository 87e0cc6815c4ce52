"""Best-of-N from M samples: the mean over all ways to draw N of them, and what sampling N anew gives on average."""

import itertools

import numpy as np
import pytest

from qrpo_jax.evaluation.best_of import best_of


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_it_is_the_mean_over_all_subsets(count):
    rng = np.random.default_rng(count)
    for reward in (rng.normal(size=count), rng.integers(0, 3, count) / 2):  # without and with ties
        for n in range(1, count + 1):
            subsets = [max(subset) for subset in itertools.combinations(reward, n)]
            np.testing.assert_allclose(best_of(reward, n), np.mean(subsets), rtol=1e-12)


def test_its_ends_are_the_mean_and_the_largest_reward():
    reward = np.random.default_rng(3).normal(size=50).astype(np.float32)
    np.testing.assert_allclose([best_of(reward, 1), best_of(reward, 50)], [reward.mean(), reward.max()], rtol=1e-6)


def test_it_is_unbiased():
    rng = np.random.default_rng(0)
    found = [best_of(rng.uniform(size=8), 4) for _ in range(4000)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - 4 / 5) < 4 * error, (np.mean(found), error)  # of 4 uniform numbers the largest is 4/5


@pytest.mark.parametrize("n", [0, 4])
def test_more_than_there_are_is_refused(n):
    with pytest.raises(ValueError, match=f"n is {n}; it must be from 1 to 3"):
        best_of(np.zeros(3), n)
