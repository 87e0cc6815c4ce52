"""The comparison on the quickstart task: each method has its own grid and the same seeds, and points pass checks."""

from pathlib import Path

import pytest
from ml_collections import FrozenConfigDict

from qrpo_jax import pipeline
from qrpo_jax.config import files
from qrpo_jax.job.job import Job
from qrpo_jax.job.shard import Shard
from qrpo_jax.stages import STAGES
from qrpo_jax.sweep.plan import make_plan
from qrpo_jax.sweep.points import Point, points_of
from qrpo_jax.training.objectives import OBJECTIVES, having

CONFIG = files.read("compare_quickstart")
POINTS = points_of(CONFIG)


def job(point: Point, workdir: Path) -> Job:
    return Job(FrozenConfigDict(point.config), workdir, Shard(0, 1), STAGES)


def test_every_objective_for_stored_completions_is_compared_with_as_many_settings_and_the_same_seeds():
    found: dict[tuple, dict[str, set]] = {}
    for point in POINTS:
        method = tuple(point.settings[key] for key in CONFIG.collect.method if key in point.settings)
        setting = str({key: value for key, value in point.settings.items() if key != "seed"})
        found.setdefault(method, {}).setdefault(setting, set()).add(point.config.seed)
    assert {method[0] for method in found} == set(OBJECTIVES) - set(having("on_policy_only"))
    assert {method[1] for method in found if len(method) > 1} == {"identity", "log", "normal-icdf"}
    counts = {method: len(settings) for method, settings in found.items()}
    assert len(set(counts.values())) == 1, counts
    assert all(seeds == {0, 1, 2} for settings in found.values() for seeds in settings.values())
    assert CONFIG.collect.best_of[-1] == CONFIG.evaluate.completions == 8


@pytest.mark.parametrize("point", POINTS[::3], ids=lambda point: point.name)
def test_each_setting_passes_the_checks(point, tmp_path):
    pipeline.check(job(point, tmp_path))


def test_points_of_a_seed_share_all_stages_before_training(tmp_path):
    records = []
    for point in POINTS:
        one = job(point, tmp_path)
        records.append({name: pipeline.settings(one, name) for name in one.config.stages})
    plan = make_plan(tmp_path, records)
    assert [part.stages for part in plan.parts.values()] == [("sft", "sample", "score", "reference")] * 3
    assert [len(part.points) for part in plan.parts.values()] == [len(POINTS) // 3] * 3
