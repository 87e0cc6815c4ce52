"""The owner of a work directory in an object store, which has no locks and no rename.

Every start puts an object of its own, `owners/00000.json`, `owners/00001.json`, ..., and it owns its shard if that is
the first object of this number (`Store.create`). The object says which earlier starts still run beside it, so that the
last object leads to all owners, without a listing. An owner counts up in its object every few seconds until it
releases it. A start that meets an owner of its units watches that: if it counts on, the start is refused; else it is
taken for dead, and the start puts the next object. An owner that finds itself taken for dead leaves.
"""

import dataclasses
import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from qrpo_jax.faults.interruption import command, say
from qrpo_jax.job.owner import RUN_ERROR, Owner, Record, new_record, overlap, refusal
from qrpo_jax.job.shard import Shard
from qrpo_jax.stores.path import StorePath

BEAT_SECONDS = 5.0
WATCH_SECONDS = 60.0  # a beat, and the time in which its call may be repeated
FOLDER = "owners"


def owner_of(workdir: Path, shard: Shard) -> "Owner | Lease":
    """The hold on a work directory on disk or in a store, with `acquire` and `release`."""
    return Lease(workdir, shard) if isinstance(workdir, StorePath) else Owner(workdir, shard)


@dataclasses.dataclass(frozen=True)
class Entry:
    """The object of a start.

    Attributes:
      record: of its process.
      shard: that it owns.
      beside: numbers of earlier starts that owned other shards when it began.
      released: it has ended in order.
    """

    record: Record
    shard: Shard
    beside: tuple[int, ...] = ()
    released: bool = False


class Lease:
    """The hold on a work directory in a store, from `acquire` to `release`.

    Args:
      shard: what this run works on; runs of disjoint shards share a work directory.
    """

    def __init__(self, workdir: StorePath, shard: Shard) -> None:
        self._workdir, self._number, self._seen = workdir, -1, -1
        record = new_record()
        self._entry = Entry(dataclasses.replace(record, boot=f"{record.boot} {process_space()}"), shard)
        self._released, self._writing = threading.Event(), threading.Lock()

    def acquire(self) -> None:
        """Takes the work directory.

        Raises:
          UserError: another run holds it; names the host, the process and its start.
        """
        dead: set[int] = set()
        while self._number < 0:
            last = self._last()
            self._entry = dataclasses.replace(self._entry, beside=tuple(self._beside(last, dead)))
            if self._path(last + 1).store.create(str(self._path(last + 1)), as_bytes(self._entry)):
                self._number = self._seen = last + 1
        threading.Thread(target=self._beat, daemon=True, name="owner").start()

    def release(self) -> None:
        """Gives the work directory back."""
        if self._number < 0 or self._released.is_set():
            return
        self._released.set()
        with suppress(OSError), self._writing:
            self._entry = dataclasses.replace(self._entry, released=True)
            self._path(self._number).write_bytes(as_bytes(self._entry))

    def _path(self, number: int) -> StorePath:
        return self._workdir / FOLDER / f"{number:05d}.json"

    def _last(self) -> int:
        """Number of the last start, or -1. There are no gaps, so a search by halves finds it."""
        below, above = -1, 1
        while self._path(above - 1).is_file():
            below, above = above - 1, above * 2
        above -= 1
        while above - below > 1:
            middle = (below + above) // 2
            below, above = (middle, above) if self._path(middle).is_file() else (below, middle)
        return below

    def _beside(self, last: int, dead: set[int]) -> list[int]:
        """Numbers of the owners of other shards.

        Args:
          dead: starts that did not count on; more are added.

        Raises:
          UserError: an owner of the same units is alive.
        """
        newest = read_entry(self._path(last)) if last >= 0 else None
        beside = []
        for number in (*(newest.beside if newest else ()), last):
            entry = read_entry(self._path(number)) if number >= 0 else None
            if entry is None or entry.released or number in dead:
                continue
            if not overlap(self._entry.shard, entry.shard):
                beside.append(number)
            elif not self._is_gone(entry.record) and counts_on(self._path(number), entry):
                raise refusal(self._workdir, entry.record)
            else:
                dead.add(number)
        return beside

    def _is_gone(self, record: Record) -> bool:
        """Whether a record is of a process that ended where this one can see it."""
        if record.boot != self._entry.record.boot:
            return False
        with suppress(OSError):
            os.kill(record.pid, 0)
            return False
        return True

    def _beat(self) -> None:
        """Counts up while the process lives, unless another start has taken it for dead."""
        while not self._released.wait(BEAT_SECONDS):
            with suppress(OSError):  # a store that does not answer delays a beat; the run itself reports it
                while (later := read_entry(self._path(self._seen + 1))) is not None:
                    self._seen += 1
                    if overlap(self._entry.shard, later.shard) and self._number not in later.beside:
                        self._leave(later.record)
                with self._writing:
                    if not self._released.is_set():
                        record = dataclasses.replace(self._entry.record, beat=self._entry.record.beat + 1)
                        self._entry = dataclasses.replace(self._entry, record=record)
                        self._path(self._number).write_bytes(as_bytes(self._entry))

    def _leave(self, other: Record) -> None:
        if not self._released.is_set():
            say(f"error: {self._workdir} was taken over by {other}; this run leaves; to go on: {command()}")
            os._exit(RUN_ERROR)


def as_bytes(entry: Entry) -> bytes:
    return json.dumps(dataclasses.asdict(entry)).encode()


def read_entry(path: StorePath) -> Entry | None:
    """The entry in an object; None if there is none, or no whole entry."""
    try:
        content = json.loads(path.read_bytes())
        record, shard = Record(**content["record"]), Shard(**content["shard"])
        return Entry(record, shard, tuple(content["beside"]), content["released"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def counts_on(path: StorePath, entry: Entry) -> bool:
    """Whether the owner, whose entry this is, still counts up; returns as soon as it does or has released."""
    print(f"waiting {WATCH_SECONDS:g} s to see whether {entry.record} still runs", file=sys.stderr)
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, WATCH_SECONDS / 10))
        found = read_entry(path)
        if found is not None and found != entry:
            return not found.released
    return False


def process_space() -> str:
    """Names the space in which numbers of processes are unique: containers of one machine have their own."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""
