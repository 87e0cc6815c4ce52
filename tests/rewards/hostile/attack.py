"""One hostile program: its code, its inputs, and what is right to come of it."""

import os
import textwrap
from typing import Any, NamedTuple

from qrpo_jax.rewards.sandbox.pool import Call

REASONS = {"error", "time", "memory", "output", "forbidden"}
EVERYWHERE = ("limits", "kernel", "bubblewrap")
CONFINED = ("kernel", "bubblewrap")
NUMBERED = (Call((1,)), Call((2,)), Call((3,)))
ARM = os.uname().machine == "aarch64"

# For programs that call the kernel: `call` takes a number of x86-64 and one of aarch64, None where there is none.
KERNEL = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
arm = os.uname().machine == "aarch64"
def call(x86, aarch64, *rest):
    number = aarch64 if arm else x86
    if number is None:
        raise PermissionError("no such call here")
    rest = [ctypes.c_long(one) if isinstance(one, int) else one for one in rest]
    result = libc.syscall(ctypes.c_long(number), *rest)
    if result == -1:
        raise OSError(ctypes.get_errno(), errno.errorcode[ctypes.get_errno()])
    return result
"""


class Attack(NamedTuple):
    """A hostile program.

    Attributes:
      call: the function's name; None: it is a program.
      right: for each input, a value as `values.encode` leaves it, in a `Value`, or the reasons that are right.
      levels: where it is tried.
    """

    name: str
    code: str
    right: tuple[Any, ...]
    inputs: tuple[Any, ...] = NUMBERED
    call: str | None = "f"
    levels: tuple[str, ...] = EVERYWHERE


class Value(NamedTuple):
    """A value that is right."""

    value: Any


def reasons(text: str) -> frozenset[str]:
    """Reasons from "one|another"."""
    found = frozenset(text.split("|"))
    assert found <= REASONS, text
    return found


def second(name: str, body: str, right: str, *, head: str = "", levels: tuple[str, ...] = EVERYWHERE) -> Attack:
    """A function of 1, 2, 3 that returns its argument, and misbehaves at 2: the others must be right."""
    code = f"import os, sys\n{head}\ndef f(a):\n    if a == 2:\n{textwrap.indent(body, ' ' * 8)}\n    return a\n"
    return Attack(name, code, (Value(1), reasons(right), Value(3)), levels=levels)


def harmless(name: str, body: str, *, head: str = "", levels: tuple[str, ...] = EVERYWHERE) -> Attack:
    """Like `second`, where what it does at 2 changes nothing."""
    return second(name, body, "error", head=head, levels=levels)._replace(right=(Value(1), Value(2), Value(3)))


def refused(name: str, body: str, right: str = "forbidden", *, levels: tuple[str, ...] = CONFINED) -> Attack:
    """Like `second`, with `call`, where the kernel refuses."""
    return second(name, body, right, head=KERNEL, levels=levels)


def loading(name: str, code: str, right: str, *, levels: tuple[str, ...] = EVERYWHERE) -> Attack:
    """Code that misbehaves before its function is there: every test fails."""
    return Attack(name, code, (reasons(right),) * 3, levels=levels)


def program(
    name: str, code: str, *right: Any, inputs: tuple[str, ...] = ("1", "2", "3"), levels: Any = EVERYWHERE
) -> Attack:
    """A program; texts in `right` that are reasons stand for these, others for what it prints."""
    found = [reasons(one) if set(one.split("|")) <= REASONS else Value(one) for one in right]
    return Attack(name, code, tuple(found), inputs, None, levels)
