"""Units of work, for stages that write rows: any process can compute any unit, and a kill loses at most one."""

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row
from qrpo_jax.devices.processes import anywhere, is_first, wait
from qrpo_jax.errors import DamagedError
from qrpo_jax.faults.interruption import RUN
from qrpo_jax.faults.records import read_record, write_record
from qrpo_jax.job import pace
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.pace import Measure, Pace, read_pace, write_pace
from qrpo_jax.job.unit_bar import UnitBar
from qrpo_jax.job.verdicts import Counts

Work = Callable[[int], tuple[list[Row], Counts]]


def run_units(
    job: Job,
    folder: Path,
    units: int,
    work: Work,
    *,
    title: str,
    measure: Measure | None = None,
    together: bool = False,
    begin: Callable[[int], None] = lambda unit: None,
    ahead: int = 0,
) -> Counts | None:
    """Computes and writes the units of this process, or of all processes together, that are not complete yet.

    Args:
      work: from a unit's number to its rows and counts; the result may depend on nothing else.
      title: of the progress bar.
      measure: what the bar shows the rate of.
      together: all processes compute each unit, and the first one writes it.
      begin: called with the number of each unit to compute before `work` is, to start what takes time elsewhere.
      ahead: units that have begun besides the one whose `work` runs.

    Returns:
      The counts of all units added up; None while units of other shards are missing.
    """
    owned = [u for u in range(units) if together or job.shard.owns(u)]
    missing = np.asarray([not _is_whole(folder, u, units) for u in owned], bool)
    if together:  # all must compute the same units, whatever each sees of a shared disk
        missing = anywhere(missing)
    todo = [unit for unit, lacks in zip(owned, missing, strict=True) if lacks]
    whole = [unit for unit, lacks in zip(owned, missing, strict=True) if not lacks]
    there = add_counts([read_counts(folder, unit) for unit in whole]) if is_first() else {}
    coming = iter(todo)
    for unit in itertools.islice(coming, ahead):
        begin(unit)
    # Closed on an error too, so that the error has a line of its own.
    with UnitBar(title, len(owned), there, len(whole), measure) as bar:
        for made, unit in enumerate(todo):
            RUN.progress(len(whole) + made, len(owned), f"units of {folder.name}")
            if row_files.unit_done(folder, unit, units):
                job.say(f"WARNING: {row_files.unit_path(folder, unit, units)} or its counts are damaged; made again")
            for later in itertools.islice(coming, 1):
                begin(later)
            began = time.perf_counter()
            rows, counts = work(unit)
            seconds = time.perf_counter() - began
            if together and not is_first():
                continue
            write_pace(folder, unit, seconds, first=made == 0)
            write_record(_counts_file(folder, unit), counts)
            row_files.write_unit(folder, unit, units, rows)
            bar.add(counts, seconds, first=made == 0)
    RUN.progress(len(owned), len(owned), f"units of {folder.name}")
    wait(f"{folder.name} units")
    absent = sum(not row_files.unit_done(folder, u, units) for u in range(units))
    if absent:
        job.say(f"{title}: {absent} of {units} units are left to other shards")
        return None
    if is_first():
        row_files.finish(folder, units)
    wait(f"{folder.name} finished")
    return add_counts([read_counts(folder, u) for u in range(units)])


def written_counts(folder: Path, units: int) -> list[Counts]:
    """The counts of the units that are complete, whoever wrote them."""
    done = [unit for unit in range(units) if row_files.unit_done(folder, unit, units)]
    found = []
    for unit in done:
        with contextlib.suppress(FileNotFoundError, DamagedError):  # that unit is made again
            found.append(read_counts(folder, unit))
    return found


def row_units(folder: Path) -> int:
    """Number of units of a finished stage that writes rows."""
    manifest = read_manifest(folder)
    assert manifest is not None, "stages run in order"
    return manifest["units"]


def read_counts(folder: Path, unit: int) -> Counts:
    """The counts of a complete unit."""
    return read_record(_counts_file(folder, unit))


def rows_written(folder: Path, units: int) -> int:
    """Number of rows in all units, which are complete."""
    return sum(info.count for u in range(units) if (info := row_files.unit_info(folder, u, units)))


def pace_of(folder: Path, units: int, measure: Measure) -> Pace:
    """The pace of all units whose seconds of work are known, whichever process made them, and when."""
    found = (read_pace(folder, unit, measure.amount(read_counts(folder, unit))) for unit in range(units))
    return pace.together(one for one in found if one is not None)


def add_counts(parts: list[Counts]) -> Counts:
    """The sum of counts by name, in the order in which names first occur."""
    total: Counter[str] = Counter()
    for counts in parts:
        total.update(counts)
    return dict(total)


def _is_whole(folder: Path, unit: int, units: int) -> bool:
    """Whether a unit and its counts are there and are what was written."""
    try:
        read_counts(folder, unit)
    except (FileNotFoundError, DamagedError):
        return False
    return row_files.unit_whole(folder, unit, units)


def _counts_file(folder: Path, unit: int) -> Path:
    return folder / "counts" / f"{unit:05d}.json"
