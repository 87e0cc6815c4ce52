"""An on-policy run that is killed thirty times at random moments ends with the same bits."""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrpo_jax.data import row_files, rows
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.on_policy.rollout import read_rollout
from qrpo_jax.training.metrics import MACHINE, read_metrics
from tests.job.test_resume import finish, start

KILLS, ITERATIONS = 30, 7
BASE = ["--config.stages=sft"]
ONLINE = [
    "--config.stages=sft,train,export",
    "--config.train.data=on_policy",
    "--config.train.objective=ppo",
    "--config.train.kl_target=0.3",
    "--config.train.checkpoint_every=3",
    f"--config.rollout.iterations={ITERATIONS}",
    "--config.rollout.prompts=11",
    "--config.rollout.completions=5",
    "--config.rollout.max_new_tokens=17",
    "--config.rollout.ahead=True",
]


def outputs(workdir: Path) -> dict[str, Any]:
    """All that must not depend on kills."""
    folder = workdir / "train" / "rollouts"
    found: dict[str, Any] = {"rows": [rows.encode(row) for row in row_files.read(folder)]}
    for iteration in range(ITERATIONS):
        rollout = read_rollout(folder, iteration, ITERATIONS)
        found[f"facts {iteration}"] = rollout.facts
        found |= {f"{name} {iteration}": np.nan_to_num(x).tobytes() for name, x in rollout.tokens.items()}
    lines = read_metrics(workdir / "train" / "metrics.jsonl")
    found["metrics"] = [{name: value for name, value in line.items() if name not in MACHINE} for line in lines]
    manifest = read_manifest(workdir / "train")
    assert manifest is not None
    found["manifest"] = {name: value for name, value in manifest.items() if name != "files"}
    found["model"] = (workdir / "export" / "model" / "model.safetensors").read_bytes()
    return found


def moment(workdir: Path) -> str:
    """Where a run was killed."""
    folder = workdir / "train" / "rollouts"
    done = sum(row_files.unit_done(folder, i, ITERATIONS) for i in range(ITERATIONS)) if folder.exists() else 0
    return f"{done} rollouts" if (workdir / "train").exists() else "before"


@pytest.mark.slow
def test_thirty_kills_change_nothing(tmp_path: Path) -> None:
    cache, base, undisturbed = (tmp_path / name for name in ("cache", "base", "undisturbed"))
    finish(base, cache, *BASE)
    online = [*ONLINE, f"--fork={base}"]
    finish(undisturbed, cache, *online)
    shutil.rmtree(undisturbed)
    seconds = finish(undisturbed, cache, *online)  # timed with everything compiled
    wanted, generator = outputs(undisturbed), random.Random(7)
    kills, runs, hit = 0, 0, []

    def compare(workdir: Path) -> None:
        found = outputs(workdir)
        differing = [name for name in wanted.keys() | found.keys() if found.get(name) != wanted.get(name)]
        assert not differing, (sorted(differing), hit)

    workdir, whole = tmp_path / "killed-0", True
    while kills < KILLS:
        began, process = time.monotonic(), start(workdir, cache, *online)
        try:
            process.wait(timeout=generator.uniform(0.3, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills, whole = kills + 1, False
            hit.append(moment(workdir))
            continue
        assert process.returncode == 0, (tmp_path / f"{workdir.name}.log").read_text()[-3000:]
        compare(workdir)
        if whole:  # the machine has become faster
            seconds = min(seconds, time.monotonic() - began)
        runs, whole = runs + 1, True
        workdir = tmp_path / f"killed-{runs}"
    finish(workdir, cache, *online)
    compare(workdir)
    print(f"undisturbed {seconds:.0f} s; killed {kills} times in {runs + 1} runs: {', '.join(hit)}")
    assert len(set(hit)) >= 4, hit
