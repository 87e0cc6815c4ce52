"""Tasks for the sandbox and what comes of them: limits, outcomes, and the reading of an untrusted report."""

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

MESSAGE = 160  # characters of an error's message that are kept
DEEPEST = 200  # lists in lists of a value
DEEP_LINES = 8  # of a report, before the rest is not read: newer Pythons need more than a millisecond for each


class Limits(NamedTuple):
    """Limits of a completion's code.

    Attributes:
      cpu_seconds: CPU time of each test, and of loading the code before the first.
      memory_mb: address space, of which the idle interpreter holds about 30 MB.
      output_bytes: of each test: its value as JSON, or what a program prints.
      failed_runs: tests that may end the process, by a limit or otherwise. Each is followed by a new process for the
        rest; after the last one the rest is not run, and fails for the same reason. 0: no bound.
    """

    cpu_seconds: float = 1.0
    memory_mb: int = 1024
    output_bytes: int = 65536
    failed_runs: int = 3


DEFAULT_LIMITS = Limits()


class Call(NamedTuple):
    """Arguments of one call, as `values.encode` leaves them."""

    positional: Sequence[Any]
    named: Mapping[str, Any] = {}


class Task(NamedTuple):
    """A completion to run.

    Attributes:
      code: its source.
      call: an expression for the function to call; None: the code is a program, which runs anew for each input.
      inputs: a `Call` of the function for each test, or the text that a program reads from its standard input.
    """

    code: str
    call: str | None
    inputs: Sequence[Call | str]


@dataclass(frozen=True)
class Failed:
    """Takes the place of an output.

    Attributes:
      reason: "error": the code raised or ended the process; "time", "memory" or "output": it reached a limit;
        "forbidden": the sandbox refused what it tried.
      message: what it raised, or how it ended. Untrusted text.
    """

    reason: str
    message: str = ""


Outputs = tuple[Any, ...]  # of a task, one for each input: a value as `values.encode` leaves it, or `Failed`


def read_report(report: bytes, count: int, longest: int) -> Outputs:
    """The outputs of a task of `count` inputs, from its untrusted report.

    The report has a line for each input, `[index, "value", value]` or `[index, reason, message]`; index -1 stands for
    all that have no line. The first line of an input counts; a line of more than `longest` bytes does not, nor one of
    more than DEEPEST lists in lists, nor what follows DEEP_LINES of those.
    """
    collecting = gc.isenabled()
    # Values of JSON hold no cycles. Millions of lists would make the collector walk this whole program again and again.
    gc.disable()
    try:
        return _read_lines(report, count, longest)
    finally:
        if collecting:
            gc.enable()


def _read_lines(report: bytes, count: int, longest: int) -> Outputs:
    outputs: dict[int, Any] = {}
    deep = 0
    # A flood of short lines costs no more than an honest report of that many bytes.
    for line in report.split(b"\n", 4 * (count + 2))[: 4 * (count + 2)]:
        if len(line) > longest:
            continue
        if deep == DEEP_LINES:
            break
        try:
            index, label, value = json.loads(line)
            if _is_deep(value):
                deep += 1
                continue
            if type(index) is int and -1 <= index < count and index not in outputs:
                outputs[index] = value if label == "value" else failed(label, value)
        except RecursionError:
            deep += 1
        except (ValueError, TypeError):
            continue
    rest = outputs.pop(-1, Failed("error", "its report is unreadable"))
    return tuple(outputs.get(index, rest) for index in range(count))


def _is_deep(value: Any) -> bool:
    """Whether lists and objects are nested more than DEEPEST times. What walks values does so by recursion, and newer
    Pythons read JSON that is nested deeper than that can go.
    """
    level: list[Any] = [[value]]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if inner and type(inner) in (list, dict)
        ]
        if not level:
            return False
    return True


def failed(label: Any, message: Any) -> Failed:
    """What an untrusted report says of a test that failed."""
    reason = label if label in ("error", "time", "memory", "output", "forbidden") else "error"
    if not isinstance(message, str):
        return Failed(reason)
    # It reaches terminals and files: no control sequences, and no halves of a character.
    return Failed(reason, "".join(one if one.isprintable() else "\ufffd" for one in message[:MESSAGE]))
