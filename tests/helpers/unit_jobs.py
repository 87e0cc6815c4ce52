"""Jobs of three toy stages that write rows, and the same jobs killed at random moments.

`python -m tests.helpers.unit_jobs KIND FOLDER KILLS SEED` kills starts of a job, `KIND` being "toy" or "model" (sample,
score and reference of a tiny model), until it has killed so many; it prints a JSON object with what became of them.
Starts are forks of one process that has imported everything, so that most kills hit work.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from configs import default
from qrpo_jax import pipeline
from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row, encode
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.stage import Stage
from qrpo_jax.job.units import Counts, row_units, run_units
from qrpo_jax.stages import STAGES
from tests.helpers import jobs
from tests.helpers.sample_rows import make_row

NAMES = ("sample", "score", "reference")
UNITS, ROWS = 11, 3  # rows of a unit


def toy_stage(name: str, work: Callable[[Row], Row]) -> Stage:
    """A stage that changes each row of the stage before it; the first one makes rows."""

    def run(job: Job) -> dict[str, Any] | None:
        units = UNITS if name == NAMES[0] else row_units(job.folder(job.rows_before(name)))

        def of_unit(unit: int) -> tuple[list[Row], Counts]:
            if name == NAMES[0]:
                rows = [make_row(unit * ROWS + i) for i in range(ROWS)]
            else:
                rows = list(row_files.read_unit(job.folder(job.rows_before(name)), unit, units))
            return [work(row) for row in rows], {"rows": len(rows)}

        counts = run_units(job, job.folder(name), units, of_unit, title=name)
        return None if counts is None else {"units": units, "counts": counts}

    return Stage(run, shardable=True, writes_rows=True, needs_model=False, needs=() if name == NAMES[0] else NAMES[:1])


def tagged(name: str) -> Callable[[Row], Row]:
    return lambda row: dataclasses.replace(row, id=f"{row.id} {name}")


TOY = {name: toy_stage(name, tagged(name)) for name in NAMES}


def toy_job(workdir: Path, stages: tuple[str, ...] = NAMES, shard: tuple[int, int] = (0, 1)) -> Job:
    config = default.get_config()
    config.stages = stages
    return Job(FrozenConfigDict(config), workdir, Shard(*shard), STAGES | TOY)


def model_job(workdir: Path) -> Job:
    """Sample, score and reference of a tiny model, whose training is complete: it is taken from a folder beside."""
    small = {"prompts__count": 23, "prompts__held_out": 0, "prompts__unit": 2, "sft__examples": 31}
    small |= {"sample__completions": 3, "sample__max_new_tokens": 7, "sft__batch_size": 31}
    trained = workdir.parent / "trained"
    if not trained.exists():
        assert pipeline.run(jobs.job(trained, stages=("sft",), **small))
    if not (workdir / "sft").exists():
        partial_copy = workdir.parent / f"{workdir.name}-sft"
        shutil.copytree(trained / "sft", partial_copy, dirs_exist_ok=True)
        workdir.mkdir(exist_ok=True)
        partial_copy.rename(workdir / "sft")
    return jobs.job(workdir, stages=("sft", *NAMES), **small)


def outcome(workdir: Path) -> dict[str, Any]:
    """Rows, counts and names of files of each stage; pace and times left out."""
    found: dict[str, Any] = {}
    for name in NAMES:
        manifest = read_manifest(workdir / name)
        assert manifest is not None, name
        found[name] = [encode(row).hex() for row in row_files.read(workdir / name)]
        found[f"{name} manifest"] = {key: value for key, value in manifest.items() if key != "files"}
        found[f"{name} files"] = sorted(manifest["files"].items())
    return found


def forked(work: Callable[[], bool], log: Path, seconds: float = 600) -> bool | None:
    """What a child process returns; None if it was killed after so many seconds."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            status = 0 if work() else 3
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            assert code in (0, 3), (code, log.read_text()[-3000:])
            return code == 0
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def under_way(workdir: Path) -> str:
    """The stage that a kill hit, and how many of its units were complete."""
    for name in reversed(NAMES):
        if (workdir / name / "settings.json").exists():
            units = len(list((workdir / name).glob("rows-*-of-*[0-9]")))
            return f"{name} {units}" if not (workdir / name / "manifest.json").exists() else f"after {name}"
    return "before sample"


def main(kind: str, folder: Path, kills: int, seed: int) -> None:
    """See above. This process itself runs no job and reads no rows: threads of libraries do not survive a fork."""
    make: Callable[[Path], Job] = {"toy": toy_job, "model": model_job}[kind]
    log, rng, hit, runs, killed = folder / "log", random.Random(seed), [], 0, 0

    def run(workdir: Path) -> bool:
        return pipeline.run(make(workdir))

    assert forked(lambda: bool(make(folder / "undisturbed-0")), log), log.read_text()[-3000:]
    for attempt in range(2):  # the second one finds all programs compiled
        began = time.monotonic()
        assert forked(partial(run, folder / f"undisturbed-{attempt}"), log)
        seconds = time.monotonic() - began

    def is_equal(workdir: Path) -> bool:
        wanted, found = outcome(folder / "undisturbed-1"), outcome(workdir)
        print({name for name in wanted if found[name] != wanted[name]} or "equal")
        return found == wanted

    assert forked(partial(is_equal, folder / "undisturbed-0"), log), log.read_text()[-3000:]
    differing = []
    while True:
        workdir = folder / f"run-{runs}"
        last = killed >= kills
        if forked(partial(run, workdir), log, 600 if last else rng.uniform(0, seconds)) is None:
            killed += 1
            hit.append(under_way(workdir))
            continue
        runs += 1
        if not forked(partial(is_equal, workdir), log):
            differing.append(workdir.name)
        if last:
            break
    print(json.dumps({"killed": killed, "runs": runs, "differing": differing, "seconds": seconds, "hit": hit}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
