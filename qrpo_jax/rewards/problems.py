"""Problems with tests: what a row's payload says, what of a completion is its code, and whether an output is right."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from qrpo_jax.data import programs
from qrpo_jax.data.rows import Row
from qrpo_jax.errors import UserError
from qrpo_jax.rewards.printed import same_text
from qrpo_jax.rewards.sandbox.tasks import Call, Failed, Task
from qrpo_jax.rewards.sandbox.values import ROOMS, decode, equal
from qrpo_jax.rewards.scripts import Script, read_script

# A block ends at a line that begins with the fence, or with the text.
BLOCK = re.compile(r"```[ \t]*([\w+.-]*)[ \t]*\r?\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
LANGUAGES = ("", "py", "python", "python3")
BLOCKS = ("first", "last")  # which block of a completion is its code
EXPRESSION_CALL = "f"
KEYS = {"args", "kwargs", "value", "or", "as", "within", "relative"}
KINDS = ("value", "strict", "truth", "lists", "set")
MOST_ELEMENTS = 100_000  # of an output that is compared as a set


class Test(NamedTuple):
    """One test.

    Attributes:
      input: the arguments of a call, or the text that a program reads.
      expected: the right values, any of which will do; of a program, the text that it prints.
      how: "value": Python finds the output equal; "strict": and of the same type; "truth": it counts as true or false;
        "lists": equal where tuples are lists; "set": the same elements; "text": printed.
      within, relative: how far a number may be off, see `values.equal`.
    """

    input: Call | str
    expected: tuple[Any, ...]
    how: str = "value"
    within: float = 0.0
    relative: float = 0.0

    def passes(self, output: Any) -> bool:
        """Whether an untrusted output is right."""
        if isinstance(output, Failed):
            return False
        if self.how == "truth":
            return _is_true(output) == bool(self.expected[0])
        if self.how == "text":
            return isinstance(output, str) and same_text(output, self.expected[0])
        if self.how == "strict":
            (wanted,) = self.expected
            return type(output) is type(wanted) and equal(output, wanted, self.within, self.relative)
        if self.how == "set":
            return _equal_sets(output, self.expected[0])
        given = _as_lists(output) if self.how == "lists" else output
        return any(equal(given, one, self.within, self.relative) for one in self.expected)


class Problem(NamedTuple):
    """The tests of a row.

    Attributes:
      tests: those with an expected value.
      entry_point: expression for the function to call; None if a completion is a program, or an expression.
      prelude: code before the completion's.
      script: tests that are Python; None: there are none.
      expression: a completion is an expression in a and b.
    """

    tests: tuple[Test, ...]
    entry_point: str | None = None
    prelude: str = ""
    script: Script | None = None
    expression: bool = False

    def code(self, completion: str, block: str) -> str | None:
        """The source of a completion; None for one without a block of code.

        Args:
          block: one of BLOCKS: the block between ``` and ``` that is taken.
        """
        if self.expression:
            return programs.program(completion)
        found = code_block(completion, block)
        return f"{self.prelude}\n{found}" if found and self.prelude else found

    def task(self, code: str) -> Task:
        """What the sandbox runs for the tests with an expected value."""
        call = EXPRESSION_CALL if self.expression else self.entry_point
        return Task(code, call, tuple(test.input for test in self.tests))

    def first(self, count: int) -> "Problem":
        """The problem with at most `count` of its tests. A script counts as one and comes last; 0: all."""
        if not count or count > len(self.tests):
            return self
        return self._replace(tests=self.tests[:count], script=None)


def code_block(completion: str, block: str = "first") -> str | None:
    """The first or last block of Python in a text in Markdown; None if there is none. The last one need not end.

    >>> code_block("So:\\n```python\\nx = 1\\n```\\nor\\n```\\nx = 2", "last")
    'x = 2'
    """
    blocks = (match[2] for match in BLOCK.finditer(completion) if match[1].lower() in LANGUAGES and match[2].strip())
    if block == "first":
        return next(blocks, None)
    return next(reversed([*blocks]), None)


def read_problem(row: Row, where: str = "") -> Problem:
    """The tests in a row's payload, see docs/data.md.

    Args:
      where: where the row stands, for messages; by default its id.

    Raises:
      UserError: the payload has another form.
    """
    place = where or f"row {row.id!r}"
    payload: Any = None
    with suppress(ValueError, RecursionError):
        payload = json.loads(row.payload)
    given = payload if isinstance(payload, dict) else {}
    tests, entry_point = given.get("tests", []), given.get("entry_point")
    prelude, text = given.get("prelude", ""), given.get("script", "")
    if not all(isinstance(one, str) for one in (prelude, text, entry_point or "")):
        raise UserError(f"{place}: 'entry_point', 'prelude' and 'script' of its payload must be text")
    try:
        script = read_script(prelude, entry_point, text) if text and entry_point else None
    except ValueError:
        raise UserError(f"{place}: 'script' of its payload is no Python; correct the prompts") from None
    if text and not entry_point:
        raise UserError(f"{place}: its payload has a 'script' without the 'entry_point' that it tests")
    read: Sequence[Test | None] = [None]
    if isinstance(tests, list):
        expression = entry_point is None and bool(tests) and isinstance(tests[0], list)
        reader = _expression_test if expression else _printed_test if entry_point is None else _call_test
        with suppress(ValueError):
            read = [reader(test) for test in tests]
    right = tuple(test for test in read if test is not None)
    if len(right) < len(read) or not (right or script):
        raise UserError(
            f"{place}: its payload is {row.payload[:40]!r}, reward 'tests' needs "
            '{"tests": [[[a, b], value], ...]}, the values of a function of a and b, or those of the function '
            '"entry_point", or the standard input and output of a program (docs/data.md); correct the prompts, or set '
            "another reward"
        )
    return Problem(right, entry_point, prelude, script, entry_point is None and right[0].how == "strict")


def _expression_test(test: Any) -> Test | None:
    """Arguments a and b, and the value; an output must have its type, and floats may round differently."""
    if isinstance(test, list) and len(test) == 2 and isinstance(test[0], list) and len(test[0]) == 2:
        return Test(Call(test[0]), (test[1],), "strict", relative=1e-9 if isinstance(test[1], float) else 0.0)
    return None


def _printed_test(test: Any) -> Test | None:
    if isinstance(test, dict) and test.keys() == {"stdin", "stdout"} and all(isinstance(t, str) for t in test.values()):
        return Test(test["stdin"], (test["stdout"],), "text")
    return None


def _call_test(test: Any) -> Test | None:
    """A test of a function.

    Raises:
      ValueError: a tag that is none.
    """
    if isinstance(test, list) and len(test) == 3:
        test = dict(zip(("args", "kwargs", "value"), test, strict=True))
    if not isinstance(test, dict) or not {"args", "kwargs", "value"} <= test.keys() <= KEYS:
        return None
    positional, named, how = test["args"], test["kwargs"], test.get("as", "value")
    slack = [test.get(key, 0.0) for key in ("within", "relative")]
    numbers = all(isinstance(one, int | float) for one in slack)
    if not isinstance(positional, list) or not isinstance(named, dict) or how not in KINDS or not numbers:
        return None
    expected = tuple(decode(test[key]) for key in ("value", "or") if key in test)
    return Test(Call(positional, named), expected, how, *slack)


def _is_true(output: Any) -> bool:
    """Whether Python counts an encoded value as true."""
    if not isinstance(output, dict) or len(output) != 1:
        return bool(output)
    ((tag, given),) = output.items()
    if tag in ("$range", "$complex", "$number", "$float"):
        with suppress(ValueError):
            return bool(decode(output))
    return bool(given) if tag in (*ROOMS, "$dict", "$bytes") else True


def _as_lists(output: Any) -> Any:
    """An encoded value whose tuples are lists."""
    if isinstance(output, dict) and len(output) == 1:
        output = output.get("$tuple", output)
    with suppress(RecursionError):
        return [_as_lists(one) for one in output] if isinstance(output, list) else output
    return None


def _equal_sets(output: Any, expected: Any) -> bool:
    """Whether the elements are the same, as `set(output) == set(expected)` has it."""
    given = output
    if isinstance(output, dict) and len(output) == 1:
        given = next((output[tag] for tag in ROOMS if tag in output), output)
    try:
        wanted = set(expected)
        return len(given) <= MOST_ELEMENTS and {decode(one) for one in given} == wanted
    except (TypeError, ValueError, RecursionError):
        return False
