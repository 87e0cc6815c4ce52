"""pass@k."""

import itertools

import numpy as np
import pytest

from qrpo_jax.evaluation.passes import ks, pass_at_k, passed


@pytest.mark.parametrize("samples", [1, 2, 5, 7])
def test_it_is_the_share_of_all_subsets_of_k_samples_with_a_pass(samples: int) -> None:
    for passes, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        subsets = [any(i < passes for i in subset) for subset in itertools.combinations(range(samples), k)]
        assert pass_at_k(passes, samples, k) == pytest.approx(np.mean(subsets)), (passes, samples, k)


def test_it_is_unbiased_where_the_plug_in_estimate_is_not() -> None:
    """The mean over samples of a policy that passes with probability p is 1 - (1 - p)^k."""
    rng, p, k = np.random.default_rng(0), 0.2, 4
    passes = rng.binomial(6, p, 40009)
    mean = np.mean([pass_at_k(int(c), 6, k) for c in passes])
    plug_in = np.mean(1 - (1 - passes / 6) ** k)
    assert abs(mean - (1 - (1 - p) ** k)) < 4 * 0.45 / np.sqrt(40009), mean
    assert abs(plug_in - (1 - (1 - p) ** k)) > 0.03, plug_in


def test_many_samples_neither_overflow_nor_lose_a_rare_pass() -> None:
    assert pass_at_k(1, 10_000, 100) == pytest.approx(0.01, rel=1e-9)


def test_k_is_no_more_than_the_samples() -> None:
    assert all(max(ks(n)) <= n < 2 * max(ks(n)) for n in range(1, 40))
    for k in (0, 4):
        with pytest.raises(ValueError, match="allowed: 1 to 3"):
            pass_at_k(1, 3, k)


def test_only_a_full_reward_has_passed() -> None:
    assert passed(np.array([0.0, 0.999, 1.0], np.float32)).tolist() == [False, False, True]
