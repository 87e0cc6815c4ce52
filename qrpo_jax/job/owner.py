"""The owner of a work directory: one run at a time, or one for each shard.

An owner holds a file in the work directory with its host, process and start, in two ways:

- It locks the file (`flock`). The kernel frees the lock when the process ends, however it ends, so a dead owner blocks
  nobody, and a number of a process that is used again does not matter. This decides on one machine, between containers
  too, and between machines where the file system carries locks from one to the other (NFS does, and Lustre and GPFS
  unless they are mounted without).
- It counts up in the file every few seconds. Where a lock ends at the machine (buckets mounted as folders, some network
  file systems), a run that finds the record of another machine watches it: if it counts on, the owner lives. An owner
  that finds another run's record in its file has been taken for dead, for example while it was suspended, and leaves.

Two runs that start within seconds of each other on two machines without common locks both begin; the one that wrote
first finds the other's record and leaves.
"""

import dataclasses
import fcntl
import json
import math
import os
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from qrpo_jax.errors import UserError
from qrpo_jax.faults.interruption import command, say
from qrpo_jax.job.shard import Shard

BEAT_SECONDS = 5.0
WATCH_SECONDS = 30.0  # six beats: file systems may show a change late
RUN_ERROR = 1
PATTERN = "owner-*-of-*.json"


@dataclasses.dataclass(frozen=True)
class Record:
    """Who holds a work directory.

    Attributes:
      host: its name.
      boot: identifies the running system of the host; containers on one machine share it.
      pid: of the process, as the process itself sees it.
      since: local time of its start, as text.
      token: differs between any two owners.
      beat: counts up while the owner lives.
    """

    host: str
    boot: str
    pid: int
    since: str
    token: str
    beat: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def new_record() -> Record:
    """The record of this process."""
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return Record(socket.gethostname(), boot_id(), os.getpid(), since, uuid.uuid4().hex)


def boot_id() -> str:
    """Identifies the running system: Linux draws a number at each start; elsewhere the host's name must do."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def read_record(path: Path) -> Record | None:
    """The record in a file; None if the file is missing, or holds no whole record."""
    with suppress(OSError, ValueError, TypeError):
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    return None


class Owner:
    """The hold on a work directory, from `acquire` to `release`.

    Args:
      shard: what this run works on; runs of disjoint shards share a work directory.
    """

    def __init__(self, workdir: Path, shard: Shard) -> None:
        self._workdir, self._shard = workdir, shard
        self._path = workdir / f"owner-{shard.index}-of-{shard.parts}.json"
        self._record = new_record()
        self._file = -1
        self._released = threading.Event()

    def acquire(self) -> None:
        """Takes the work directory, which is made if it is missing.

        Raises:
          UserError: another run holds it; names the host, the process and its start.
        """
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._file = self._lock()
        try:
            for path in sorted({self._path, *self._workdir.glob(PATTERN)}):
                if overlap(self._shard, shard_of(path, self._shard)):
                    self._check(path)
        except BaseException:
            if read_record(self._path) is None:
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            raise
        self._write()
        os.register_at_fork(after_in_child=self._abandon)
        threading.Thread(target=self._beat, daemon=True, name="owner").start()

    def release(self) -> None:
        """Gives the work directory back."""
        if self._file < 0 or self._released.is_set():
            return
        self._released.set()
        with suppress(OSError):
            if not self._taken():
                self._path.unlink()  # before the lock is free: who then locks this file sees that it has no name
        os.close(self._file)

    def _lock(self) -> int:
        """Opens and locks this shard's file.

        Raises:
          UserError: another run holds the lock.
        """
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            if not lock(file):
                os.close(file)
                raise refusal(self._workdir, read_record(self._path))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(self._path)):
                    return file
            os.close(file)  # its owner removed it in the meantime

    def _check(self, path: Path) -> None:
        """Refuses a work directory whose other owner is alive.

        Raises:
          UserError: naming it.
        """
        if path != self._path:
            try:
                other = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return  # released in the meantime
            try:
                free = lock(other, shared=True)
            finally:
                os.close(other)
            if not free:
                raise refusal(self._workdir, read_record(path))
        record = read_record(path)
        # On this machine the lock has told that the owner is dead.
        if record is not None and record.boot != self._record.boot and counts_on(path, record):
            raise refusal(self._workdir, record)

    def _write(self) -> None:
        # In place: the lock is on this file. A reader that meets half a record takes it for none and reads again.
        text = json.dumps(dataclasses.asdict(self._record)).encode()
        with open(self._path, "r+b") as file:
            file.write(text)
            file.truncate()

    def _taken(self) -> bool:
        """Whether another run has written its record over this one's."""
        found = read_record(self._path)
        return found is not None and found.token != self._record.token

    def _beat(self) -> None:
        """Counts up while the process lives."""
        while not self._released.wait(BEAT_SECONDS):
            found = read_record(self._path)
            if found is not None and found.token != self._record.token and not self._released.is_set():
                say(f"error: {self._workdir} was taken over by {found}; this run leaves; to go on: {command()}")
                os._exit(RUN_ERROR)
            self._record = dataclasses.replace(self._record, beat=self._record.beat + 1)
            with suppress(OSError):  # a full disk delays a beat; the run itself reports it
                self._write()

    def _abandon(self) -> None:
        """In a child that a library forks: the lock is the parent's alone, and ends with it."""
        if not self._released.is_set():
            os.close(self._file)


def lock(file: int, *, shared: bool = False) -> bool:
    """Locks an open file until it is closed; False if another process holds it.

    A check by another starting run holds the lock for an instant, so a first refusal does not count. File systems
    without locks refuse nobody.
    """
    for attempt in range(5):
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.01 * attempt)
        except OSError:
            return True
    return False


def counts_on(path: Path, record: Record) -> bool:
    """Whether the owner on another machine, whose record this is, still counts up; returns as soon as it does."""
    print(f"waiting {WATCH_SECONDS:g} s to see whether {record} still runs", file=sys.stderr)
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, WATCH_SECONDS / 10))
        found = read_record(path)
        if found is not None and (found.token, found.beat) != (record.token, record.beat):
            return True
        if not path.exists():
            return False
    return False


def shard_of(path: Path, default: Shard) -> Shard:
    """The shard that a file of an owner is named after."""
    words = path.stem.split("-")
    if len(words) == 4 and words[1].isdigit() and words[3].isdigit() and int(words[3]) > 0:
        return Shard(int(words[1]), int(words[3]))
    return default


def overlap(a: Shard, b: Shard) -> bool:
    """Whether two shards own a common unit: some u with u mod n = i and u mod m = j exists if gcd(n, m) divides i − j.

    >>> overlap(Shard(0, 1), Shard(2, 3)), overlap(Shard(0, 2), Shard(1, 2)), overlap(Shard(1, 2), Shard(3, 4))
    (True, False, True)
    """
    return (a.index - b.index) % math.gcd(a.parts, b.parts) == 0


class HeldError(UserError):
    """Another run holds a work directory."""


def refusal(workdir: Path, record: Record | None) -> HeldError:
    who: Any = record or "a run that has just started"
    return HeldError(f"--workdir={workdir} is in use by {who}; wait for it, stop it, or choose another --workdir")
