"""Where the time of a training stage goes, over all its starts: goodput is the share in work that was kept.

Each start of a stage has a line with the seconds that it spent by cause. The file is rewritten whole, now and then, and
no result depends on it.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from qrpo_jax.files import write_json

NAME = "time.json"
# "rollout" is there where a policy samples its own data; "steps" is all that has no other cause.
CAUSES = ("restore", "compile", "data", "rollout", "save", "evaluate", "steps")
USEFUL = ("steps", "rollout")  # goodput: a rollout is kept once it is made, and is part of what training has to do
PAUSE = 10.0  # seconds from one writing to the next


class TimeSheet:
    """Counts seconds of this start by cause.

    Args:
      folder: of the stage; None counts and writes nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / NAME
        self._before = [] if self._path is None else read_starts(self._path)
        self._seconds = dict.fromkeys(CAUSES, 0.0)
        self._begun, self._started = time.perf_counter(), time.time()
        self._written = -PAUSE
        self._first = self._step = 0

    def seconds(self, cause: str) -> float:
        """Spent for this cause so far, without a block that goes on; "steps" is only known at the end."""
        return self._seconds[cause]

    @contextlib.contextmanager
    def spent(self, cause: str) -> Iterator[None]:
        """The time inside the block has this cause."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[cause] += time.perf_counter() - start

    def begin(self, step: int) -> None:
        """Training goes on after this step."""
        self._first = self._step = step
        self._write()

    def reached(self, step: int, *, saved: bool) -> None:
        """A step has been made."""
        self._step = step
        if saved or time.perf_counter() - self._written > PAUSE:
            self._write()

    def _write(self) -> None:
        self._written = time.perf_counter()
        if self._path is None:
            return
        whole = self._written - self._begun
        others = sum(seconds for cause, seconds in self._seconds.items() if cause != "steps")
        seconds = self._seconds | {"steps": whole - others}
        line = {"started": self._started, "seconds": seconds, "first": self._first, "step": self._step}
        with contextlib.suppress(OSError):  # a full disk is met by what the run itself writes, and said there
            write_json(self._path, [*self._before, line])


def read_starts(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; none if it is missing or no longer whole."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        starts = json.loads(path.read_bytes())
        if all(set(CAUSES) >= one["seconds"].keys() and {"started", "first", "step"} <= one.keys() for one in starts):
            return list(starts)
    return []


class Goodput(NamedTuple):
    """Where the time from the first start of a stage to its last writing went.

    Attributes:
      starts: how many there were.
      seconds: in all.
      shares: of `seconds`, by cause: `CAUSES`, where "steps" is only those that were kept; "repeated" for steps that a
        later start made again; and "away" between the starts.
    """

    starts: int
    seconds: float
    shares: dict[str, float]

    @property
    def goodput(self) -> float:
        """The share in steps that were kept, and in rollouts."""
        return sum(self.shares[cause] for cause in USEFUL)


def goodput(path: Path) -> Goodput | None:
    """Where the time of a stage went; None without its file."""
    starts = read_starts(path)
    if not starts:
        return None
    total = dict.fromkeys((*CAUSES, "repeated", "away"), 0.0)
    for one, after in zip(starts, [*starts[1:], None], strict=True):
        made = one["step"] - one["first"]
        lost = 0 if after is None else max(0, min(made, one["step"] - after["first"]))
        share = lost / made if made else 0.0
        for cause in CAUSES:
            total[cause] += one["seconds"].get(cause, 0.0)
        repeated = share * one["seconds"]["steps"]
        total["steps"] -= repeated
        total["repeated"] += repeated
        if after is not None:
            total["away"] += max(0.0, after["started"] - one["started"] - sum(one["seconds"].values()))
    seconds = sum(total.values())
    return Goodput(len(starts), seconds, {cause: value / seconds for cause, value in total.items()})
