"""`--fork=OTHER`: a run that starts from the complete stages of another run, as far as their settings agree."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qrpo_jax.devices.processes import is_first, wait
from qrpo_jax.errors import UserError
from qrpo_jax.faults.records import read_record, write_record
from qrpo_jax.files import TEMPORARY, copy_file, is_complete, local_folder, whole_folder
from qrpo_jax.job import results_file
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import SETTINGS, difference, read_manifest
from qrpo_jax.stores.path import as_path

RECORD = "fork.json"  # in the work directory: where its first stages come from
LINKED = "parameters"  # no stage writes into this folder again, so both runs may share its files


class Agreement(NamedTuple):
    """The stages of another run whose settings agree, and why the one after them does not; "" if there is none."""

    other: Path
    stages: list[str]
    reason: str


def agreed(
    job: Job, other: Path, settings: Callable[[str], Mapping[str, Any]], stages: Sequence[str] | None = None
) -> Agreement:
    """What a job takes over from another run; what it decided once stays so if it is killed.

    Args:
      other: work directory of the other run.
      settings: from a stage to the settings that it has in this job.
      stages: that may be taken over; by default all of the job.

    Raises:
      UserError: the other folder is no work directory, nothing agrees, or the job's work directory is not new.
    """
    record = job.workdir / RECORD
    # Looked for before the record: another process of a sweep, which may take over just now, writes the record first.
    present = [name for name in job.stages if job.folder(name).exists()]
    if record.exists():
        origin = read_record(record)
        if origin["from"] != str(other.resolve()):
            raise UserError(
                f"--workdir={job.workdir} was forked from {origin['from']}; name that with --fork, or nothing"
            )
        return Agreement(other, origin["stages"], "")
    check_new(job, other, present)
    agreement = compare(stages or job.config.stages, other, settings)
    if not agreement.stages:
        raise UserError(f"--fork={other}: nothing can be taken over: {agreement.reason}")
    return agreement


def take_over(job: Job, agreement: Agreement, *, linked: bool = False) -> None:
    """Copies the agreeing stages of another run into the work directory of a job, each whole or not at all.

    A second call goes on where a killed one stopped.

    Args:
      linked: both are parts of one sweep, and share all files where the file system can.
    """
    other = agreement.other
    wait("fork checked")
    if is_first():
        record = job.workdir / RECORD
        if not record.exists():
            write_record(record, {"from": str(other.resolve()), "stages": agreement.stages})
            following = job.config.stages[len(agreement.stages) :]
            if following and not linked:
                job.say(f"{following[0]} and what follows run anew: {agreement.reason}")
        for name in agreement.stages:
            if not is_complete(job.folder(name)):
                place = link if linked else copy
                place(other / name, job.folder(name), job.stages[name].outside)
                job.say(f"{name}: taken over from {other / name}")
        if set(agreement.stages) & set(results_file.OWN):
            results_file.write_common(job)  # the other run's may have what a stage found that is not taken over
    wait("forked")


def check_new(job: Job, other: Path, present: Sequence[str]) -> None:
    """Refuses a work directory that has stages, and another run that has none or is the same.

    Args:
      present: stages that the work directory has.

    Raises:
      UserError: naming the flag.
    """
    if not any((other / name / SETTINGS).is_file() for name in job.stages):
        raise UserError(f"--fork={other} is no work directory of a run: it has no folder of a stage")
    if other.resolve() == job.workdir.resolve():
        raise UserError(f"--fork={other} is also --workdir; name a new folder as --workdir")
    if present:
        raise UserError(f"--workdir={job.workdir} has stage {present[0]!r} already; --fork needs a new folder")


def origin_of(job: Job, other: Path | None, settings: Callable[[str], Mapping[str, Any]]) -> Path | None:
    """The run from which a part of a sweep is forked, with whatever earlier starts have decided.

    Args:
      other: where it would begin today; None to begin anew.
      settings: as in `agreed`.

    Returns:
      None if it has its first stages already, or if there is nothing to take over.
    """
    record = job.workdir / RECORD
    if record.exists():
        origin = read_record(record)
        missing = not all(is_complete(job.folder(name)) for name in origin["stages"])
        return as_path(origin["from"]) if missing else None
    if other is None or any(job.folder(name).exists() for name in job.stages):
        return None
    return other if compare(job.config.stages, other, settings).stages else None


def compare(names: Sequence[str], other: Path, settings: Callable[[str], Mapping[str, Any]]) -> Agreement:
    """The first of these stages that are complete in the other run and had the same settings."""
    stages: list[str] = []
    for name in names:
        if read_manifest(other / name) is None:
            return Agreement(other, stages, f"stage {name!r} is not complete in {other}")
        changes = difference(read_record(other / name / SETTINGS), settings(name))
        if changes:
            return Agreement(other, stages, f"stage {name!r} has other settings ({'; '.join(changes)})")
        stages.append(name)
    return Agreement(other, stages, "")


def copy(source: Path, target: Path, outside: tuple[str, ...]) -> None:
    """Copies a complete stage, without the checkpoints that it needs no more.

    Args:
      outside: files beside the folder that belong to the stage too.
    """
    _place(source, target, outside, lambda file: LINKED in file.parts[:1])


def link(source: Path, target: Path, outside: tuple[str, ...]) -> None:
    """As `copy`, with the same files in both places. Stages replace files and never write into them."""
    _place(source, target, outside, lambda file: True)


def _place(source: Path, target: Path, outside: tuple[str, ...], is_linked: Callable[[Path], bool]) -> None:
    """Copies a complete stage; `is_linked` says of a file, relative to the stage's folder, whether both share it."""

    def copy_linked(file: str, to: str) -> None:
        if is_linked(Path(file).relative_to(local)):
            try:
                os.link(file, to)
                return
            except OSError:
                pass  # another file system, or one without links
        shutil.copyfile(file, to)

    local = local_folder(source)
    with whole_folder(target) as temporary:
        shutil.copytree(
            local,
            temporary,
            copy_function=copy_linked,
            ignore=shutil.ignore_patterns("checkpoints", f"{TEMPORARY}*"),
            dirs_exist_ok=True,
        )
    for name in outside:
        copy_file(source.parent / name, target.parent / name)
