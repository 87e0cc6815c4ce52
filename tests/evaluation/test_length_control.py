"""Length-controlled rewards."""

import numpy as np
import pytest

from qrpo_jax.evaluation import length_control
from qrpo_jax.evaluation.answers import Answers
from qrpo_jax.evaluation.side_figures import figures_against


def references(seed: int, slope: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    length_N = rng.integers(5, 60, 11).astype(float)
    return slope * length_N / 20 + rng.normal(size=11), length_N


def test_the_slope_is_that_of_least_squares_on_standardised_numbers() -> None:
    reward_N, length_N = references(0)
    z_reward, z_length = ((x - x.mean()) / x.std() for x in (reward_N, length_N))
    (expected,), *_ = np.linalg.lstsq(z_length[:, None], z_reward, rcond=None)
    assert length_control.reference_slope(reward_N, length_N) == pytest.approx(expected)
    assert expected == pytest.approx(np.corrcoef(reward_N, length_N)[0, 1])


def test_the_references_keep_their_mean_and_lose_their_correlation_with_length() -> None:
    reward_N, length_N = references(1)
    controlled = length_control.controlled(reward_N, length_N, reward_N, length_N)
    assert controlled.mean() == pytest.approx(reward_N.mean())
    assert abs(np.corrcoef(controlled, length_N)[0, 1]) < 1e-9 < abs(np.corrcoef(reward_N, length_N)[0, 1])


def test_a_completion_as_long_as_the_references_keeps_its_reward_and_a_longer_one_pays() -> None:
    reward_N, length_N = references(2)
    mean = length_N.mean()
    at_mean, longer = length_control.controlled(np.array([3.0, 3.0]), np.array([mean, 2 * mean]), reward_N, length_N)
    assert at_mean == pytest.approx(3.0) and longer < 3.0 - 0.1, (at_mean, longer)


def test_a_reward_that_is_a_line_of_length_is_controlled_to_one_number() -> None:
    length_N = np.array([3.0, 8.0, 9.0])
    length_S = np.array([1.0, 100.0, 7.0])
    controlled = length_control.controlled(0.25 * length_S - 1, length_S, 0.25 * length_N - 1, length_N)
    np.testing.assert_allclose(controlled, 0.25 * length_N.mean() - 1)


@pytest.mark.parametrize("reward_N, length_N", [([0.3, 0.3, 0.3], [1.0, 2.0, 3.0]), ([0.1, 0.2, 0.3], [7.0, 7.0, 7.0])])
def test_references_of_equal_rewards_or_lengths_change_nothing(reward_N: list, length_N: list) -> None:
    flat = np.asarray(np.float32(reward_N), float), np.asarray(length_N)
    assert length_control.controlled(np.array([0.9]), np.array([50.0]), *flat).tolist() == [0.9]
    assert length_control.slope_sums(np.array([0.9]), np.array([50.0]), *flat) == (0.0, 0.0, 0.9, 0.0)


def make_answers(seed: int, bias: float) -> tuple[list[Answers], list[Answers]]:
    rng = np.random.default_rng(seed)
    policy, reference = [], []
    for _ in range(41):
        for side, mean, count in ((policy, 40, 5), (reference, 25, 7)):
            length = rng.integers(mean - 15, mean + 15, count)
            reward = rng.normal(size=count) + bias * length / 10 + rng.normal()
            side.append(Answers(reward, length, np.ones(count, bool)))
    return policy, reference


def test_the_second_variant_has_one_slope_of_the_policys_own_completions() -> None:
    """Refitted here by least squares over all completions; each prompt weighs the same."""
    policy, reference = make_answers(0, 0.8)
    z_reward, z_length, excess = [], [], []
    for a, r in zip(policy, reference, strict=True):
        z_reward += list((a.reward_S - r.reward_S.mean()) / r.reward_S.std())
        z_length += list((a.length_S - r.length_S.mean()) / r.length_S.std())
        excess += list((a.length_S - r.length_S.mean()) / r.length_S.std() * r.reward_S.std())
    (slope,), *_ = np.linalg.lstsq(np.asarray(z_length)[:, None], np.asarray(z_reward), rcond=None)
    rewards = np.concatenate([a.reward_S for a in policy])
    figure, (low, high) = figures_against(policy, reference)["length_controlled_reward_own_slope"]
    assert figure == pytest.approx(np.mean(rewards - slope * np.asarray(excess)))
    assert low < figure < high


def test_both_variants_take_most_of_a_gain_that_is_length_alone() -> None:
    policy, reference = make_answers(1, 1.0)
    raw = np.mean([a.reward_S.mean() for a in policy]) - np.mean([r.reward_S.mean() for r in reference])
    of_reference = np.mean([r.reward_S.mean() for r in reference])
    figures = figures_against(policy, reference)
    for name in ("length_controlled_reward", "length_controlled_reward_own_slope"):
        left = figures[name][0] - of_reference
        assert abs(left) < 0.5 * raw, (name, left, raw)
