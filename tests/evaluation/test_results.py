"""Results of several seeds and steps."""

import numpy as np
import pytest

from qrpo_jax.evaluation.answers import Answers, joined
from qrpo_jax.evaluation.compare import compare
from qrpo_jax.evaluation.curve import best, results_of
from qrpo_jax.evaluation.halves import half_of
from qrpo_jax.evaluation.results import held_out_results

IDS = [f"row-{i}" for i in range(19)]


def answers(seed: int, skill: float = 0.0, ids: list[str] = IDS) -> dict[str, Answers]:
    rng = np.random.default_rng(seed)
    found = {}
    for row_id in ids:
        reward, length = rng.normal(skill, 1.0, 3), rng.integers(1, 9, 3)
        found[row_id] = Answers(reward, length, rng.random(3) < 0.5, rng.normal(0, 0.1, 3), rng.random(3))
    return found


def test_figures_are_of_all_seeds_together_and_headlines_of_each() -> None:
    sides = {side: {0: answers(n), 7: answers(n + 10)} for n, side in enumerate(("reference", "policy"))}
    results = held_out_results(sides, {})
    every = {}
    for side, of_side in sides.items():
        every[side] = [joined([part[row_id] for part in of_side.values()]) for row_id in IDS]
    assert results["policy"] == compare(every)["policy"] and results["policy"]["completions"] == 6 * 19
    means = [results["seeds"][seed]["policy"]["mean_reward"] for seed in ("0", "7")]
    assert results["policy"]["mean_reward"] == pytest.approx(np.mean(means)) and means[0] != means[1]
    alone = held_out_results({side: {0: of_side[0]} for side, of_side in sides.items()}, {})
    assert "seeds" not in alone and alone["gain"] == results["seeds"]["0"]["gain"]


def test_figures_are_of_the_prompts_that_every_side_and_seed_answered() -> None:
    sides = {"reference": {0: answers(0)}, "policy": {0: answers(1, ids=IDS[2:]), 1: answers(2, ids=IDS[:-1])}}
    results = held_out_results(sides, {5: {0: answers(3, ids=IDS[:9])}})
    assert results["reference"]["prompts"] == results["policy"]["prompts"] == 16
    first, last = results["curve"]
    assert first["step"] == 0 and last["step"] == 5
    of_seven = [answers(0)[row_id].reward_S.mean() for row_id in IDS[2:9]]
    assert first["mean_reward"] == pytest.approx(np.mean(of_seven))


def test_the_curve_begins_with_the_reference_and_its_points_are_comparisons() -> None:
    sides = {"reference": {0: answers(0)}, "policy": {0: answers(1, 0.5)}}
    steps = {20: sides["policy"], 10: {0: answers(2, 0.2)}}
    results = held_out_results(sides, steps)
    points = results["curve"]
    assert [point["step"] for point in points] == [0, 10, 20]
    assert points[0]["mean_quantile"] == 0.5 and points[0]["kl_to_reference_k1"] == points[0]["kl_to_reference_k3"] == 0
    assert points[0]["mean_reward"] == results["reference"]["mean_reward"]
    for name in ("mean_reward", "mean_quantile", "kl_to_reference_k1", "kl_to_reference_k3_per_token"):
        assert points[2][name] == results["policy"][name], name
        assert points[2]["intervals"][name] == results["policy"]["intervals"][name], name
    for half, of_half in results["halves"].items():
        assert points[2]["halves"][half]["mean_reward"] == of_half["policy"]["mean_reward"]
        assert points[2]["halves"][half]["gain"] == of_half["gain"]


def test_a_step_of_the_curve_has_the_results_of_a_run_that_ended_there() -> None:
    sides = {"reference": {0: answers(0)}, "policy": {0: answers(1, 0.5)}}
    results = held_out_results(sides, {10: {0: answers(2, 0.2)}, 20: sides["policy"]})
    alone = held_out_results({"reference": sides["reference"], "policy": {0: answers(2, 0.2)}}, {})
    for half in ("", "reporting"):
        of_half = alone["halves"][half] if half else alone
        found = results_of(results, 10, half)
        assert found is not None and found["reference"] == of_half["reference"] and found["gain"] == of_half["gain"]
        for name in ("mean_reward", "ci95", "mean_quantile", "mean_tokens"):
            assert found["policy"][name] == of_half["policy"][name], (half, name)
    assert results_of(results, 15) is None and results_of(alone, 10) is None


def test_the_best_step_is_chosen_by_the_selection_half_alone() -> None:
    """One step is good where steps are chosen, the other where they are reported."""
    good, bad = answers(1, 3.0), answers(2, -3.0)

    def mixed(half: str) -> dict[str, Answers]:
        return {row_id: (good if half_of(row_id) == half else bad)[row_id] for row_id in IDS}

    sides = {"reference": {0: answers(0)}, "policy": {0: answers(3, 0.1)}}
    steps = {10: {0: mixed("selection")}, 20: {0: mixed("reporting")}, 30: sides["policy"]}
    found = held_out_results(sides, steps)["best"]
    assert found["step"] == 10 and found["selection"] > 2 and found["reporting"]["mean_reward"] < -2, found


def test_of_equal_steps_the_earliest_is_best_and_an_empty_half_has_none() -> None:
    def point(step: int, reward: float) -> dict:
        return {"step": step, "halves": {half: {"mean_reward": reward} for half in ("selection", "reporting")}}

    assert best([point(0, 0.1), point(7, 0.2), point(9, 0.2)])["step"] == 7  # type: ignore[index]
    assert best([point(0, 0.1) | {"halves": {"selection": {}, "reporting": {"mean_reward": 1.0}}}]) is None
