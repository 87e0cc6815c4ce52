"""Programming problems: a function to write, and tests of its values that a sandbox can run.

Tests are written as Python. An assertion that compares one call with a constant becomes arguments and an expected
value (`assertions`). All others (loops, helper functions, expressions) stay Python, the `script` of the payload, which
runs where the completion does not.
"""

import ast
import builtins
from collections.abc import Collection
from typing import Any

from qrpo_jax.data.layouts import evalplus
from qrpo_jax.data.layouts.assertions import name_of, value_test
from qrpo_jax.data.layouts.layout import At, Values
from qrpo_jax.errors import shown

CANDIDATE = "candidate"  # what the tests of HumanEval and LeetCodeDataset call the function
CHECK = "check"  # the function that has them
CHECKS = (CHECK, "test")  # and what names of such functions begin with elsewhere
SHOWN_TESTS = "Your code must pass these tests:"
WITHOUT_TESTS = "no test calls the function"
PYTHON = {*dir(builtins), "isclose"}
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def derive(values: Values, at: At) -> Values:
    """Keys of a row from a problem; `tests` is the source of a function `check`, or a list of assertions.

    The payload has `tests`, values and tags as docs/data.md lists them; `entry_point`: an expression for the function;
    `prelude`: code to run before the completion; and `script`: the rest of the tests, if there is any.

    Raises:
      UserError: the tests are not text.
      DroppedError: they are no Python, or none of them calls the function.
    """
    source = values.get("tests")
    if not source:
        raise at.unusable("there are no tests")
    lines = [source] if isinstance(source, str) else source
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise at.fault(f"{at.column('tests')} is {shown(source)}; it must be Python in text, or a list of such texts")
    entry_point, setup, examples = values.get("entry_point"), _text(values.get("setup")), values.get("examples")
    try:
        module = ast.parse("\n".join(lines))
        if entry_point is None:  # MBPP names the function in its tests alone
            entry_point = _called(ast.parse(_text(examples) or "\n".join(lines)))
        if not isinstance(entry_point, str):
            raise at.unusable(WITHOUT_TESTS)
        names = {CANDIDATE, entry_point}
        tests = evalplus.read(module, names)
        script = "" if tests else _divide(module, tests, names)
        prelude = _text([_stem(values, entry_point), _text(values.get("prelude")), _definitions(setup)])
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise at.unusable("its tests are not Python") from None
    if not (tests or script):
        raise at.unusable(WITHOUT_TESTS)
    payload = {"entry_point": entry_point, "prelude": prelude, "tests": tests}
    if script:
        payload["script"] = _text([setup, script])
    kept: Values = {key: values[key] for key in ("id", "prompt") if key in values}
    if isinstance(examples, list) and isinstance(kept.get("prompt"), str):  # MBPP's prompt does not name the function
        kept["prompt"] = "\n".join([kept["prompt"], SHOWN_TESTS, "", *map(str, examples)])
    stem, answer = values.get("stem"), values.get("completion")
    if isinstance(answer, str) and answer.strip():
        # HumanEval's solution is a body, which goes on where the prompt ends.
        whole = f"{stem}{answer}" if answer[0].isspace() and isinstance(stem, str) else answer
        kept["completions"] = [whole if "```" in whole else f"```python\n{whole.strip()}\n```"]
    return kept | {"payload": payload}


def _text(lines: Any) -> str:
    """Code in text, or in a list of texts."""
    lines = lines if isinstance(lines, list) else [lines]
    return "\n".join(line for line in lines if isinstance(line, str) and line.strip())


def _stem(values: Values, entry_point: Any) -> str:
    """The code before the function: in LeetCodeDataset a column of its own, in HumanEval the beginning of the prompt.

    That prompt ends with the function's first lines, which are not taken.
    """
    stem = values.get("stem")
    if not isinstance(stem, str):
        return ""
    if stem != values.get("prompt"):
        return stem
    try:
        module = ast.parse(stem)
    except (SyntaxError, ValueError):  # a prompt in words
        return ""
    rest = [one for one in module.body if not (isinstance(one, ast.FunctionDef) and one.name == entry_point)]
    return "\n".join(map(ast.unparse, rest)) if len(rest) < len(module.body) else ""


def _definitions(setup: str) -> str:
    """The part of the setup code that needs nothing of the completion."""
    return "\n".join(ast.unparse(one) for one in ast.parse(setup).body if isinstance(one, DEFINITIONS))


def _called(module: ast.Module) -> str | None:
    """The function that the first assertion calls; those of Python are not meant."""
    for statement in module.body:
        for node in ast.walk(statement) if isinstance(statement, ast.Assert) else ():
            if isinstance(node, ast.Call) and (name := name_of(node.func)) not in PYTHON and "math." not in name:
                return name
    return None


def _divide(module: ast.Module, tests: list[Any], names: Collection[str]) -> str:
    """Moves the assertions that are tests of a value from the module to `tests`; the rest, if it calls the function."""
    module.body = _rest(module.body, tests, names)
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef) and statement.name.startswith(CHECKS):
            statement.body = _rest(statement.body, tests, names) or [ast.Pass()]
    names_of = (node for node in ast.walk(module) if isinstance(node, ast.Name | ast.Attribute))
    return ast.unparse(module) if any(name_of(node) in names for node in names_of) else ""


def _rest(statements: list[ast.stmt], tests: list[Any], names: Collection[str]) -> list[ast.stmt]:
    rest = []
    for statement in statements:
        if isinstance(statement, ast.Assert):
            if isinstance(statement.test, ast.Constant) and statement.test.value:
                continue  # HumanEval has `assert True`, which tests nothing
            if test := value_test(statement.test, names):
                tests.append(test)
                continue
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call | ast.Name | ast.Constant):
            called = statement.value.func if isinstance(statement.value, ast.Call) else statement.value
            if isinstance(called, ast.Constant) or name_of(called) in (CHECK, "print"):
                continue  # `check(f)` at the end, and texts: whoever runs the script calls check
        rest.append(statement)
    return rest
