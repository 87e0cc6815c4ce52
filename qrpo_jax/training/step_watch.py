"""Notices a step that takes far longer than the others, while it does, and says where it hangs."""

import contextlib
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np

TIMES = 10.0  # a step is slow if it takes so many times the median of those before
LEAST = 30.0  # seconds, below which no step is slow: a checkpoint or a shared disk may take as long
KEPT = 101  # steps that the median is over
PACKAGE = Path(__file__).resolve().parents[1]


class StepWatch:
    """Watches the time between calls of `step`. A context manager; its thread ends with it.

    Args:
      say: prints a line, from another thread.
      least: seconds below which no step is slow.
    """

    def __init__(self, say: Callable[[str], None], least: float = LEAST) -> None:
        self._say, self._least = say, least
        self._seconds: deque[float] = deque(maxlen=KEPT)
        self._number, self._since, self._limit = 0, time.monotonic(), float("inf")
        self._left, self._watched = threading.Event(), threading.get_ident()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="steps")

    def step(self, number: int) -> None:
        """A step has ended, and the next one begins."""
        now = time.monotonic()
        if self._number:  # the first one compiles
            self._seconds.append(now - self._since)
            self._limit = max(self._least, TIMES * float(np.median(self._seconds)))
        self._number, self._since = number, now

    def lap(self) -> dict[str, float]:
        """Quantiles of the seconds between steps, over the last `KEPT`; empty before there are any."""
        if not self._seconds:
            return {}
        half, most = np.quantile(self._seconds, (0.5, 0.95))
        return {"step_seconds": float(half), "step_seconds_95": float(most)}

    def _watch(self) -> None:
        said = 0
        while not self._left.wait(min(1.0, self._least / 4)):
            number, waited = self._number, time.monotonic() - self._since
            if number > said and waited > self._limit:
                said = number
                median = float(np.median(list(self._seconds)))
                self._say(
                    f"WARNING: step {number + 1} has taken {waited:.0f} s so far on {socket.gethostname()}, and the "
                    f"median is {median:.2g} s; it is at {place(self._watched)}"
                )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()


def place(thread: int) -> str:
    """Where a thread is: its innermost call, and the lines of this package that led there, innermost first."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "no line of Python"
    inner, *rest = reversed(traceback.extract_stack(frame))
    named = [inner, *(one for one in rest if one.filename.startswith(str(PACKAGE)))]
    places = []
    for one in named[:6]:
        name = Path(one.filename)
        with contextlib.suppress(ValueError):
            name = name.relative_to(PACKAGE.parent)
        places.append(f"{name if not name.is_absolute() else name.name}:{one.lineno} {one.name}")
    return " < ".join(dict.fromkeys(places))
