"""Means with bootstrap intervals."""

import math

import numpy as np
import pytest

from qrpo_jax.evaluation.intervals import bootstrap, mean_with_interval, ratio_with_interval


def test_the_interval_contains_the_true_mean_in_95_percent_of_samples() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0.3, 2.0, (2003, 101))
    contained = [low <= 0.3 <= high for _, (low, high) in map(mean_with_interval, samples)]
    share, deviation = float(np.mean(contained)), math.sqrt(0.95 * 0.05 / 2003)
    # The bootstrap of 101 values is narrower than a t interval by 1.7 %, which leaves 94.5 %.
    assert abs(share - 0.945) < 4 * deviation, share


def test_the_interval_of_many_values_is_the_normal_one() -> None:
    values = np.random.default_rng(3).exponential(size=1009)
    mean, (low, high) = mean_with_interval(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(1009)
    assert low == pytest.approx(mean - half, abs=0.1 * half) and high == pytest.approx(mean + half, abs=0.1 * half)


def test_the_interval_follows_shifts_and_scales_of_its_values() -> None:
    values = np.random.default_rng(1).normal(size=13)
    mean, interval = mean_with_interval(values)
    moved_mean, moved = mean_with_interval(7 - 3 * values)
    assert moved_mean == pytest.approx(7 - 3 * mean)
    assert moved == pytest.approx([7 - 3 * end for end in reversed(interval)])


def test_an_interval_is_that_of_prompts_drawn_with_replacement() -> None:
    """Drawn one by one here, with other random numbers, and the ratio computed anew from each draw."""
    rng = np.random.default_rng(7)
    numerator, denominator = rng.gamma(2.0, size=37), rng.integers(1, 9, 37).astype(float)
    figure, interval = ratio_with_interval(numerator, denominator)
    drawn = rng.integers(0, 37, (20011, 37))
    expected = np.quantile(numerator[drawn].sum(1) / denominator[drawn].sum(1), [0.025, 0.975])
    assert figure == pytest.approx(numerator.sum() / denominator.sum())
    np.testing.assert_allclose(interval, expected, atol=0.06 * (expected[1] - expected[0]))


def test_a_statistic_sees_the_sums_of_the_same_prompts_in_all_columns() -> None:
    values = np.random.default_rng(2).normal(size=17)
    figure, interval = bootstrap(lambda sums: sums[0] - sums[1] / 2, values, 2 * values)
    assert figure == pytest.approx(0, abs=1e-12) and interval == pytest.approx([0, 0], abs=1e-12)


def test_a_single_value_has_a_mean_and_no_interval() -> None:
    mean, interval = mean_with_interval(np.array([0.5]))
    assert mean == 0.5 and all(map(math.isnan, interval)), interval


def test_prompts_without_a_value_count_nothing() -> None:
    values = np.array([0.5, np.nan, 1.5, np.nan])
    assert mean_with_interval(values)[0] == 1.0
    assert ratio_with_interval(np.array([3.0, np.nan]), np.array([2.0, 0.0]))[0] == 1.5
    mean, interval = mean_with_interval(np.array([np.nan, np.nan]))
    assert math.isnan(mean) and all(map(math.isnan, interval))
