"""What points drew: completions that training used, and curves over iterations averaged over seeds."""

import statistics
from pathlib import Path
from typing import Any

import pytest

from qrpo_jax.files import write_json
from qrpo_jax.job import manifest
from qrpo_jax.report import sweep_page
from qrpo_jax.sweep import collect
from qrpo_jax.sweep.drawn import over_seeds, read_drawn
from tests.helpers.report_pages import plots, words_of
from tests.helpers.sweep_jobs import toy_config
from tests.helpers.sweep_points import NO_PLAN, write_points

SAMPLED = 101  # completions of stage sample


def iteration(index: int, shift: float = 0.0) -> dict[str, Any]:
    figures = {"reward": 0.25 + 0.1 * index + shift, "kl_to_reference": 0.5 * index + shift}
    ends = {"reward": [figures["reward"] - 0.03, figures["reward"] + 0.02]}
    return {"samples": 7 * (index + 1), "figures": figures, "intervals": ends}


def leave(folder: Path, *, iterations: list[dict[str, Any]] | None, sampled: bool = True, **facts: Any) -> Path:
    """The records of a point's stages."""
    if sampled:
        manifest.complete(folder / "sample", {"counts": {"completions": SAMPLED}})
    if iterations is not None:
        write_json(folder / "train" / "iterations.json", iterations)
    manifest.complete(folder / "train", facts)
    return folder


def test_completions_of_the_reference_count_where_training_uses_them(tmp_path: Path) -> None:
    several = [iteration(index) for index in range(3)]
    alone = read_drawn(leave(tmp_path / "alone", iterations=several, stored_references=False))
    ranked = read_drawn(leave(tmp_path / "ranked", iterations=several, stored_references=True))
    assert alone["curve"]["samples"] == [7, 14, 21] and alone["samples"] == 21
    assert ranked["curve"]["samples"] == [SAMPLED + 7, SAMPLED + 14, SAMPLED + 21]
    assert alone["curve"]["reward"] == ranked["curve"]["reward"] == pytest.approx([0.25, 0.35, 0.45])
    assert read_drawn(leave(tmp_path / "stored", iterations=None)) == {"samples": SAMPLED, "curve": None}
    nothing = {"samples": None, "curve": None}
    assert read_drawn(leave(tmp_path / "brought", iterations=None, sampled=False)) == nothing
    assert read_drawn(tmp_path / "without training") == nothing


def test_a_curve_without_kl_has_none(tmp_path: Path) -> None:
    several = [iteration(index) for index in range(3)]
    several[1]["figures"].pop("kl_to_reference")
    assert "kl" not in read_drawn(leave(tmp_path, iterations=several))["curve"]


def test_curves_are_means_over_seeds_with_their_spread_and_of_one_seed_intervals_over_prompts(tmp_path: Path) -> None:
    points = [
        read_drawn(leave(tmp_path / str(seed), iterations=[iteration(i, 0.01 * seed**2) for i in range(3)]))
        for seed in range(3)
    ]
    curve = over_seeds(points)["curve"]
    for place in range(3):
        rewards = [point["curve"]["reward"][place] for point in points]
        mean, spread = statistics.mean(rewards), statistics.stdev(rewards)
        assert curve["reward"][place] == pytest.approx(mean)
        assert curve["reward_high"][place] - mean == pytest.approx(spread) == mean - curve["reward_low"][place]
    one = over_seeds(points[:1])["curve"]
    assert one["reward_low"] == pytest.approx([0.22, 0.32, 0.42]) and one["reward_high"][0] == pytest.approx(0.27)
    shorter = points[0] | {"curve": {name: values[:2] for name, values in points[0]["curve"].items()}}
    assert over_seeds([points[1], shorter]) == {"samples": 21, "curve": None}
    stored = {"samples": None, "curve": None}
    assert over_seeds([points[0], stored]) == stored


def test_the_page_has_curves_of_on_policy_methods_and_points_of_stored_data(tmp_path: Path) -> None:
    grids = [
        {"train.data": ["on_policy"], "train.objective": ["qrpo"], "train.beta": [0.1, 0.3], "seed": [0, 1]},
        {"train.data": ["stored"], "train.objective": ["qrpo", "dpo"], "train.beta": [0.1], "seed": [0, 1]},
    ]
    points = write_points(tmp_path, toy_config(grids))
    for point in points:
        own = point.settings["train.data"] == "on_policy"
        several = [iteration(i, 0.01 * point.settings["seed"]) for i in range(3)] if own else None
        leave(tmp_path / "points" / point.name, iterations=several)
    found = collect.collect(tmp_path, points, NO_PLAN)
    page = collect.write_page(tmp_path, points, found).read_text(encoding="utf-8")
    for name in ("drawn-samples", "drawn-kl"):
        words = words_of(plots(page)[name][0])
        assert all(method in words for method in ("on_policy, qrpo", "stored, qrpo", "stored, dpo")), (name, words)
    assert len(found["choice"]) == 3 and {line["drawn"]["samples"] for line in found["settings"]} == {21, SAMPLED}
    stored = [line for line in found["settings"] if line["settings"]["train.data"] == "stored"]
    assert not [one for one in sweep_page.pictures(found | {"settings": stored, "choice": []}) if "drawn" in one.image]
