"""A time limit for calls of a user's functions, which run in the main thread as they always did.

A timer of the system sends a signal, whose handler raises in the main thread. That ends loops of Python, sleeps, waits
for a network, and the regular expressions of `re`, which let no other thread run; and it leaves what the function holds
in memory intact. Worker processes would end every call, but each would import the function's module and hold its models
again, and each call would cost a message. A call that ignores the signal, such as one that catches everything and goes
on, ends the run with one line after `GRACE`. Nothing ends a library that holds the interpreter for good.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Self, TypeVar

from qrpo_jax.faults.user_code import to_stderr

T = TypeVar("T")

SIGNAL = signal.SIGALRM  # of the timer that counts time and not work
AGAIN = 1.0  # seconds until the next signal to a call that goes on
GRACE = 30.0  # seconds after the limit until a call that ignores it ends the run
STATUS = 1


class TimeLimitError(BaseException):
    """A call took too long. No `Exception`, so that a function that goes on after errors ends all the same."""


def _leave() -> None:
    os._exit(STATUS)


class TimeLimit:
    """Ends calls in the main thread that take longer than a limit; calls in other threads have none.

    A context manager that may be entered again: inside it the timer and its signal are ours. A function that sets them
    itself has the limit that it sets.

    Args:
      grace: seconds after the limit until a call that ignores the signal ends the run.
      say, leave: print a line, and end the process.

    Attributes:
      grace: the same.
    """

    def __init__(
        self, grace: float = GRACE, say: Callable[[str], None] = to_stderr, leave: Callable[[], None] = _leave
    ) -> None:
        self.grace, self._say, self._leave = grace, say, leave
        self._due: tuple[float, float, str] | None = None  # the time when the call must end, its limit, and its name
        self._late: object = None  # a call whose first signal came too late
        self._main = False

    def __enter__(self) -> Self:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._handler = signal.signal(SIGNAL, self._handle)
            self._timer, self._begin = signal.setitimer(signal.ITIMER_REAL, 0), time.monotonic()
            self._ended = threading.Event()
            self._thread = threading.Thread(target=self._watch, daemon=True, name="time limit")
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            self._ended.set()
            self._thread.join()
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(SIGNAL, self._handler)
            rest, interval = self._timer
            if rest:  # somebody else's timer, whose time went on
                signal.setitimer(signal.ITIMER_REAL, max(rest - time.monotonic() + self._begin, 1e-3), interval)

    def call(self, seconds: float, what: str, function: Callable[[], T]) -> T:
        """What the function returns.

        Args:
          what: the call, as the beginning of a sentence.

        Raises:
          TimeLimitError: raised inside the function once so many seconds are over.
        """
        self._due = (time.monotonic() + seconds, seconds, what)
        self._start(seconds)
        try:
            return function()
        finally:
            self._due = None

    def renew(self) -> None:
        """Begins the time of the call anew."""
        if self._due is not None:
            _, seconds, what = self._due
            self._due = (time.monotonic() + seconds, seconds, what)
            self._start(seconds)

    def _start(self, seconds: float) -> None:
        if self._main:
            signal.signal(SIGNAL, self._handle)  # the call before may have set another one
            signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        due, now = self._due, time.monotonic()  # the signal may be late, and another call under way
        if due is None or now < due[0] or frame is None or frame.f_code.co_filename == __file__:
            return  # a call that has just returned must not be followed by an error that belongs to it
        if now > due[0] + AGAIN and self._late is not due:
            self._late = due  # a process that was stopped meanwhile goes on first, and may renew its time
        else:
            raise TimeLimitError(f"no answer within {due[1]:g} s")

    def _watch(self) -> None:
        while not self._ended.wait(self.grace / 10):
            due = self._due
            if due is not None and time.monotonic() >= due[0] + self.grace:
                self.give_up(due[1], due[2])
                return

    def give_up(self, seconds: float, what: str) -> None:
        """Ends the run because of a call that goes on after its limit and the grace; arguments as those of `call`."""
        self._say(
            f"error: {what} did not end {self.grace:g} s after its limit of {seconds:g} s, and cannot be ended; the "
            "same command goes on once it does (config.reward.seconds)"
        )
        self._leave()
