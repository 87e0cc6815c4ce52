"""Answers that are mathematical expressions: the library math-verify reads and compares them, inside the sandbox.

The library parses text that a policy wrote, with SymPy, so it runs under the limits on time and memory of code. Unlike
the tests of a program, the expected answer is inside the sandbox then: a text that made the parser run code of its own
could claim a pass. What it could do beyond that is limited as for any code.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from qrpo_jax.data.rows import Row
from qrpo_jax.errors import UserError
from qrpo_jax.rewards.answers import NO_ANSWER, WRONG
from qrpo_jax.rewards.code_reward import PASSED, Judged, Runner
from qrpo_jax.rewards.sandbox.tasks import Call, Failed, Task

PACKAGE = "math_verify"
UNREADABLE = "expected answer not read"  # verdict where the library finds nothing in the row's own answer
# The sandbox limits time, so the library's own timeouts are off, and the warning that they are.
CODE = f"""
import logging

from math_verify import parse, verify

logging.disable()


def verdict(answer, completion):
    delimited = any(mark in answer for mark in ("$", "\\\\boxed", "\\\\(", "\\\\["))
    expected = parse(answer if delimited else f"${{answer}}$", parsing_timeout=None)
    if not expected:
        return {UNREADABLE!r}
    found = parse(completion, parsing_timeout=None)
    if not found:
        return {NO_ANSWER!r}
    return {PASSED!r} if verify(expected, found, timeout_seconds=None) else {WRONG!r}
"""


def check_package() -> None:
    """Refuses a machine without the library.

    Raises:
      UserError: saying what to install.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(
            "reward 'math_verify' needs the library math-verify, which is not installed: pip install -e '.[math]'",
            about="name",
        )


def read_expression(row: Row, where: str = "") -> str:
    """The answer in a row's payload, `{"answer": "\\\\frac{1}{2}"}`, as text.

    Args:
      where: where the row stands, for messages; by default its id.

    Raises:
      UserError: the payload is not of this form.
    """
    payload: Any = None
    with suppress(ValueError):
        payload = json.loads(row.payload)
    answer = payload.get("answer") if isinstance(payload, Mapping) else None
    if type(answer) not in (str, int, float) or not str(answer).strip():
        raise UserError(
            f"{where or f'row {row.id!r}'}: its payload is {row.payload[:40]!r}, reward 'math_verify' needs "
            '{"answer": "x + 1"}, LaTeX or a number (docs/data.md); correct the prompts, or set another reward'
        )
    return str(answer)


def judge(sandbox: Runner, rows: Sequence[Row]) -> list[list[Judged]]:
    """What became of each completion of each row: reward 1 for the expected answer, else 0.

    Raises:
      UserError: a payload without an answer.
    """
    pairs = [(read_expression(row), completion.text) for row in rows for completion in row.completions]
    outputs = iter(sandbox.run([Task(CODE, "verdict", (Call(pair),)) for pair in pairs]))
    return [[_judged(next(outputs)[0]) for _ in row.completions] for row in rows]


def _judged(output: Any) -> Judged:
    """The verdict in an output of the sandbox, which is untrusted: what is not one of `CODE`'s is an error."""
    if isinstance(output, Failed):
        return Judged(0.0, output.reason, output.message)
    if output == PASSED:
        return Judged(1.0, PASSED)
    return Judged(0.0, output) if output in (WRONG, NO_ANSWER, UNREADABLE) else Judged(0.0, "error", "another output")
