"""What the optimum earns, from the reference's rewards: Best-of-N for log, the reference for large β, ties shared."""

import numpy as np
import pytest

from qrpo_jax import transforms
from qrpo_jax.report import optimum_rewards


def references(prompts: int = 31) -> list[np.ndarray]:
    """5 or 8 rewards in tenths for each prompt, unsorted, with ties."""
    rng = np.random.default_rng(7)
    return [np.round(rng.beta(1, 2, rng.choice([5, 8])) * 10) / 10 for _ in range(prompts)]


@pytest.mark.parametrize("best_of", [2, 3, 7])
def test_the_optimum_of_log_is_best_of_n_drawn_with_replacement(best_of):
    found = optimum_rewards.weights(references(), 1 / (best_of - 1), transforms.log)
    for reward_N, weight_N in zip(references(), found, strict=True):
        n = len(reward_N)
        share = np.arange(n + 1) / n
        expected = np.sort(reward_N) @ np.diff(share**best_of)
        assert reward_N @ weight_N == pytest.approx(expected, abs=1e-7), (reward_N, weight_N)
        assert weight_N.sum() == pytest.approx(1)


def test_completions_of_equal_reward_have_equal_weight_and_better_ones_more():
    found = optimum_rewards.weights(references(), 0.2, transforms.identity)
    for reward_N, weight_N in zip(references(), found, strict=True):
        order = np.argsort(reward_N, kind="stable")
        steps, gains = np.diff(reward_N[order]), np.diff(weight_N[order])
        assert (np.abs(gains[steps == 0]) < 1e-12).all() and (gains[steps > 0] > 0).all(), (reward_N, weight_N)


def test_the_frontier_begins_at_the_reference_and_rises_with_kl():
    line = optimum_rewards.frontier(references(), "identity", 0.3)
    mean = float(np.mean([reward_N.mean() for reward_N in references()]))
    order = np.argsort(line.kl)
    assert (np.diff(line.reward[order]) > 0).all() and (np.diff(line.quantile[order]) > 0).all(), line
    assert 0 < line.reward[order][0] - mean < 0.02, (line.reward[order][0], mean)
    at = int(np.argmin(np.abs(line.kl - line.kl[len(line.kl) // 2])))
    found = optimum_rewards.weights(references(), 0.3, transforms.identity)
    expected = np.mean([r @ w for r, w in zip(references(), found, strict=True)])
    assert line.reward[at] == pytest.approx(expected, abs=1e-7)


def test_no_beta_below_the_smallest_is_on_the_frontier():
    name = "normal-icdf"
    least = transforms.parse("logit").smallest_beta
    assert len(optimum_rewards.frontier(references(), "logit", 2 * least).kl) < optimum_rewards.BETAS
    assert len(optimum_rewards.frontier(references(), name, 1.0).kl) == optimum_rewards.BETAS
