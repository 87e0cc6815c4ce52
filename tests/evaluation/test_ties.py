"""Ties between completions and their references."""

import jax
import numpy as np

from qrpo_jax import quantiles
from qrpo_jax.evaluation import ties


def test_ties_are_those_of_the_quantiles_of_training() -> None:
    """A completion that is a reference itself is compared with the others, as `quantiles.exclude_own` has it."""
    rng = np.random.default_rng(0)
    sampled, further = rng.integers(0, 3, 5).astype(np.float32), rng.integers(0, 3, 7).astype(np.float32)
    reward_S = np.concatenate([sampled, rng.integers(0, 3, 2).astype(np.float32)])
    is_reference_S = np.arange(7) < 5
    reward_N = np.concatenate([sampled, further])
    comparisons = ties.compare_with_references(reward_S, is_reference_S, reward_N)

    def share(reward: jax.Array, is_reference: bool) -> float:
        mask = quantiles.exclude_own(reward, reward_N) if is_reference else None
        return float(quantiles.tied_share(reward, reward_N, mask))

    expected = [share(reward, is_reference) for reward, is_reference in zip(reward_S, is_reference_S, strict=True)]
    np.testing.assert_allclose(comparisons.tied_C / comparisons.compared_C, expected, rtol=1e-6)
    assert comparisons.compared_C.tolist() == [11] * 5 + [12] * 2


def test_the_share_weighs_completions_by_their_comparisons_and_leaves_unknown_ties_out() -> None:
    assert ties.tied_share(ties.Comparisons(np.array([1.0, 3.0]), np.array([2, 11]))) == 4 / 13
    assert ties.tied_share(ties.Comparisons(np.array([np.nan, 3.0]), np.array([0, 11]))) == 3 / 11
    assert ties.tied_share(ties.Comparisons(np.zeros(0), np.zeros(0, int))) == 0
