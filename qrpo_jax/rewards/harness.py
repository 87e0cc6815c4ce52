"""Runs the script of a problem inside the sandbox: `scripts` sends this file's source there.

It imports the standard library, and `values`, which the sandbox has. The assertions of a script call `REPORT`, see
`scripts`.
"""

import builtins
import json
import random
from collections.abc import Callable
from contextlib import suppress
from types import FunctionType
from typing import Any

from qrpo_jax.rewards.sandbox.values import decode, encode

REPORT = "report_of_the_script"
MOST_CALLS = 10_000
PASSED, WRONG = "passed", "wrong"


class Anything:
    """The answer of a function that has not run: every operation works on it, and gives it again."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def _again(self, *given: Any, **named: Any) -> Any:
        return self

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __int__(self) -> int:
        return 0

    def __float__(self) -> float:
        return 0.0

    def __str__(self) -> str:
        return ""

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return True

    def __contains__(self, one: Any) -> bool:
        return True

    __index__, __repr__ = __int__, __str__
    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__
    __call__ = __getitem__ = __setitem__ = __delitem__ = __abs__ = __neg__ = __pos__ = __invert__ = __round__ = _again
    __add__ = __sub__ = __mul__ = __truediv__ = __floordiv__ = __mod__ = __pow__ = __matmul__ = _again
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rfloordiv__ = __rmod__ = __rpow__ = __rmatmul__ = _again
    __and__ = __or__ = __xor__ = __rand__ = __ror__ = __rxor__ = __lshift__ = __rshift__ = _again


class RaisedError(Exception):
    """What the completion raised, where the script needs no class of its own."""


class DifferentCallsError(BaseException):
    """The script calls the function as it did not when its calls were recorded, or too often."""


class Report:
    """What became of each assertion. After one that does not hold the script goes on."""

    def __init__(self, recording: bool) -> None:
        self.recording = recording
        self.results: dict[int, list[str]] = {}  # number of an assertion: passed, or why not; a message

    def __call__(self, number: int, claim: Any) -> None:
        held = self.recording or bool(claim)
        self._add(number, [PASSED, ""] if held else [WRONG, "an assertion of the script does not hold"])

    def fail(self, number: int, error: BaseException) -> None:
        if self.recording:
            raise error
        self._add(number, why(error))

    def _add(self, number: int, result: list[str]) -> None:
        if self.results.get(number, [PASSED])[0] == PASSED:  # the first failure stays
            self.results[number] = result


def why(error: BaseException) -> list[str]:
    """The reason and the message of what a script raised: what the completion raised, or its wrong answers' fault."""
    reason = getattr(error, "reason_of_the_completion", WRONG)
    text = getattr(error, "message_of_the_completion", f"{type(error).__name__}: {error}")
    return [str(reason), str(text)[:160]]


def run(source: str, names: list[str], function: Callable[..., Any], namespace: dict[str, Any], report: Report) -> None:
    """Runs a script, then its function `check` and those of no arguments whose names begin with `test`.

    Args:
      names: what the script may call the function.
    """
    random.seed(0)
    before = dict(namespace)
    namespace |= dict.fromkeys(names, function) | {REPORT: report}
    exec(compile(source, "script", "exec"), namespace)
    for name, one in list(namespace.items()):
        if name in names or before.get(name) is one or not isinstance(one, FunctionType):
            continue
        if name == "check":
            one(function)
        elif name.startswith("test") and not one.__code__.co_argcount:
            one()


def results(source: str, names: list[str], function: Any, namespace: dict[str, Any], count: int) -> list[list[str]]:
    """Runs a script of `count` assertions; for each one that ran what became of it.

    If the script raises, so fail those that it did not reach. A script without assertions is one test.
    """
    report = Report(recording=False)
    try:
        run(source, names, function, namespace, report)
    except Exception as error:
        for number in range(max(1, count)):
            if number not in report.results:
                report.fail(number, error)
    if count and not report.results:
        return [["error", "no assertion of the script ran"]]
    return [report.results[number] for number in sorted(report.results)] or [[PASSED, ""]]


def together(source: str, names: list[str], function: Any, namespace: dict[str, Any], count: int) -> list[list[str]]:
    """Runs a script in the process of the completion, whose names it may use; see `results`."""

    def called(*positional: Any, **named: Any) -> Any:
        try:
            return function(*positional, **named)
        except Exception as error:
            reasons = {MemoryError: "memory", PermissionError: "forbidden"}
            raise marked(error, reasons.get(type(error), "error"), f"{type(error).__name__}: {error}") from None

    return results(source, names, called, namespace, count)


def record(prelude: str, source: str, names: list[str]) -> str:
    """The calls that a script makes, as JSON: [positional arguments, arguments by name] of each."""
    calls: list[Any] = []

    def function(*positional: Any, **named: Any) -> Anything:
        calls.append(arguments(positional, named))
        if len(calls) > MOST_CALLS:
            raise DifferentCallsError
        return Anything()

    namespace: dict[str, Any] = {"__name__": "script"}
    exec(compile(prelude, "prelude", "exec"), namespace)
    run(source, names, function, namespace, Report(recording=True))
    return json.dumps(calls)


def arguments(positional: Any, named: Any) -> list[Any]:
    return [[encode(one) for one in positional], {name: encode(one) for name, one in named.items()}]


def judge(prelude: str, source: str, names: list[str], count: int, calls: str, answers: str) -> list[list[str]] | str:
    """What became of the assertions, see `results`, if the completion answers so.

    Where the script makes another call than those that are answered: its calls up to this one, as JSON.

    Args:
      calls: of `record`.
      answers: as JSON, for each call {"value": [value, positional arguments after the call, arguments by name]} or
        {"reason": ..., "message": ...}.
    """
    expected, given = json.loads(calls), json.loads(answers)
    namespace: dict[str, Any] = {"__name__": "script"}
    made = 0

    def function(*positional: Any, **named: Any) -> Any:
        nonlocal made
        call = arguments(positional, named)
        if made >= len(expected) or call != expected[made]:
            expected[made:] = [call]
            raise DifferentCallsError
        made += 1
        answer = given[made - 1]
        if "value" not in answer:
            raise raised(answer["reason"], answer["message"])
        # An answer is untrusted: of the script's names it may use these two, which make nodes.
        makers: dict[str, Any] = {name: namespace[name] for name in ("list_node", "tree_node") if name in namespace}
        value, after, after_named = decode(answer["value"], makers)
        for mine, theirs in (*zip(positional, after, strict=False), *((named[n], after_named[n]) for n in after_named)):
            change(mine, theirs)
        return value

    exec(compile(prelude, "prelude", "exec"), namespace)
    try:
        return results(source, names, function, namespace, count)
    except DifferentCallsError:
        return json.dumps(expected)


def change(mine: Any, theirs: Any) -> None:
    """Gives a list, dictionary or set the content that the completion left in it."""
    if mine == theirs or type(mine) is not type(theirs):
        return
    if isinstance(mine, list):
        mine[:] = theirs
    elif isinstance(mine, dict | set):
        mine.clear()
        mine.update(theirs)


def raised(reason: str, message: str) -> Exception:
    """The exception that a completion raised: of Python's own class of that name, where there is one."""
    kind = getattr(builtins, message.partition(":")[0], None)
    error: Exception = RaisedError(message)
    if reason == "error" and isinstance(kind, type) and issubclass(kind, Exception):
        with suppress(TypeError):
            error = kind(message.partition(": ")[2])
    return marked(error, reason, message)


def marked(error: Any, reason: str, message: str) -> Exception:
    """The exception, for `why` to know that the completion raised it."""
    error.reason_of_the_completion, error.message_of_the_completion = reason, message
    return error
