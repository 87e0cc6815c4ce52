"""Estimators of KL from samples."""

import numpy as np
import pytest

from qrpo_jax.evaluation import kl

COUNTS = np.array([2, 3, 7, 11])  # how often each of four outcomes is sampled
P, Q = COUNTS / COUNTS.sum(), np.array([0.4, 0.3, 0.2, 0.1])


def test_both_estimators_have_the_kl_as_their_mean() -> None:
    """Outcomes in exact proportion to p, so that means over samples are means under p."""
    log_ratio_C = np.repeat(np.log(Q) - np.log(P), COUNTS)
    exact = float((P * (np.log(P) - np.log(Q))).sum())
    assert kl.k1(log_ratio_C) == pytest.approx(exact, rel=1e-12)
    assert kl.k3(log_ratio_C) == pytest.approx(exact, rel=1e-12)


def test_k3_is_never_negative_where_k1_is() -> None:
    log_ratio_C = np.array([0.7, 0.1, -0.2])
    assert kl.k1(log_ratio_C) < 0 < kl.k3(log_ratio_C), (kl.k1(log_ratio_C), kl.k3(log_ratio_C))


@pytest.mark.parametrize("estimator", [kl.k1, kl.k3])
def test_completions_without_a_log_prob_are_left_out(estimator) -> None:
    log_ratio_C = np.array([0.7, -0.2, 0.05])
    with_gaps = np.array([np.nan, 0.7, -0.2, np.inf, 0.05, -np.inf])
    assert estimator(with_gaps) == estimator(log_ratio_C)
