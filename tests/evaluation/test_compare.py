"""Held-out figures of both sides."""

import numpy as np
import pytest

from qrpo_jax.evaluation.answers import Answers
from qrpo_jax.evaluation.compare import compare, compare_halves
from qrpo_jax.evaluation.halves import HALVES, half_of
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


def test_each_figure_has_an_interval_around_it() -> None:
    sides = {"reference": draw(0, 41), "policy": draw(1, 41)}
    results = compare({side: [one._replace(graded_S=one.reward_S) for one in of] for side, of in sides.items()})
    for side in ("reference", "policy"):
        intervals = results[side]["intervals"]
        assert results[side]["ci95"] == intervals["mean_reward"] and len(intervals) >= 8
        for name, (low, high) in intervals.items():
            assert low <= results[side][name] <= high, (name, low, results[side][name], high)


def test_passes_are_counted_by_prompt_only_where_rewards_are_shares_of_tests() -> None:
    answers = [
        Answers(np.array([7.0, 7.0, 7.0, 7.0]), np.ones(4, int), np.ones(4, bool)),
        Answers(np.array([7.0, 7.0, 7.0]), np.ones(3, int), np.ones(3, bool)),
    ]
    grades = np.array([1.0, 0.0, 0.9, 0.0]), np.ones(3)
    graded = [one._replace(graded_S=grade_S) for one, grade_S in zip(answers, grades, strict=True)]
    policy = compare({"policy": graded})["policy"]
    assert policy["pass_rate"] == policy["pass_at_1"] == pytest.approx((1 / 4 + 1) / 2)
    assert policy["pass_at_2"] == pytest.approx((1 / 2 + 1) / 2) and "pass_at_4" not in policy
    assert not [name for name in compare({"policy": answers})["policy"] if name.startswith("pass")]


def test_a_policy_alone_has_no_gain_and_nothing_against_a_reference() -> None:
    answers = {"reference": draw(0), "policy": draw(1)}
    alone, both = compare({"policy": answers["policy"]}), compare(answers)
    assert list(alone) == ["policy"] and "win_rate" in both["policy"] and "win_rate" not in alone["policy"]
    assert alone["policy"]["mean_reward"] == both["policy"]["mean_reward"]
    assert alone["policy"]["ci95"] == both["policy"]["ci95"]


def test_stored_quantiles_are_of_the_prompts_that_bring_references() -> None:
    answers = draw(0, 3)
    with_some = [answers[0]._replace(stored_N=np.array([-1.0, 2.0])), answers[1], answers[2]]
    policy = compare({"policy": with_some})["policy"]
    assert policy["stored_quantile"] == 0.5 and policy["stored_prompts"] == 1
    assert "stored_quantile" not in compare({"policy": answers})["policy"]


def test_the_halves_are_comparisons_of_their_prompts_whatever_the_order() -> None:
    ids = [f"row-{i}" for i in range(23)]
    answers = {"reference": draw(0, 23), "policy": draw(1, 23)}
    halves = compare_halves(ids, answers)
    for half in HALVES:
        chosen = [i for i, row_id in enumerate(ids) if half_of(row_id) == half]
        assert 0 < len(chosen) < 23
        assert halves[half] == compare({side: [a[i] for i in chosen] for side, a in answers.items()})
    order = np.random.default_rng(0).permutation(23)
    moved = compare_halves([ids[i] for i in order], {side: [a[i] for i in order] for side, a in answers.items()})
    for half in HALVES:
        assert moved[half]["policy"]["mean_reward"] == pytest.approx(halves[half]["policy"]["mean_reward"])
        assert moved[half]["policy"]["prompts"] == halves[half]["policy"]["prompts"]


def test_a_half_without_prompts_is_empty() -> None:
    ids = [row_id for row_id in (f"row-{i}" for i in range(23)) if half_of(row_id) == "reporting"]
    halves = compare_halves(ids, {"policy": draw(0, len(ids))})
    assert halves["selection"] == {} and halves["reporting"]["policy"]["prompts"] == len(ids)
