"""Problems with tests: what a row's payload says, and the task of each completion for the sandbox."""

import json
import re
from contextlib import suppress
from typing import Any, NamedTuple

from qrpo_jax.data import programs
from qrpo_jax.data.rows import Row
from qrpo_jax.errors import UserError
from qrpo_jax.rewards.sandbox.tasks import Task

BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
EXPRESSION_CALL = "f"
NO_CODE = "no code block"  # outcome of a completion without one


class Problem(NamedTuple):
    """The tests of a row.

    Attributes:
      inputs: arguments of each call.
      expected: the value of each.
      entry_point: expression for the function to call; None if a completion is itself an expression in a and b.
      prelude: code before the completion's.
    """

    inputs: tuple[tuple[Any, ...], ...]
    expected: tuple[Any, ...]
    entry_point: str | None = None
    prelude: str = ""

    def task(self, completion: str) -> Task | None:
        """The task of a completion; None for one that has no code.

        The code of a function is the first block between ``` and ```.
        """
        if self.entry_point is None:
            return Task(programs.program(completion), EXPRESSION_CALL, self.inputs)
        block = BLOCK.search(completion)
        if block is None:
            return None
        call = f"lambda positional, named: ({self.entry_point})(*positional, **named)"
        return Task(f"{self.prelude}\n{block[1]}", call, self.inputs)


def read_problem(row: Row, where: str = "") -> Problem:
    """The tests in a row's payload.

    It is `{"tests": [[[a, b], value], ...]}` for an expression, and for a function
    `{"tests": [[[positional, ...], {name: argument}, value], ...], "entry_point": "f", "prelude": "import math"}`.

    Args:
      where: where the row stands, for messages; by default its id.

    Raises:
      UserError: the payload is not of these forms.
    """
    payload: Any = None
    with suppress(ValueError):
        payload = json.loads(row.payload)
    tests = payload.get("tests") if isinstance(payload, dict) else None
    entry_point = payload.get("entry_point") if isinstance(payload, dict) else None
    right = _is_expression_test if entry_point is None else _is_call_test
    if not isinstance(tests, list) or not tests or not all(map(right, tests)):
        raise UserError(
            f"{where or f'row {row.id!r}'}: its payload is {row.payload[:40]!r}, reward 'tests' needs "
            '{"tests": [[[a, b], value], ...]}, the values of a function of a and b, or those of the function '
            '"entry_point" (docs/data.md); correct the prompts, or set another reward'
        )
    expected = tuple(test[-1] for test in tests)
    if entry_point is None:
        return Problem(tuple(tuple(arguments) for arguments, _ in tests), expected)
    prelude = payload.get("prelude", "")
    if not isinstance(entry_point, str) or not isinstance(prelude, str):
        raise UserError(f"{where or f'row {row.id!r}'}: 'entry_point' and 'prelude' of its payload must be text")
    return Problem(tuple((positional, named) for positional, named, _ in tests), expected, entry_point, prelude)


def _is_expression_test(test: Any) -> bool:
    return isinstance(test, list) and len(test) == 2 and isinstance(test[0], list) and len(test[0]) == 2


def _is_call_test(test: Any) -> bool:
    return isinstance(test, list) and len(test) == 3 and isinstance(test[0], list) and isinstance(test[1], dict)
