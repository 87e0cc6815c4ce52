"""A sweep of a tiny model: its points are bit for bit the runs of the same settings alone, also after kills."""

import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qrpo_jax import pipeline
from qrpo_jax.data import row_files, rows
from qrpo_jax.job.shard import Shard
from qrpo_jax.job.stage import Stage
from qrpo_jax.stages import STAGES
from qrpo_jax.sweep import run as sweep
from qrpo_jax.sweep.points import make_point
from tests.helpers.jobs import ROOT, SMALL, environment, job

TINY = {"prompts__count": 9, "prompts__held_out": 5, "sft__examples": 31, "sft__batch_size": 31}
TINY |= {"sample__completions": 3, "evaluate__completions": 3, "train__batch_size": 7}
STAGE_NAMES = ("sft", "sample", "score", "reference", "train", "evaluate", "export")
SHARED = STAGE_NAMES[:4]


def contents(workdir: Path) -> dict[str, Any]:
    """Rows, results and exported weights of a run."""
    found: dict[str, Any] = {"results": json.loads((workdir / "results.json").read_text())}
    for info in sorted(workdir.rglob(row_files.INFO_FILE)):
        found[str(info.parent.relative_to(workdir))] = [rows.encode(row) for row in row_files.read(info.parent)]
    return found | {"weights": (workdir / "export" / "model" / "model.safetensors").read_bytes()}


def counted(calls: Counter[str]) -> dict[str, Stage]:
    """The stages, of which each run is counted."""

    def count(name: str, stage: Stage) -> Stage:
        def run(job: Any) -> Any:
            calls[name] += 1
            return stage.run(job)

        return stage._replace(run=run)

    return {name: count(name, stage) for name, stage in STAGES.items()}


@pytest.mark.slow
def test_points_are_the_runs_of_their_settings_alone_and_share_what_agrees(tmp_path: Path) -> None:
    plain = job(tmp_path / "plain", stages=STAGE_NAMES, train__beta=0.7, **TINY)
    assert pipeline.run(plain)
    base = job(tmp_path / "none", stages=STAGE_NAMES, **TINY).config
    settings = [{"train.objective": "qrpo", "train.beta": 0.7}]
    settings += [{"train.objective": "sft", "train.learning_rate": 1e-3}]
    points = [make_point(base, one) for one in settings]
    calls: Counter[str] = Counter()
    swept = sweep.Sweep(tmp_path / "sweep", points, Shard(0, 1), Shard(0, 1), counted(calls))
    assert sweep.run(swept)
    assert calls == {name: 1 if name in SHARED else 2 for name in STAGE_NAMES}, calls

    folders = [swept.folder(point) for point in points]
    alone, first, second = contents(plain.workdir), contents(folders[0]), contents(folders[1])
    assert alone == first, {name for name in alone if alone[name] != first[name]}
    assert second["weights"] != first["weights"]
    for stage in SHARED:
        files = [path for path in (folders[0] / stage).rglob("*") if path.is_file()]
        twins = [folders[1] / path.relative_to(folders[0]) for path in files]
        assert files and all(path.samefile(twin) for path, twin in zip(files, twins, strict=True)), stage


@pytest.mark.slow
def test_killed_at_random_moments_a_sweep_of_models_ends_the_same(tmp_path: Path) -> None:
    cache = {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    words = [*SMALL, '--config.sweep={"train.beta": [0.1, 0.3], "seed": [0, 1]}']

    def start(workdir: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "qrpo_jax.main", *words, f"--workdir={workdir}"]
        log = (tmp_path / "log").open("ab")
        return subprocess.Popen(command, cwd=ROOT, env=environment(**cache), stdout=log, stderr=log)

    def log() -> str:
        return (tmp_path / "log").read_text()[-3000:]

    whole = tmp_path / "whole"
    assert start(whole).wait(timeout=900) == 0, log()
    shutil.rmtree(whole)
    began = time.monotonic()
    assert start(whole).wait(timeout=900) == 0, log()
    seconds, rng, kills = time.monotonic() - began, random.Random(3), 0
    while True:
        process = start(tmp_path / "killed")
        try:
            process.wait(timeout=rng.uniform(0.15, 0.5) * seconds)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert process.returncode == 0 and kills >= 2, (kills, log())
    for point in sorted(path.name for path in (whole / "points").iterdir()):
        wanted, found = contents(whole / "points" / point), contents(tmp_path / "killed" / "points" / point)
        assert wanted == found, (point, {name for name in wanted if wanted[name] != found[name]})
    assert (whole / "sweep.json").read_text() == (tmp_path / "killed" / "sweep.json").read_text()
