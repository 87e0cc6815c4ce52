"""Held-out figures of both sides."""

import numpy as np
import pytest

from qrpo_jax.evaluation.compare import Answers, compare
from qrpo_jax.evaluation.intervals import mean_with_interval


def draw(seed: int, prompts: int = 11) -> list[Answers]:
    rng = np.random.default_rng(seed)
    return [
        Answers(rng.integers(0, 4, n) / 3, rng.integers(1, 30, n), rng.random(n) < 0.7)
        for n in rng.integers(2, 7, prompts)
    ]


def test_rewards_are_averaged_by_prompt_and_other_figures_by_completion() -> None:
    answers = {
        "reference": [
            Answers(np.array([0.0, 1.0]), np.array([3, 5]), np.array([True, False])),
            Answers(np.array([0.5, 0.5, 0.5]), np.array([7, 7, 8]), np.array([True, True, True])),
        ],
        "policy": [
            Answers(np.array([1.0, 1.0, 0.0]), np.array([1, 1, 2]), np.array([True, True, True])),
            Answers(np.array([0.5]), np.array([7]), np.array([False])),
        ],
    }
    results = compare(answers)
    assert results["reference"]["mean_reward"] == 0.5 and results["policy"]["mean_reward"] == (2 / 3 + 0.5) / 2
    assert results["reference"]["mean_tokens"] == 6 and results["reference"]["share_finished"] == 0.8
    assert results["policy"]["share_full_reward"] == 0.5
    assert (results["policy"]["prompts"], results["policy"]["completions"]) == (2, 4)
    # Against (0, 1) rewards of 1 rank at 3/4 and 0 at 1/4; a tie with all references is at 1/2.
    assert results["policy"]["mean_quantile"] == pytest.approx(((0.75 + 0.75 + 0.25) / 3 + 0.5) / 2)


def test_the_gains_interval_is_that_of_the_differences_prompt_by_prompt() -> None:
    answers = {"reference": draw(0), "policy": draw(1)}
    results = compare(answers)
    pairs = zip(answers["policy"], answers["reference"], strict=True)
    mean, interval = mean_with_interval(np.array([p.reward_S.mean() - r.reward_S.mean() for p, r in pairs]))
    assert results["gain"] == {"mean_reward": mean, "ci95": interval}


def test_exchanged_sides_turn_the_gain_around() -> None:
    first, second = draw(0), draw(1)
    gain = compare({"reference": first, "policy": second})["gain"]
    back = compare({"reference": second, "policy": first})["gain"]
    assert back["mean_reward"] == pytest.approx(-gain["mean_reward"])
    assert back["ci95"] == pytest.approx([-end for end in reversed(gain["ci95"])])


def test_sides_with_different_prompts_are_no_comparison() -> None:
    with pytest.raises(ValueError):
        compare({"reference": draw(0), "policy": draw(1)[:-1]})
