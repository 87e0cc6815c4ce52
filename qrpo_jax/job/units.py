"""Row stages work unit by unit: each unit appears whole, any process may make it, and a kill loses only one."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
from jax.experimental import multihost_utils
from tqdm import tqdm

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import write_json

Counts = dict[str, int]
Work = Callable[[int], tuple[list[Row], Counts]]


def run_units(job: Job, folder: Path, units: int, work: Work, *, title: str) -> Counts | None:
    """Makes this process's units that are not there yet; returns the sum of all counts, or None if others remain.

    Args:
      work: from a unit's number to its rows and what there is to count about them; must depend on nothing else.
    """
    mine = [u for u in range(units) if job.shard.owns(u)]
    bar = tqdm(mine, desc=title, unit="unit", disable=jax.process_index() != 0, mininterval=0.5)
    for unit in bar:
        if row_files.unit_done(folder, unit, units):
            continue
        rows, counts = work(unit)
        write_json(_counts_file(folder, unit), counts)
        row_files.write_unit(folder, unit, units, rows)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"{folder.name} units")
    missing = sum(not row_files.unit_done(folder, u, units) for u in range(units))
    if missing:
        job.say(f"{title}: {missing} of {units} units are left to other shards")
        return None
    if jax.process_index() == 0:
        row_files.finish(folder, units)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"{folder.name} finished")
    return add_counts([json.loads(_counts_file(folder, u).read_text()) for u in range(units)])


def add_counts(parts: list[Counts]) -> Counts:
    total: Counts = {}
    for part in parts:
        for name, count in part.items():
            total[name] = (total.get(name, 0)) + count
    return total


def _counts_file(folder: Path, unit: int) -> Path:
    return folder / "counts" / f"{unit:05d}.json"
