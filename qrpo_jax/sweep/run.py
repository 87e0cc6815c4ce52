"""Runs the points of a sweep in order: all are checked first, shared stages run once, and a failing point is counted.

Everything is on disk at each moment, as in a single run, so that a kill loses nothing that is complete. Processes with
`--shard=i/n` share the work directory: each runs the points i, i + n, ..., and who first needs a shared part makes it,
while others that need it wait.
"""

import gc
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import FrozenConfigDict
from tqdm import tqdm

from qrpo_jax import pipeline
from qrpo_jax.devices.processes import is_first, wait
from qrpo_jax.errors import DamagedError, FailuresError, PointsError, ServerError, UserError, reason
from qrpo_jax.faults import storage
from qrpo_jax.files import write_json
from qrpo_jax.job import fork, manifest
from qrpo_jax.job.job import Job
from qrpo_jax.job.owner import HeldError
from qrpo_jax.job.shard import Shard
from qrpo_jax.job.stage import Stages
from qrpo_jax.sweep import collect
from qrpo_jax.sweep.plan import FAILURES, POINTS, SHARED, Part, Plan, Records, make_plan
from qrpo_jax.sweep.points import Point
from qrpo_jax.training.logbook import NonFiniteLossError

WAIT_SECONDS = 5.0  # between looks at a shared part that another process makes


class Sweep(NamedTuple):
    """Points in one work directory.

    Attributes:
      workdir: has the folders of all points, the shared parts and the table.
      points: all of them.
      shard: the points of this process.
      units: this process's share of the units of work of each point; more than one part in a distributed job.
      stages: the stages that there are.
      fork: work directory of another run, from which the first parts begin as far as their settings agree.
      begun: see `plan.begun`.
    """

    workdir: Path
    points: Sequence[Point]
    shard: Shard
    units: Shard
    stages: Stages
    fork: Path | None = None
    begun: tuple[Path, ...] = ()

    def folder(self, point: Point) -> Path:
        return self.workdir / POINTS / point.name

    def job(self, point: Point, workdir: Path, origin: Path | None = None) -> Job:
        job = Job(FrozenConfigDict(point.config), workdir, self.units, self.stages, origin)
        job.runs = self.begun or job.runs
        return job


def run(sweep: Sweep) -> bool:
    """Runs the points of this shard that are not complete, and writes the table; returns whether all points are.

    Raises:
      UserError: a point is refused by a check, before anything runs or is written.
      PointsError: points failed. The others ran, and the next start tries those again, after all others.
    """
    records = check(sweep)
    plan = make_plan(sweep.workdir, records)
    with pipeline.owned(sweep.workdir, sweep.shard):
        runner = Runner(sweep, plan, records)
        if is_first():
            collect.write(sweep.workdir, sweep.points, plan)  # says what there is to run, for `--status`
        runner.run()
        wait("points have run")
        if is_first():
            found = collect.write(sweep.workdir, sweep.points, plan)
            for line in collect.lines_of(found):
                tqdm.write(line, file=sys.stderr)
            tqdm.write(f"sweep: {collect.write_page(sweep.workdir, sweep.points, found)}", file=sys.stderr)
    if runner.failed:
        raise PointsError(
            f"{len(runner.failed)} of {len(runner.own)} points failed: {', '.join(runner.failed)}; the same command "
            "tries them again"
        )
    return all(is_complete(sweep.folder(point), record) for point, record in zip(sweep.points, records, strict=True))


def check(sweep: Sweep) -> list[Records]:
    """Checks all points; returns the settings of their stages.

    Raises:
      UserError: naming the first point that cannot run, or whose folder has other settings.
    """
    records: list[Records] = []
    for point in sweep.points:
        job = sweep.job(point, sweep.folder(point), sweep.fork)
        with naming(point):
            pipeline.check(job)
            settings = {name: pipeline.settings(job, name) for name in job.config.stages}
            for name in settings:
                manifest.check_settings(job.folder(name), settings[name])
        records.append(settings)
    check_fork(sweep, records)
    return records


def check_fork(sweep: Sweep, records: Sequence[Records]) -> None:
    """Refuses a run from which no point could begin; a sweep that has begun keeps what it took over.

    Raises:
      UserError: naming what differs for the first point.
    """
    if sweep.fork is None or (sweep.workdir / POINTS).exists() or (sweep.workdir / SHARED).exists():
        return
    found = [fork.compare(list(settings), sweep.fork, settings.__getitem__) for settings in records]
    if not any(one.stages for one in found):
        raise UserError(
            f"--fork={sweep.fork}: nothing can be taken over by any point: point {sweep.points[0].name}: "
            f"{found[0].reason}"
        )


@contextmanager
def naming(point: Point) -> Iterator[None]:
    """Adds the name of the point to a mistake of the user."""
    try:
        yield
    except UserError as error:
        named = UserError(f"point {point.name}: {error.message}", about=error.about)
        named.keys = error.keys
        raise named from error


class Runner:
    """Runs points one after the other.

    Attributes:
      own: the points of this shard.
      failed: what the points that failed said, by name.
    """

    def __init__(self, sweep: Sweep, plan: Plan, records: Sequence[Records]) -> None:
        self._sweep, self._plan, self._records = sweep, plan, records
        self.own = [i for i in range(len(sweep.points)) if sweep.shard.owns(i)]
        self.failed: dict[str, str] = {}
        self._failed_parts: dict[Path, str] = {}

    def run(self) -> None:
        """Runs all points of this shard; those that failed before come last."""
        points, count = self._sweep.points, len(self._sweep.points)
        order = sorted(self.own, key=lambda i: self._failure(points[i]).exists())
        wait("points are in order")  # before a process removes a failure
        for i in order:
            point = points[i]
            if is_complete(self._sweep.folder(point), self._records[i]):
                self._say(point, f"point {i + 1} of {count}, {point.name}: complete")
                continue
            self._say(point, f"point {i + 1} of {count}, {point.name}:")
            with self._counted(point):
                self._run(i)

    def _run(self, i: int) -> None:
        """Runs one point, after the stages that it shares."""
        point, origin = self._sweep.points[i], self._plan.origins[i]
        if origin is not None:
            self._share(self._plan.parts[origin])
        workdir = self._sweep.folder(point)
        source = self._origin(point, workdir, origin or self._sweep.fork)
        pipeline.run(self._sweep.job(point, workdir, source), source, linked=origin is not None)

    def _share(self, part: Part) -> None:
        """Makes a shared part, or waits for another process that makes it.

        Raises:
          UserError and others: as for a point; once it has failed, `PointsError` for each further point.
        """
        first = part.points[0]
        if is_complete(part.folder, {name: self._records[first][name] for name in part.stages}):
            return
        if part.folder in self._failed_parts:
            raise PointsError(f"stages that it shares failed: {self._failed_parts[part.folder]}")
        if part.parent is not None:
            self._share(self._plan.parts[part.parent])
        point = self._sweep.points[first]
        self._say(point, f"shared by {len(part.points)} points: {', '.join(part.stages)} ({part.folder})")
        said = False
        while True:
            source = self._origin(point, part.folder, part.parent or self._sweep.fork)
            try:
                job = self._sweep.job(point, part.folder, source)
                pipeline.run(job, source, stages=part.stages, linked=part.parent is not None)
                return
            except HeldError as error:
                if not said:
                    self._say(point, f"waiting for a shared part: {error.message.partition(';')[0]}")
                said = True
                time.sleep(WAIT_SECONDS)
            except Exception as error:
                self._failed_parts[part.folder] = explained(error, part.folder) or reason(error)
                raise

    def _origin(self, point: Point, workdir: Path, other: Path | None) -> Path | None:
        job = self._sweep.job(point, workdir)
        return fork.origin_of(job, other, lambda name: self._records_of(point)[name])

    def _records_of(self, point: Point) -> Records:
        return self._records[self._sweep.points.index(point)]

    @contextmanager
    def _counted(self, point: Point) -> Iterator[None]:
        """Keeps what a failing point said, and goes on; a point that does not fail is no longer counted.

        Processes of a distributed job may fail one by one, in the middle of what they compute together. There the first
        failure ends the job, and the next start begins with the points behind it.
        """
        try:
            yield
        except Exception as error:
            message = explained(error, self._sweep.folder(point))
            if is_first():
                write_json(self._failure(point), {"message": message or reason(error)})
            if jax.process_count() > 1:
                raise
            if message is None:
                traceback.print_exc()  # a bug
            self.failed[point.name] = message or reason(error)
            self._say(point, f"FAILED {point.name}: {self.failed[point.name]}")
        else:
            if is_first():
                self._failure(point).unlink(missing_ok=True)
        finally:
            # Programs and arrays of one point are of no use to the next, and programs are kept on disk.
            jax.clear_caches()
            gc.collect()

    def _failure(self, point: Point) -> Path:
        return self._sweep.workdir / FAILURES / f"{point.name}.json"

    def _say(self, point: Point, line: str) -> None:
        self._sweep.job(point, self._sweep.workdir).say(f"sweep: {line}")


def is_complete(workdir: Path, records: Records) -> bool:
    """Whether a work directory has all these stages, with these settings."""
    return all(
        manifest.read_manifest(workdir / name) is not None
        and not manifest.difference(manifest.read_record(workdir / name / manifest.SETTINGS), settings)
        for name, settings in records.items()
    )


def explained(error: Exception, workdir: Path) -> str | None:
    """One line for an error that is no bug; None for a bug."""
    known: tuple[Any, ...] = (UserError, DamagedError, FailuresError, PointsError, ServerError, NonFiniteLossError)
    if isinstance(error, known):
        return " ".join(str(error).split())
    return storage.explain(error, workdir)
