"""The journal of a run: a file in the work directory that says what runs, where it stands, and how it ended.

Nothing that a run computes depends on it. `status` reads it, from any machine that sees the work directory.
"""

import dataclasses
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import qrpo_jax
from qrpo_jax.faults.interruption import RUN
from qrpo_jax.files import write_json
from qrpo_jax.job.shard import Shard

BEAT_SECONDS = 5.0
KEPT = 100  # earlier starts


@dataclasses.dataclass
class Entry:
    """What a journal says.

    Attributes:
      command: words that start this run again.
      stages: of the run, in order.
      shard: [i, n].
      processes: that work on the run together.
      host, pid: of the process that writes the journal.
      started, updated: seconds since 1970.
      state: "running", "done", "incomplete" (other shards are missing), "stopped" by a signal, or "failed".
      message: of an error or signal.
      stage, complete, total, unit, step: as in `interruption.Place` and `interruption.Run.step`.
      stage_started: when this start came to the stage, and `stage_first` what was complete then.
      peers: seconds since each other process of a distributed job was heard of, by its name.
      earlier: started, updated and state of earlier starts.
      version: of this program.
    """

    command: list[str]
    stages: list[str]
    shard: list[int]
    processes: int
    host: str
    pid: int
    started: float
    updated: float
    state: str = "running"
    message: str = ""
    stage: str = ""
    complete: int = 0
    total: int = 0
    unit: str = ""
    step: int | None = None
    stage_started: float = 0.0
    stage_first: int = 0
    peers: dict[str, float] = dataclasses.field(default_factory=dict)
    earlier: list[list[Any]] = dataclasses.field(default_factory=list)
    version: str = qrpo_jax.__version__


def journal_path(workdir: Path, shard: Shard) -> Path:
    return workdir / f"journal-{shard.index}-of-{shard.parts}.json"


def read_journal(path: Path) -> Entry | None:
    """The entry in a file; None if it is missing or no whole entry of this version."""
    with suppress(OSError, ValueError, TypeError):
        return Entry(**json.loads(path.read_bytes()))
    return None


class Journal:
    """Keeps the file of a run up to date until `end`.

    Args:
      shard: what this run works on.
      stages: of the run.
      processes: that work on the run together.
      silent: another of them writes it.
    """

    def __init__(
        self, workdir: Path, shard: Shard, stages: Sequence[str], processes: int = 1, *, silent: bool = False
    ) -> None:
        self._path, now = journal_path(workdir, shard), time.time()
        before = read_journal(self._path)
        earlier = [] if before is None else [*before.earlier, [before.started, before.updated, before.state]]
        numbers = [shard.index, shard.parts]
        self._entry = Entry(
            list(sys.orig_argv), list(stages), numbers, processes, socket.gethostname(), os.getpid(), now, now
        )
        self._entry.earlier = earlier[-KEPT:]
        self._lock, self._ended = threading.Lock(), threading.Event()
        if silent:
            self._ended.set()
            return
        self._write()
        threading.Thread(target=self._beat, daemon=True, name="journal").start()

    def end(self, state: str, message: str = "") -> None:
        """Says how the run ended; the first call counts."""
        with self._lock:
            if self._ended.is_set():
                return
            self._ended.set()
            self._entry.state, self._entry.message = state, message
            self._write()

    def _beat(self) -> None:
        # A stage that begins is seen within a second; otherwise the file is written now and then.
        written = time.monotonic()
        while not self._ended.wait(min(1.0, BEAT_SECONDS)):
            with self._lock:
                if self._ended.is_set():
                    return
                if RUN.place.stage != self._entry.stage or time.monotonic() - written >= BEAT_SECONDS:
                    self._write()
                    written = time.monotonic()

    def _write(self) -> None:
        entry, place, now = self._entry, RUN.place, time.time()
        begun = place.total and not (entry.stage == place.stage and entry.unit == place.unit and entry.total)
        if place.stage != entry.stage or begun:
            entry.stage_started, entry.stage_first = now, place.complete
        entry.updated, entry.step, entry.peers = now, RUN.step, RUN.group.heard()
        entry.stage, entry.complete, entry.total, entry.unit = place
        with suppress(OSError):  # a full disk is met by what the run itself writes, and said there
            write_json(self._path, dataclasses.asdict(entry))


@contextmanager
def kept(journal: Journal) -> Iterator[Journal]:
    """Ends a journal with the error that leaves the block, or with the signal that ends the process inside it."""
    RUN.before_leaving(lambda: journal.end("stopped", f"by {RUN.signal}" if RUN.signal else ""))
    try:
        yield journal
    except BaseException as error:
        journal.end("failed", " ".join(str(error).split()) or type(error).__name__)
        raise
