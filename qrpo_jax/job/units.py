"""Units of work, for stages that write rows: any process can compute any unit, and a kill loses at most one."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row
from qrpo_jax.devices.processes import anywhere, is_first, wait
from qrpo_jax.errors import DamagedError
from qrpo_jax.faults.interruption import RUN
from qrpo_jax.faults.records import read_record, write_record
from qrpo_jax.job import verdicts
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.verdicts import Counts

Work = Callable[[int], tuple[list[Row], Counts]]


def run_units(
    job: Job,
    folder: Path,
    units: int,
    work: Work,
    *,
    title: str,
    together: bool = False,
    begin: Callable[[int], None] = lambda unit: None,
    ahead: int = 0,
) -> Counts | None:
    """Computes and writes the units of this process, or of all processes together, that are not complete yet.

    Args:
      work: from a unit's number to its rows and counts; the result may depend on nothing else.
      title: of the progress bar.
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
    running: Counter[str] = Counter()  # of the units that are there, for the bar
    coming = iter([unit for unit, gone in zip(owned, missing, strict=True) if gone])
    for unit in itertools.islice(coming, ahead):
        begin(unit)
    # Closed on an error too, so that the error has a line of its own.
    with tqdm(owned, desc=title, unit="unit", disable=not is_first(), mininterval=0.5) as bar:
        for done, unit in enumerate(bar):
            RUN.progress(done, len(owned), f"units of {folder.name}")
            if not missing[done]:
                _show(bar, running, read_record(_counts_file(folder, unit)) if is_first() else {})
                continue
            if row_files.unit_done(folder, unit, units):
                job.say(f"WARNING: {row_files.unit_path(folder, unit, units)} or its counts are damaged; made again")
            for later in itertools.islice(coming, 1):
                begin(later)
            rows, counts = work(unit)
            if together and not is_first():
                continue
            _show(bar, running, counts)
            write_record(_counts_file(folder, unit), counts)
            row_files.write_unit(folder, unit, units, rows)
    wait(f"{folder.name} units")
    absent = sum(not row_files.unit_done(folder, u, units) for u in range(units))
    if absent:
        job.say(f"{title}: {absent} of {units} units are left to other shards")
        return None
    if is_first():
        row_files.finish(folder, units)
    wait(f"{folder.name} finished")
    return add_counts([read_record(_counts_file(folder, u)) for u in range(units)])


def written_counts(folder: Path, units: int) -> list[Counts]:
    """The counts of the units that are complete, whoever wrote them."""
    done = [unit for unit in range(units) if row_files.unit_done(folder, unit, units)]
    found = []
    for unit in done:
        with contextlib.suppress(FileNotFoundError, DamagedError):  # that unit is made again
            found.append(read_record(_counts_file(folder, unit)))
    return found


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


def _show(bar: tqdm, running: Counter[str], counts: Counts) -> None:
    """Adds the counts of a unit to those of the units before it, and puts the verdicts among them on the bar."""
    running.update(counts)
    bar.set_postfix_str(verdicts.shares(running), refresh=False)


def _is_whole(folder: Path, unit: int, units: int) -> bool:
    """Whether a unit and its counts are there and are what was written."""
    try:
        read_record(_counts_file(folder, unit))
    except (FileNotFoundError, DamagedError):
        return False
    return row_files.unit_whole(folder, unit, units)


def _counts_file(folder: Path, unit: int) -> Path:
    return folder / "counts" / f"{unit:05d}.json"
