"""Shards: any number of them in each stage, in any order, and killed at any moment: the rows are those of one run."""

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from qrpo_jax import pipeline
from tests.helpers.jobs import ROOT, environment
from tests.helpers.unit_jobs import NAMES, UNITS, outcome, toy_job

PARTS = {"sample": 2, "score": 3, "reference": 1}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert pipeline.run(toy_job(workdir))
    return outcome(workdir)


def upto(stage: str) -> tuple[str, ...]:
    return NAMES[: NAMES.index(stage) + 1]


@pytest.mark.parametrize("seed", range(3))
def test_each_stage_may_have_its_own_number_of_shards_in_any_order(
    tmp_path: Path, wanted: dict, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage, parts in PARTS.items():
        order = random.Random(seed).sample(range(parts), parts)
        done = [pipeline.run(toy_job(tmp_path / "run", upto(stage), (index, parts))) for index in order]
        assert done == [False] * (parts - 1) + [True], (stage, order, done)
    assert outcome(tmp_path / "run") == wanted
    assert "WARNING" not in capsys.readouterr().err


def test_a_shard_that_comes_before_its_input_is_complete_says_so_and_may_come_again(
    tmp_path: Path, wanted: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not pipeline.run(toy_job(tmp_path / "run", upto("sample"), (0, 2)))
    capsys.readouterr()
    assert not pipeline.run(toy_job(tmp_path / "run", upto("score"), (1, 3)))
    said = capsys.readouterr().err.splitlines()
    line = "score: not begun, because sample is not complete; run the same command again when it is"
    assert said.count(line) == 1, said
    missing = len([u for u in range(UNITS) if u % 2 != 0 and u % 3 != 1])
    assert f"sample: {missing} of {UNITS} units are left to other shards" in said, said
    assert not (tmp_path / "run" / "score").exists()
    # The late shard of sample comes last, and then those of score in any order, also one that has been here.
    assert pipeline.run(toy_job(tmp_path / "run", upto("sample"), (1, 2)))
    for index in (1, 2, 0):
        done = pipeline.run(toy_job(tmp_path / "run", upto("score"), (index, 3)))
    assert done and pipeline.run(toy_job(tmp_path / "run", upto("reference")))
    assert outcome(tmp_path / "run") == wanted


def test_a_shard_without_units_waits_like_the_others(tmp_path: Path, wanted: dict) -> None:
    parts = UNITS + 3
    for stage, index in itertools.product(NAMES, reversed(range(parts))):
        pipeline.run(toy_job(tmp_path / "run", upto(stage), (index, parts)))
    assert outcome(tmp_path / "run") == wanted


@pytest.mark.parametrize("kind, kills", [("toy", 40), pytest.param("model", 100, marks=pytest.mark.slow)])
def test_killed_at_random_moments_sample_score_and_reference_lose_and_double_no_row(
    tmp_path: Path, kind: str, kills: int
) -> None:
    cache = {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.helpers.unit_jobs", kind, str(tmp_path), str(kills), "7"]
    done = subprocess.run(command, cwd=ROOT, env=environment(**cache), capture_output=True, text=True)
    assert done.returncode == 0, (done.stderr[-3000:], (tmp_path / "log").read_text()[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    print({name: value for name, value in found.items() if name != "hit"}, "; ".join(found["hit"]))
    assert found["killed"] == kills and not found["differing"], found
    assert {stage for stage in NAMES for place in found["hit"] if place.startswith(stage)} == set(NAMES), found["hit"]
