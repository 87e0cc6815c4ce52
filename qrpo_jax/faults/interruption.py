"""Ends a run on SIGTERM, SIGINT (Ctrl-C) and SIGHUP: saves what would be lost, says how to go on, and leaves.

Only the steps of training since the last checkpoint would be lost. A run that has some finishes its step and saves.
Everything else on disk is complete or is made again, as after SIGKILL, so the run leaves at once, also in the middle of
an import, a compilation or a wait for devices.

A thread receives the signals. Python runs handlers between two instructions of the main thread, and a compilation is
one instruction of many minutes.

Exit statuses: 75 after SIGTERM and SIGHUP, EX_TEMPFAIL of sysexits.h, on which schedulers start a job again: a machine
that shuts down and a terminal that closes both mean "later". 130 after Ctrl-C, as shells do.
"""

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, NoReturn, Protocol

TRY_LATER, CTRL_C = 75, 130
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class Interrupted(BaseException):
    """Leaves the training loop after the step that a stopping run saves. No handler of errors catches it."""


class Place(NamedTuple):
    """How far a run has come.

    Attributes:
      stage: that runs; "" before the first.
      complete, total: units of work or steps of training, on disk and in all; 0 of 0 before they are known.
      unit: what they are, such as "units of sample"; "steps" are of training.
    """

    stage: str = ""
    complete: int = 0
    total: int = 0
    unit: str = ""

    def __str__(self) -> str:
        if not self.stage:
            return "before the first stage"
        if not self.total:
            return f"in stage {self.stage}"
        if self.unit == "steps":
            return f"in stage {self.stage}, step {self.complete} of {self.total} is saved"
        return f"in stage {self.stage}, {self.complete} of {self.total} {self.unit} are complete"


class Group(Protocol):
    """The processes of one job; they stop together."""

    @property
    def first(self) -> bool:
        """Whether this process prints."""

    def tell(self, name: str) -> None:
        """Lets the others know of a signal."""

    def agree(self, step: int | None) -> int | None:
        """The step after which all stop; None: all leave at once.

        Args:
          step: that this process has dispatched last; None if it has nothing to lose.
        """

    def leave(self, status: int) -> None:
        """Says that this process ends; the first one lets the others go before it."""

    def heard(self) -> dict[str, float]:
        """Seconds since each other process was heard of, by name; only the first process knows."""


class Alone:
    """The group of a job in one process."""

    first = True

    def tell(self, name: str) -> None:
        pass

    def agree(self, step: int | None) -> int | None:
        return None if step is None else step + 1

    def leave(self, status: int) -> None:
        pass

    def heard(self) -> dict[str, float]:
        return {}


class Run:
    """Where a run stands, and the signal that ends it. `RUN` is this process's.

    Attributes:
      group: the processes that stop together.
      place: how far it has come.
      signal: the name of the signal that ends the run; None while it goes on.
    """

    def __init__(self, leave: Callable[[int], None] = os._exit) -> None:
        self.group: Group = Alone()
        self.signal: str | None = None
        self._exit = leave
        self.place = Place()
        self._farewells: list[Callable[[], None]] = []
        self._lock = threading.Lock()  # no step begins while the processes agree on the last one
        self._step: int | None = None  # the last one since `saved`; None: nothing would be lost
        self._last: int | None = None
        self._leaving = threading.Lock()
        self._pipe: tuple[int, int] | None = None

    def listen(self) -> None:
        """Receives the signals from now on. Call it again after a library has taken one of them.

        A signal that was ignored when the program started stays ignored: nohup ignores SIGHUP, and a shell without
        job control ignores SIGINT in the background.
        """
        if self._pipe is None:
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_forget)
            threading.Thread(target=self._receive, daemon=True, name="signals").start()
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in SIGNALS:
            if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def done(self) -> None:
        """Nothing is left to stop: a signal from now on does not change the status of a program that is ending."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def stage(self, name: str) -> None:
        """A stage begins."""
        self.place = Place(name)

    def progress(self, complete: int, total: int, unit: str) -> None:
        """How far the stage is on disk; arguments as in `Place`."""
        self.place = Place(self.place.stage, complete, total, unit)

    @property
    def step(self) -> int | None:
        """The last step of training since the last checkpoint; None if there is none."""
        return self._step

    def reached(self, step: int) -> bool:
        """Whether the run must save after this step and raise `Interrupted`. Steps count as unsaved until `saved`.

        In a job of several processes it is True after the same step on all.
        """
        with self._lock:
            self._step = step
            return step == self._last

    def saved(self) -> None:
        """Everything so far is on disk. A run that was asked to stop ends here."""
        with self._lock:
            self._step = None
        if self.signal is not None:
            self.leave()

    def before_leaving(self, farewell: Callable[[], None]) -> None:
        """Registers a short function to call when the process is ended from another thread."""
        self._farewells.append(farewell)

    def request(self, name: str) -> None:
        """Stops the run as the signal of this name does."""
        with self._lock:
            if self.signal is not None:
                return
            self.signal = name
        self.group.tell(name)
        with self._lock:
            self._last = self.group.agree(self._step)
        if self._last is None:
            self.leave()
        elif self.group.first:
            say(f"{name}: the run stops after step {self._last}, which it saves (Ctrl-C now leaves without)")

    @property
    def status(self) -> int:
        return CTRL_C if self.signal == "SIGINT" else TRY_LATER

    def leave(self) -> None:
        """Prints where the run stands and how it goes on, and ends the process. The first caller does so."""
        if not self._leaving.acquire(blocking=False):
            wait_for_ever()
        if self.group.first:
            say(self.line())
        self.take_leave()
        self.group.leave(self.status)
        self._exit(self.status)

    def take_leave(self) -> None:
        """Calls the functions of `before_leaving`."""
        for farewell in self._farewells:
            with suppress(Exception):
                farewell()

    def line(self) -> str:
        """Where the run stands, and the command that goes on."""
        return f"stopped by {self.signal} {self.place}; to go on: {command()}"

    def _handle(self, number: int, _: object) -> None:
        """Python's own handler. The thread knows already, unless an event loop has replaced the wake-up file."""
        assert self._pipe is not None
        replaced = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        if replaced != self._pipe[1]:
            signal.set_wakeup_fd(replaced)
            with suppress(OSError):
                os.write(self._pipe[1], bytes([number]))

    def _receive(self) -> None:
        """Acts on signals as they come. A second Ctrl-C leaves at once; further signals of other kinds do nothing."""
        assert self._pipe is not None
        begun = False
        while True:
            for number in os.read(self._pipe[0], 64):
                if number not in SIGNALS:
                    continue
                if not begun:
                    begun = True
                    name = signal.Signals(number).name
                    threading.Thread(target=self.request, args=(name,), daemon=True, name="stop").start()
                elif number == signal.SIGINT:
                    say(f"left at once; to go on: {command()}")
                    self._exit(CTRL_C)


def command() -> str:
    """The command that started this program, quoted for a shell."""
    return shlex.join(sys.orig_argv)


def say(line: str) -> None:
    """Prints a line on standard error from any thread, whatever the main thread is doing with its streams.

    A terminal that has gone, or a full pipe that nobody reads, must not keep the process: it waits for a second.
    """
    text = ("\r\x1b[K" if os.isatty(2) else "\n") + line + "\n"  # below or over a progress bar

    def write() -> None:
        with suppress(OSError):
            os.write(2, text.encode(errors="replace"))

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(1.0)


def wait_for_ever() -> NoReturn:
    """For a thread of a process that another thread ends."""
    while True:
        time.sleep(60)


_masks = threading.local()  # of the thread that forks


def _block() -> None:
    """Before a library forks: a signal to the child must not come before `_forget`, or this process would take it."""
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _forget() -> None:
    """In the child: signals mean what they mean in any program."""
    with suppress(ValueError):  # an interpreter that is not the main one
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _unblock()


RUN = Run()
