"""Scripts: tests that are Python code, which run in a process of their own, so that what they expect stays there.

A script calls the function many times, in loops and through helpers. It runs

1. once for a problem, without a completion: the function records its arguments, and its answer is an object on which
   every operation works. Assertions hold whatever they claim.
2. The completion's process gets these calls as any other, and returns the values, and the arguments as they are after
   the call: a script may test what a function does to a list.
3. The script runs again for this completion, and the function answers so. What the completion raised is raised again.
   Where a call depends on earlier answers, steps 2 and 3 follow again with this call, up to ROUNDS times.

If step 1 fails, as it does where the script passes an answer on to the function, or needs a class of the completion,
script and completion run in one process, where the completion can read what is expected. Such completions are counted.
No completion has a say in it.

Each assertion of a script that ran is a test, and so is each one that an exception kept from running. A loop repeats an
assertion, which is one test and must hold every time.
"""

import ast
import functools
import inspect
import json
from typing import Any, NamedTuple

from qrpo_jax.rewards import harness
from qrpo_jax.rewards.sandbox.tasks import Call, Failed, Outputs, Task

CANDIDATE = "candidate"  # the name of the function in scripts
AFTER = "lambda *positional, **named: [({entry_point})(*positional, **named), positional, named]"
TOGETHER = """lambda space: (
    exec({harness!r}, space),
    space["together"]({source!r}, {names!r}, {entry_point}, dict(globals()), {count}),
)[1]"""

REASONS = (harness.PASSED, harness.WRONG, "error", "time", "memory", "output", "forbidden")
MOST_SCRIPTS = 4096  # that are kept
ROUNDS = 8
MANY_ROUNDS = [("error", f"calls of the script depend on answers more than {ROUNDS} times")]
Results = list[tuple[str, str]]  # of each test: "passed", or why not; and a message


class Script(NamedTuple):
    """A script that reports its assertions.

    Attributes:
      prelude: code of the problem before it.
      entry_point: expression for the completion's function.
      source: the script; its assertions call `harness.REPORT`.
      assertions: number of its assertions.
    """

    prelude: str
    entry_point: str
    source: str
    assertions: int

    @property
    def names(self) -> list[str]:
        """What the script may call the function."""
        return [CANDIDATE, *[self.entry_point] * self.entry_point.isidentifier()]

    def recording(self) -> Task:
        """The task of step 1; its output is that of `harness.record`."""
        return Task(_harness(), "record", (Call([self.prelude, self.source, self.names]),))

    def judging(self, calls: str, outputs: Outputs) -> Task:
        """The task of step 3; its output is that of `harness.judge`.

        Args:
          calls: of step 1.
          outputs: of step 2.
        """
        answers = [
            {"reason": output.reason, "message": output.message} if isinstance(output, Failed) else {"value": output}
            for output in outputs
        ]
        given = [self.prelude, self.source, self.names, self.assertions, calls, json.dumps(answers)]
        return Task(_harness(), "judge", (Call(given),))


@functools.lru_cache(MOST_SCRIPTS)
def read_script(prelude: str, entry_point: str, text: str) -> Script:
    """A script from its source.

    Raises:
      ValueError: it is no Python.
    """
    reporting = _Reporting()
    try:
        source = ast.unparse(reporting.visit(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("no Python") from None
    return Script(prelude, entry_point, source, reporting.count)


def calls_task(script: Script, code: str, calls: str) -> Task:
    """The task of step 2: a completion's code and the recorded calls."""
    call = AFTER.format(entry_point=script.entry_point)
    return Task(code, call, tuple(Call(positional, named) for positional, named in json.loads(calls)))


def together_task(script: Script, code: str) -> Task:
    """Script and completion in one process; its output is that of `harness.together`."""
    call = TOGETHER.format(
        harness=_harness(),
        source=script.source,
        names=script.names,
        entry_point=script.entry_point,
        count=script.assertions,
    )
    return Task(code, call, (Call([{}]),))


def recorded(outputs: Outputs) -> str | None:
    """The calls of step 1; None if it failed."""
    (output,) = outputs
    return output if isinstance(output, str) else None


def other_calls(outputs: Outputs) -> str | None:
    """The calls that the script makes instead of those that were answered; None if they are these, or it failed."""
    return recorded(outputs)


def read_results(outputs: Outputs, script: Script) -> Results:
    """The results of step 3, or of the script together with a completion, which are untrusted."""
    (output,) = outputs
    most = max(1, script.assertions)
    if isinstance(output, Failed):
        return [(output.reason, output.message)] * most
    if not isinstance(output, list) or not all(map(_is_result, output)) or not 0 < len(output) <= most:
        return [("error", "its report is unreadable")] * most
    return [(reason, message) for reason, message in output]


def _is_result(one: Any) -> bool:
    return isinstance(one, list) and len(one) == 2 and one[0] in REASONS and isinstance(one[1], str)


class _Reporting(ast.NodeTransformer):
    """Assertions become calls of the report, with their number and what they claim."""

    REPORTED = "try:\n    {report}({number}, {claim})\nexcept Exception as error_:\n    {report}.fail({number}, error_)"

    def __init__(self) -> None:
        self.count = 0

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        text = self.REPORTED.format(report=harness.REPORT, number=self.count, claim=ast.unparse(node.test))
        self.count += 1
        return ast.parse(text).body[0]


@functools.cache
def _harness() -> str:
    return inspect.getsource(harness)
