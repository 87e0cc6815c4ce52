"""A job that is killed at any moment and started again ends like an undisturbed one."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qrpo_jax.data import row_files, rows
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.training.metrics import MACHINE
from tests.helpers.jobs import ROOT, SMALL, environment

KILLS = 12


def start(workdir: Path, cache: Path, *overrides: str) -> subprocess.Popen[bytes]:
    # Without a cache, restarts would spend most of their time compiling, and most kills would hit the compiler.
    variables = environment(
        JAX_ENABLE_COMPILATION_CACHE="true",
        JAX_COMPILATION_CACHE_DIR=str(cache),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    command = [sys.executable, "-m", "qrpo_jax.main", *SMALL, *overrides, f"--workdir={workdir}"]
    log = (workdir.parent / f"{workdir.name}.log").open("ab")
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log)


def finish(workdir: Path, cache: Path, *overrides: str) -> float:
    began = time.monotonic()
    process = start(workdir, cache, *overrides)
    code = process.wait(timeout=900)
    assert code == 0, (workdir.parent / f"{workdir.name}.log").read_text()[-3000:]
    return time.monotonic() - began


def outputs(workdir: Path) -> dict[str, Any]:
    """All outputs of a run that must not depend on kills."""
    contents: dict[str, Any] = {"results": json.loads((workdir / "results.json").read_text())}
    for folder in sorted(workdir.rglob(row_files.INFO_FILE)):
        name = str(folder.parent.relative_to(workdir))
        contents[name] = [rows.encode(row) for row in row_files.read(folder.parent)]
    for stage in ("sft", "train"):
        lines = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
        contents[f"{stage} metrics"] = [{k: v for k, v in x.items() if k not in MACHINE} for x in lines]
    for stage in ("sft", "sample", "score", "reference", "train", "evaluate", "export"):
        recorded = read_manifest(workdir / stage)
        assert recorded is not None
        # Its list of files has the checksum of the metrics, with the speed in them.
        contents[f"{stage} manifest"] = {name: value for name, value in recorded.items() if name != "files"}
    contents["model"] = (workdir / "export" / "model" / "model.safetensors").read_bytes()
    return contents


def stage_under_way(workdir: Path) -> str:
    begun = [p.parent for p in workdir.glob("*/settings.json") if not (p.parent / "manifest.json").exists()]
    return begun[0].name if begun else "between stages"


@pytest.mark.slow
def test_killed_at_random_moments_a_job_ends_bit_identical(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    undisturbed = tmp_path / "undisturbed"
    finish(undisturbed, cache)
    shutil.rmtree(undisturbed)
    seconds = finish(undisturbed, cache)  # timed with everything compiled
    wanted = outputs(undisturbed)
    generator = random.Random(11)
    workdir, kills, runs, hit = tmp_path / "killed-0", 0, 0, []
    while kills < KILLS:
        process = start(workdir, cache)
        try:
            process.wait(timeout=generator.uniform(0.25, 0.75) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            hit.append(stage_under_way(workdir))
            continue
        # The run ended before the next kill: compare it, and continue with a new one.
        assert process.returncode == 0
        compare(outputs(workdir), wanted, hit)
        runs += 1  # not the number of kills: a machine that has become faster ends several runs without any
        workdir = tmp_path / f"killed-{runs}"
    finish(workdir, cache)
    compare(outputs(workdir), wanted, hit)
    print(f"undisturbed {seconds:.0f} s; killed during: {', '.join(hit)}")
    assert len(set(hit)) >= 3, hit


def compare(contents: dict[str, Any], wanted: dict[str, Any], hit: list[str]) -> None:
    assert contents.keys() == wanted.keys(), f"killed during {hit}"
    for name, value in wanted.items():
        assert contents[name] == value, f"{name} differs after kills during {hit}"
