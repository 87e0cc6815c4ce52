"""Stages that make rows work unit by unit: any process may make a unit, and a kill loses only one."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row
from qrpo_jax.devices.processes import is_first, wait
from qrpo_jax.files import write_json
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import read_manifest

Counts = dict[str, int]
Work = Callable[[int], tuple[list[Row], Counts]]


def run_units(job: Job, folder: Path, units: int, work: Work, *, title: str) -> Counts | None:
    """Makes those of this process's units that are not complete yet.

    Args:
      work: from a unit's number to its rows and counts; must depend on nothing else.
      title: of the progress bar.

    Returns:
      The counts of all units added up; None while units of other shards are missing.
    """
    mine = [u for u in range(units) if job.shard.owns(u)]
    for unit in tqdm(mine, desc=title, unit="unit", disable=not is_first(), mininterval=0.5):
        if row_files.unit_done(folder, unit, units):
            continue
        rows, counts = work(unit)
        write_json(_counts_file(folder, unit), counts)
        row_files.write_unit(folder, unit, units, rows)
    wait(f"{folder.name} units")
    absent = sum(not row_files.unit_done(folder, u, units) for u in range(units))
    if absent:
        job.say(f"{title}: {absent} of {units} units are left to other shards")
        return None
    if is_first():
        row_files.finish(folder, units)
    wait(f"{folder.name} finished")
    return add_counts([json.loads(_counts_file(folder, u).read_text()) for u in range(units)])


def row_units(folder: Path) -> int:
    """Number of units of a finished stage that writes rows."""
    manifest = read_manifest(folder)
    assert manifest is not None, "stages run in order"
    return manifest["units"]


def add_counts(parts: list[Counts]) -> Counts:
    """The sum of counts by name, in the order in which names first occur."""
    total: Counter[str] = Counter()
    for counts in parts:
        total.update(counts)
    return dict(total)


def _counts_file(folder: Path, unit: int) -> Path:
    return folder / "counts" / f"{unit:05d}.json"
