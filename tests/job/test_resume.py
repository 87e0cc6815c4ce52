"""Killed at any moment and started again, a job ends where an undisturbed one ends."""

import json
import os
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
from tests.helpers.jobs import ROOT, SMALL

KILLS = 12


def start(workdir: Path, cache: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Restarts would otherwise mostly compile, and kills mostly hit the compiler.
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-m", "qrpo_jax.main", *SMALL, f"--workdir={workdir}"]
    log = (workdir.parent / f"{workdir.name}.log").open("ab")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def finish(workdir: Path, cache: Path) -> float:
    began = time.monotonic()
    process = start(workdir, cache)
    code = process.wait(timeout=900)
    assert code == 0, (workdir.parent / f"{workdir.name}.log").read_text()[-3000:]
    return time.monotonic() - began


def made(workdir: Path) -> dict[str, Any]:
    """Everything a run leaves that must not depend on how often it was killed."""
    found: dict[str, Any] = {"results": json.loads((workdir / "results.json").read_text())}
    for folder in sorted(workdir.rglob(row_files.INFO_FILE)):
        name = str(folder.parent.relative_to(workdir))
        found[name] = [rows.encode(row) for row in row_files.read(folder.parent)]
    for stage in ("sft", "train"):
        lines = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
        found[f"{stage} metrics"] = [{k: v for k, v in x.items() if k != "tokens_per_second"} for x in lines]
    for stage in ("sft", "sample", "score", "reference", "train", "evaluate", "export"):
        found[f"{stage} manifest"] = json.loads((workdir / stage / "manifest.json").read_text())
    found["model"] = (workdir / "export" / "model" / "model.safetensors").read_bytes()
    return found


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
    wanted = made(undisturbed)
    generator = random.Random(11)
    workdir, kills, hit = tmp_path / "killed-0", 0, []
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
        # It got through between two kills: compare, and take the remaining kills on a new one.
        assert process.returncode == 0
        compare(made(workdir), wanted, hit)
        workdir = tmp_path / f"killed-{kills}"
    finish(workdir, cache)
    compare(made(workdir), wanted, hit)
    print(f"undisturbed {seconds:.0f} s; killed during: {', '.join(hit)}")
    assert len(set(hit)) >= 3, hit


def compare(found: dict[str, Any], wanted: dict[str, Any], hit: list[str]) -> None:
    assert found.keys() == wanted.keys(), f"killed during {hit}"
    for name, value in wanted.items():
        assert found[name] == value, f"{name} differs after kills during {hit}"
