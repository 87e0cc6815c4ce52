"""A time limit for calls of a user's functions, which run in the main thread as they always did.

A thread watches the clock and sends the process a signal, whose handler raises in the main thread. That ends loops of
Python, sleeps, waits for a network, and the regular expressions of `re`, and it leaves what the function holds in
memory intact. Worker processes would end every call, but each would import the function's module and hold its models
again, and each call would cost a message. What ignores the signal, such as a library that computes for hours without
coming back to Python, ends the run with one line after `GRACE`.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from qrpo_jax.faults.user_code import to_stderr

SIGNAL = signal.SIGURG  # by default it is ignored, so one that comes late does no harm
GRACE = 30.0  # seconds after the limit until a call that ignores it ends the run
STATUS = 1
STOPPED = 1.0  # seconds by which a thread that sleeps wakes too late only if the whole process did not run


class TimeLimitError(BaseException):
    """A call took too long. No `Exception`, so that a function that goes on after errors ends all the same."""


def _leave() -> None:
    os._exit(STATUS)


class TimeLimit:
    """Ends calls in the main thread that take longer than a limit; calls in other threads have none.

    A context manager that may be entered again: inside it the signal has a handler.

    Args:
      grace: seconds after the limit until a call that ignores the signal ends the run.
      say, leave: print a line, and end the process.
    """

    def __init__(
        self, grace: float = GRACE, say: Callable[[str], None] = to_stderr, leave: Callable[[], None] = _leave
    ) -> None:
        self._grace, self._say, self._leave = grace, say, leave
        self._due: tuple[float, float, str] | None = None  # the time when the call must end, its limit, and its name
        self._period = 1.0
        self._wakes, self._ended = threading.Event(), False

    def __enter__(self) -> Self:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._ended = False
            self._before = signal.signal(SIGNAL, self._handle)
            self._thread = threading.Thread(target=self._watch, daemon=True, name="time limit")
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            self._ended = True
            self._wakes.set()
            self._thread.join()
            signal.signal(SIGNAL, self._before)

    @contextmanager
    def call(self, seconds: float, what: str) -> Iterator[None]:
        """Raises `TimeLimitError` inside once so many seconds are over.

        Args:
          what: the call, as the beginning of a sentence.
        """
        if seconds / 10 < self._period:
            self._period = seconds / 10
            self._wakes.set()
        self._due = (time.monotonic() + seconds, seconds, what)
        try:
            yield
        finally:
            self._due = None

    def renew(self) -> None:
        """Begins the time of the call anew."""
        if self._due is not None:
            _, seconds, what = self._due
            self._due = (time.monotonic() + seconds, seconds, what)

    def _handle(self, number: int, frame: Any) -> None:
        due = self._due  # the signal may be late, and another call under way
        if due is not None and time.monotonic() >= due[0]:
            raise TimeLimitError(f"no answer within {due[1]:g} s")

    def _watch(self) -> None:
        while not self._ended:
            slept = time.monotonic()
            self._wakes.wait(self._period)
            self._wakes.clear()
            due, now = self._due, time.monotonic()
            # A process that was stopped for a while goes on first: who renews its time has not had a chance to.
            if due is None or now < due[0] or now > slept + self._period + STOPPED:
                continue
            signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
            if now >= due[0] + self._grace and self._due is due:
                self._say(
                    f"error: {due[2]} did not end {self._grace:g} s after its limit of {due[1]:g} s, and nothing can "
                    "end it; the same command goes on once it does (config.reward.seconds)"
                )
                self._leave()
                return
