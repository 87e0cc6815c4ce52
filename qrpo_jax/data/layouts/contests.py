"""Problems of programming contests, whose programs read standard input and write standard output.

Those of APPS and TACO with `fn_name` are functions, as on LeetCode. Their harness takes lists for tuples, and an
expected value that is alone in a list for that value.
"""

import json
from collections.abc import Mapping
from typing import Any

from qrpo_jax.data.layouts.layout import At, Values
from qrpo_jax.errors import shown

PYTHON_3 = 3  # the language's number in CodeContests
STANDARD_INPUT = "Write a Python program that reads standard input and writes standard output."
STARTER = "Begin with:"


def derive_apps(values: Values, at: At) -> Values:
    """Keys of a row from a problem of APPS or TACO. Of its solutions the first becomes a completion.

    Raises:
      UserError: a column has another type.
      DroppedError: it has no tests, or they are malformed.
    """
    tests = _json(values.get("tests"), at, "tests")
    if not isinstance(tests, dict) or not all(isinstance(tests.get(key), list) for key in ("inputs", "outputs")):
        raise at.unusable("there are no tests")
    cases = list(zip(tests["inputs"], tests["outputs"], strict=False))
    name, starter = tests.get("fn_name"), values.get("starter")
    starter = starter if isinstance(starter, str) and starter.strip() else ""
    payload: dict[str, Any]
    if isinstance(name, str) and name:
        called = [_call(arguments, value) for arguments, value in cases if isinstance(arguments, list)]
        within = f"Solution().{name}" if "class Solution" in starter else name
        payload = {"entry_point": within, "prelude": "from typing import *", "tests": called}
    else:
        payload = {"tests": [{"stdin": _text(given, at), "stdout": _text(wanted, at)} for given, wanted in cases]}
    if not payload["tests"]:
        raise at.unusable("there are no tests")
    prompt = values["prompt"]
    if isinstance(prompt, str):
        prompt = "\n\n".join([prompt.strip(), f"{STARTER}\n{starter}" if starter else ""]).strip()
        prompt = prompt if "entry_point" in payload else f"{prompt}\n\n{STANDARD_INPUT}"
    solutions = _json(values.get("solutions"), at, "solutions")
    return _row(values, prompt, payload, solutions if isinstance(solutions, list) else [])


def derive_contest(values: Values, at: At) -> Values:
    """Keys of a row from a problem of CodeContests: its public, private and generated tests, in this order.

    The first solution in Python 3 becomes a completion.

    Raises:
      UserError: a column has another type.
      DroppedError: it has no tests.
    """
    tests = []
    for key in ("tests", "private_tests", "generated_tests"):
        given = values.get(key) or {}
        if not isinstance(given, Mapping) or not all(isinstance(given.get(k, []), list) for k in ("input", "output")):
            raise at.fault(f"{at.column(key)} is {shown(given)}; it must have lists input and output")
        pairs = zip(given.get("input", []), given.get("output", []), strict=False)
        tests += [{"stdin": _text(one, at), "stdout": _text(wanted, at)} for one, wanted in pairs]
    if not tests:
        raise at.unusable("there are no tests")
    solutions = values.get("solutions") or {}
    if not isinstance(solutions, Mapping):
        raise at.fault(f"{at.column('solutions')} is {shown(solutions)}; it must have lists language and solution")
    pairs = zip(solutions.get("language", []), solutions.get("solution", []), strict=False)
    prompt = values["prompt"]
    if isinstance(prompt, str):
        prompt = f"{prompt.strip()}\n\n{STANDARD_INPUT}"
    return _row(values, prompt, {"tests": tests}, [text for language, text in pairs if language == PYTHON_3])


def _row(values: Values, prompt: Any, payload: Values, solutions: list[Any]) -> Values:
    row: Values = {"prompt": prompt, "payload": payload} | ({"id": values["id"]} if "id" in values else {})
    first = next((text for text in solutions if isinstance(text, str) and text.strip()), None)
    return row if first is None else row | {"completions": [f"```python\n{first.strip()}\n```"]}


def _call(arguments: list[Any], value: Any) -> Values:
    """A test of a function: the value, or the only one in a list; tuples count as lists."""
    test: Values = {"args": [_whole_keys(one) for one in arguments], "kwargs": {}, "value": _whole_keys(value)}
    if isinstance(value, list) and value:
        test["or"] = _whole_keys(value[0])
    return test | {"as": "lists"}


def _whole_keys(value: Any) -> Any:
    """A dictionary whose keys JSON made text gets whole numbers back, as in the harness of APPS."""
    if not isinstance(value, dict) or not value:
        return value
    try:
        return {"$dict": [[int(key), one] for key, one in value.items()]}
    except ValueError:
        return value


def _text(lines: Any, at: At) -> str:
    """Standard input or output: text, or its lines.

    Raises:
      DroppedError: it is neither.
    """
    if isinstance(lines, list) and all(isinstance(line, str) for line in lines):
        return "\n".join(lines)
    if not isinstance(lines, str):
        raise at.unusable("a test is no text")
    return lines


def _json(value: Any, at: At, key: str) -> Any:
    """A column that is JSON in text, or already read; None if it is empty or malformed.

    Raises:
      UserError: it is something else.
    """
    if value is None or isinstance(value, dict | list):
        return value
    if not isinstance(value, str):
        raise at.fault(f"{at.column(key)} is {shown(value)}; it must be JSON in text")
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None
