"""Means with confidence intervals."""

import math

import numpy as np
import pytest

from qrpo_jax.evaluation.intervals import mean_with_interval


def test_the_interval_contains_the_true_mean_in_95_percent_of_samples() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0.3, 2.0, (4001, 101))
    contained = [low <= 0.3 <= high for _, (low, high) in map(mean_with_interval, samples)]
    share, deviation = float(np.mean(contained)), math.sqrt(0.95 * 0.05 / 4001)
    # 101 values with an estimated deviation: a t interval would be 1.2 % wider.
    assert abs(share - 0.948) < 4 * deviation, share


def test_the_interval_follows_shifts_and_scales_of_its_values() -> None:
    values = np.random.default_rng(1).normal(size=13)
    mean, interval = mean_with_interval(values)
    moved_mean, moved = mean_with_interval(7 - 3 * values)
    assert moved_mean == pytest.approx(7 - 3 * mean)
    assert moved == pytest.approx([7 - 3 * end for end in reversed(interval)])


def test_a_single_value_has_a_mean_and_no_interval() -> None:
    mean, interval = mean_with_interval(np.array([0.5]))
    assert mean == 0.5 and all(map(math.isnan, interval)), interval
