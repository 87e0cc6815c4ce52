"""Programming problems: a function to write, and the tests of its values that a sandbox can run.

Tests are written as Python, `assert candidate(3, 4) == 7`. Those that compare one call with a value, all literals,
become arguments and an expected value. All others (loops, tolerances, helper functions) are left out.
"""

import ast
import json
from collections.abc import Iterator
from typing import Any

from qrpo_jax.data.layouts.layout import At, Values
from qrpo_jax.errors import shown

CANDIDATE = "candidate"  # what the tests of HumanEval and LeetCodeDataset call the function
SHOWN_TESTS = "Your code must pass these tests:"
WITHOUT_TESTS = "no test compares one call with a value"


def derive(values: Values, at: At) -> Values:
    """Keys of a row from a problem; `tests` is the source of a function `check`, or a list of assertions.

    The payload has `tests`: lists of positional arguments, arguments by name, and the expected value; `entry_point`: an
    expression for the function; and `prelude`: code to run before the completion.

    Raises:
      UserError: the tests are not text.
      DroppedError: they are no Python, or the sandbox could run none of them.
    """
    source = values.get("tests")
    if not source:
        raise at.unusable("there are no tests")
    lines = [source] if isinstance(source, str) else source
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise at.fault(f"{at.column('tests')} is {shown(source)}; it must be Python in text, or a list of such texts")
    entry_point = values.get("entry_point")
    tests, total = [], 0
    try:
        for assertion in (one for line in lines for one in _assertions(line)):
            total += 1
            call = assertion.left if isinstance(assertion, ast.Compare) else None
            if entry_point is None and isinstance(call, ast.Call):
                entry_point = _name(call.func)  # MBPP names the function in its tests alone
            test = _test(assertion, (CANDIDATE, entry_point))
            tests += [test] if test else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise at.unusable("its tests are not Python") from None
    if not tests or not isinstance(entry_point, str):
        raise at.unusable(WITHOUT_TESTS)
    payload = {"entry_point": entry_point, "prelude": _prelude(values), "tests": tests, "left_out": total - len(tests)}
    kept: Values = {key: values[key] for key in ("id", "prompt") if key in values}
    if isinstance(source, list) and isinstance(kept.get("prompt"), str):  # MBPP's prompt does not name the function
        kept["prompt"] = "\n".join([kept["prompt"], SHOWN_TESTS, "", *source])
    stem, answer = values.get("stem"), values.get("completion")
    if isinstance(answer, str) and answer.strip():
        # HumanEval's solution is a body, which goes on where the prompt ends.
        whole = f"{stem}{answer}" if answer[0].isspace() and isinstance(stem, str) else answer
        kept["completions"] = [whole if "```" in whole else f"```python\n{whole.strip()}\n```"]
    return kept | {"payload": payload}


def _prelude(values: Values) -> str:
    """Imports and helpers to run first; LeetCodeDataset has them in `prompt`, beside the problem in `query`."""
    before = values.get("prelude")
    lines = before if isinstance(before, list) else [before]
    if values.get("stem") != values.get("prompt"):
        lines = [values.get("stem"), *lines]
    return "\n".join(line for line in lines if isinstance(line, str) and line.strip())


def _assertions(source: str) -> Iterator[ast.expr]:
    """What each assertion of a program claims, also those inside `check`, but none inside a loop or a branch."""
    for statement in ast.parse(source).body:
        body = statement.body if isinstance(statement, ast.FunctionDef) else [statement]
        yield from (line.test for line in body if isinstance(line, ast.Assert))


def _test(claim: ast.expr, names: tuple[str | None, ...]) -> list[Any] | None:
    """[positional arguments, arguments by name, expected value], as JSON has them; None if it is no such test."""
    if not (isinstance(claim, ast.Compare) and len(claim.ops) == 1 and isinstance(claim.ops[0], ast.Eq)):
        return None
    call = claim.left
    if not isinstance(call, ast.Call) or _name(call.func) not in names:
        return None
    if any(isinstance(argument, ast.Starred) for argument in call.args) or any(k.arg is None for k in call.keywords):
        return None
    try:
        positional = [ast.literal_eval(argument) for argument in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        test = [positional, named, _lists(ast.literal_eval(claim.comparators[0]))]
        json.dumps(test, allow_nan=False)
    except (ValueError, TypeError):  # an expression, or a value such as a set that JSON has not
        return None
    return None if _changed(test) else test


def _name(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else ast.unparse(function)


def _lists(value: Any) -> Any:
    """A value with lists for tuples, as the sandbox returns what a function gives."""
    if isinstance(value, list | tuple):
        return [_lists(one) for one in value]
    return {key: _lists(one) for key, one in value.items()} if isinstance(value, dict) else value


def _changed(value: Any) -> bool:
    """Whether JSON would make another value of it: it turns tuples into lists, and keys into text."""
    if isinstance(value, dict):
        return not all(isinstance(key, str) for key in value) or any(map(_changed, value.values()))
    return isinstance(value, tuple) or (isinstance(value, list) and any(map(_changed, value)))
