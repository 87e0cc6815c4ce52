"""Sweeps of three toy stages, in this process or in one that may be killed.

`python -m tests.helpers.sweep_jobs WORKDIR I/N` runs a shard of one. Each stage that has run is a line of the file
`ran` beside the work directory.
"""

import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs import default
from qrpo_jax.config import Config
from qrpo_jax.errors import ServerError
from qrpo_jax.files import write_text
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.job.manifest import SETTINGS
from qrpo_jax.job.stage import Stage
from qrpo_jax.stages import STAGES
from qrpo_jax.sweep.points import points_of
from qrpo_jax.sweep.run import Sweep

NAMES = ("first", "second", "third")
GRID = {"sample.top_k": [3, 5], "train.beta": [0.1, 0.3], "report.examples": [2, 4]}
FAILING = 666  # examples with which stage `third` fails


def toy_stages(log: Path, slow: float = 0.0) -> Mapping[str, Stage]:
    """Stages that depend on one section each, write its values, and add a line to a log."""

    def stage(name: str, section: str) -> Stage:
        def run(job: Job) -> dict[str, Any]:
            time.sleep(slow)
            if job.config.report.examples == FAILING and name == NAMES[-1]:
                raise ServerError("the server does not answer")
            folder = job.folder(name)
            for path in (folder / "rows", folder / "parameters" / "array"):
                write_text(path, f"{name} {job.config[section].to_dict()}")
            with log.open("a") as file:
                file.write(f"{name} {job.workdir.name}\n")
            return {"done": name}

        return Stage(run, sections=(section,), needs_model=False)

    return dict(STAGES) | {name: stage(name, of) for name, of in zip(NAMES, ("sample", "train", "report"), strict=True)}


def toy_config(grids: Any = GRID, **overrides: Any) -> Config:
    config = default.get_config()
    config.stages = NAMES
    config.sweep = grids
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return config


def toy_sweep(
    workdir: Path,
    grids: Any = GRID,
    shard: tuple[int, int] = (0, 1),
    *,
    log: Path | None = None,
    slow: float = 0.0,
    **overrides: Any,
) -> Sweep:
    points = points_of(toy_config(grids, **overrides))
    return Sweep(workdir, points, Shard(*shard), Shard(0, 1), toy_stages(log or workdir.parent / "ran", slow))


def ran(folder: Path) -> Counter[str]:
    """How often each stage has run, in all work directories together."""
    path = folder / "ran"
    return Counter(line.split()[0] for line in path.read_text().splitlines()) if path.exists() else Counter()


def outcome(workdir: Path) -> dict[str, Any]:
    """What a sweep leaves that must not depend on kills and shards."""
    kept = {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted(workdir.rglob("*"))
        if path.is_file() and path.name in ("rows", "array", SETTINGS, "sweep.json")
    }
    return kept | {"folders": sorted(path.name for path in (workdir / "points").iterdir())}


if __name__ == "__main__":
    from qrpo_jax.sweep import run as sweep

    index, parts = map(int, sys.argv[2].split("/"))
    sweep.WAIT_SECONDS = 0.05
    sweep.run(toy_sweep(Path(sys.argv[1]), shard=(index, parts), slow=0.05))
