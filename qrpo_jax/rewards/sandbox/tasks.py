"""Tasks for the sandbox and their outcomes: limits, reports, and the comparison of values."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Limits(NamedTuple):
    """Limits of one completion over all its inputs."""

    cpu_seconds: float = 1.0
    memory_mb: int = 256  # address space, of which the idle interpreter holds about 30
    output_bytes: int = 65536


DEFAULT_LIMITS = Limits()


class Task(NamedTuple):
    """A completion to run: its source, the name of the function to call, and the arguments of each call."""

    code: str
    call: str
    inputs: tuple[Sequence[Any], ...]  # one positional-argument list of JSON values per test


@dataclass(frozen=True)
class Failed:
    """Takes the place of a missing output; `reason` is an exception's name, or the task's status."""

    reason: str


class Outcome(NamedTuple):
    """The result of a task: one output, or `Failed`, per input, in their order.

    status: "ok": every input was tried; "error": the code or the call did not load; "timeout",
    "memory", "output": the task reached a limit; "killed": it ended before its last input for another
    reason, or forged its report.
    """

    status: str
    outputs: tuple[Any, ...]


def same_value(first: Any, second: Any) -> bool:
    """Equality strict on type (True, 1 and 1.0 differ) and order; floats within 1e-9 relative.

    NaN equals nothing, and neither does `Failed`.
    """
    if type(first) is not type(second) or isinstance(first, Failed):
        return False
    if isinstance(first, float):
        return math.isclose(first, second, rel_tol=1e-9)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same_value, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_value(value, second[key]) for key, value in first.items())
    return bool(first == second)


def read_outcome(cause: bytes, code: int, count: int, report: bytes, output_bytes: int) -> Outcome:
    """The outcome of a task of `count` inputs, from the way it ended and its untrusted report."""
    lines = report.split(b"\n")[:-1]
    entries: list[tuple[str, Any]] = []
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        well_formed = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
        entries.append((entry[0], entry[1]) if well_formed else ("raised", "unreadable"))
    raised = [str(value) for label, value in entries if label != "value"]
    if cause in (b"c", b"w"):
        status = "timeout"
    elif len(report) >= output_bytes:
        status = "output"
    elif entries and entries[0][0] == "load":
        status = "memory" if raised[0] == "MemoryError" else "error"
        return Outcome(status, (Failed(raised[0]),) * count)
    elif "MemoryError" in raised:
        status = "memory"
    else:
        status = "ok" if cause == b"e" and code == 0 and len(entries) == count else "killed"
    if len(entries) > count:
        return Outcome(status, (Failed("unreadable"),) * count)
    outputs = [value if label == "value" else Failed(str(value)) for label, value in entries]
    return Outcome(status, (*outputs, *[Failed(status)] * (count - len(outputs))))
