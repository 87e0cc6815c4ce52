"""A user's own functions: they are imported and called in this process, and whatever they do ends in one line.

Imports and configs have no time limit: `Watch` says which of them does not return, and Ctrl-C ends the run. Calls of
rewards have one, see `time_limit`.
"""

import importlib
import os
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from qrpo_jax.errors import UserError, reason

PATIENCE = 60.0  # seconds without an answer, after which `Watch` says so; then twice as many, and so on
LIBRARIES = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
OURS = str(Path(__file__).resolve().parents[1])


def imported(name: str, failure: str, about: str) -> Any:
    """The object that "package.module:function" names; importing it runs the module.

    Args:
      failure: the beginning of the message where that fails.
      about: the argument that an error is about.

    Raises:
      UserError: there is no such module or object, or the module raises or exits.

    >>> imported("math:tau", "no such function", "name")
    6.283185307179586
    """
    module, _, attribute = name.partition(":")
    with guard(failure, about), Watch() as watch:
        watch.calling(f"importing {name!r}")
        return getattr(importlib.import_module(module), attribute)


@contextmanager
def guard(what: str, about: str) -> Iterator[None]:
    """Makes one `UserError` of whatever a user's code raises inside; only Ctrl-C and a `UserError` pass.

    An exit is an error too. Otherwise `sys.exit(0)` or `os._exit(0)` in a function would end a run as if it were
    complete.

    Args:
      what: the beginning of the message.
      about: the argument that the error is about.

    Raises:
      UserError: "WHAT (the error, and the user's line that raised it)".
    """
    with no_exit(), one_line(what, about):
        yield


@contextmanager
def one_line(what: str, about: str) -> Iterator[None]:
    """As `guard`, for calls that take turns: `no_exit` must be around them all."""
    try:
        yield
    except (KeyboardInterrupt, UserError):
        raise
    except BaseException as error:
        raise UserError(f"{what} ({cause(error)})", about=about) from error


def cause(error: BaseException) -> str:
    """What an error says, and the user's line that raised it."""
    return f"{reason(error)}{_place(error)}"


class Exit(BaseException):
    """A user's code called `os._exit`."""


@contextmanager
def no_exit() -> Iterator[None]:
    """Makes `os._exit` raise `Exit` inside; children of a user's code, and this program itself, may still call it."""
    leave, process = os._exit, os.getpid()

    def refuse(status: int) -> None:
        if os.getpid() != process or sys._getframe(1).f_code.co_filename.startswith(OURS):
            leave(status)
        raise Exit(f"os._exit({status})")

    os._exit = refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = leave


def _place(error: BaseException) -> str:
    """The innermost line of an error that is neither ours nor a library's, as " in FILE, line N"."""
    if isinstance(error, SyntaxError):
        return ""  # its message names the line
    frames = traceback.extract_tb(error.__traceback__)
    of_user = [
        frame
        for frame in frames
        if not frame.filename.startswith(("<", OURS)) and not any(frame.filename.startswith(x) for x in LIBRARIES)
    ]
    return f" in {of_user[-1].filename}, line {of_user[-1].lineno}" if of_user else ""


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Watch:
    """Says which call of a user's code has not returned. A context manager; its thread ends with it.

    Args:
      patience: seconds until the first line.
      say: prints a line.
    """

    def __init__(self, patience: float = PATIENCE, say: Callable[[str], None] = to_stderr) -> None:
        self._patience, self._say = patience, say
        self._left = threading.Event()
        self._call = ("", time.monotonic())
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def calling(self, what: str) -> None:
        """Takes note of a call that begins.

        Args:
          what: the call, as the beginning of a sentence.
        """
        self._call = (what, time.monotonic())

    def _watch(self) -> None:
        call, limit = self._call, self._patience
        while not self._left.wait(self._patience / 4):
            if call is not self._call:
                call, limit = self._call, self._patience
            what, since = call
            if (waited := time.monotonic() - since) >= limit:
                self._say(f"{what} has taken {waited:.0f} s so far, and has no time limit; Ctrl-C ends the run")
                limit *= 2

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
