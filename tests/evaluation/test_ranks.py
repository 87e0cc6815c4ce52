"""Ranks of samples among the references of their prompt."""

import numpy as np
import pytest

from qrpo_jax.evaluation.ranks import MOST_BINS, mid_rank_quantile, rank_density


@pytest.mark.parametrize("levels", [2, 5, 10**9])
def test_the_references_ranks_are_flat_with_and_without_ties(levels: int) -> None:
    """Samples of the reference policy have density 1 in every bin, in expectation over samples."""
    rewards = np.random.default_rng(levels).integers(0, levels, (20011, 8)).astype(float)
    density = rank_density(list(rewards[:, :7]), list(rewards[:, 7:]))
    assert density.shape == (8,) and abs(density.mean() - 1) < 1e-9
    assert np.abs(density - 1).max() < 0.06, density


@pytest.mark.parametrize("levels", [2, 5, 10**9])
def test_the_references_mean_mid_rank_quantile_is_one_half(levels: int) -> None:
    rewards = np.random.default_rng(levels).integers(0, levels, (20011, 8)).astype(float)
    mean = np.mean([mid_rank_quantile(row[7:], row[:7])[0] for row in rewards])
    assert abs(mean - 0.5) < 4 * 0.33 / np.sqrt(20011), mean


def test_mean_of_the_ranks_is_the_mid_rank_quantile() -> None:
    """With n references: mean over the ranks' bins k / n equals mean of (below + tied / 2) / n."""
    rng = np.random.default_rng(1)
    references, samples = rng.integers(0, 4, (31, 7)).astype(float), rng.integers(1, 5, (31, 3)).astype(float)
    density = rank_density(list(references), list(samples))
    by_rank = float((density / 8 * np.arange(8) / 7).sum())
    mid = np.mean([mid_rank_quantile(*pair) for pair in zip(samples, references, strict=True)])
    assert abs(by_rank - mid) < 1e-12, (by_rank, mid)


def test_prompts_with_other_numbers_of_references_share_the_bins_of_the_largest() -> None:
    rng = np.random.default_rng(2)
    references = [rng.normal(size=n) for n in (3, 5, 11)]
    samples = [rng.normal(size=7) for _ in references]
    assert rank_density(references, samples).shape == (12,)
    density = rank_density([*references, rng.normal(size=101)], [*samples, rng.normal(size=7)])
    assert density.shape == (MOST_BINS,) and abs(density.mean() - 1) < 1e-9
