"""EvalPlus's test code: lists of inputs and results, and a loop that compares them.

    def assertion(out, exp, atol):
        exact_match = out == exp
        ...
    inputs = [[1, 2], ...]
    results = [3, ...]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, 0)

`assertion` finds values equal as Python does, and floats also within `atol` (1e-6 if it is 0) plus 1e-7 of their size,
as `numpy.testing.assert_allclose` has it. For a few problems it compares sets of the elements.
"""

import ast
from collections.abc import Collection, Iterator
from typing import Any

from qrpo_jax.data.layouts.assertions import is_call
from qrpo_jax.data.layouts.constants import constant, tagged

MATCHES = {"exact_match = out == exp": "value", "exact_match = set(out) == set(exp)": "set"}
FLOATS_WITHIN, RELATIVE = 1e-6, 1e-7


def read(module: ast.Module, names: Collection[str]) -> list[Any]:
    """Its tests; none if the code has another form.

    Args:
      names: what the loop may call the function.
    """
    lists: dict[str, ast.expr] = {}
    compared, tolerance = "", None
    for node in _statements(module):
        match node:
            case ast.Assign([ast.Name("inputs" | "results" as name)], value):
                lists[name] = value
            case ast.FunctionDef("assertion"):
                compared = MATCHES.get(ast.unparse(node.body[0]), "")
            case ast.For(
                _, ast.Call(ast.Name("enumerate"), [ast.Call(ast.Name("zip"))]), [ast.Expr(ast.Call() as call)]
            ):
                tolerance = _tolerance(call, names)
    if not compared or tolerance is None or len(lists) < 2:
        return []
    try:
        inputs, results = constant(lists["inputs"]), constant(lists["results"])
        if not isinstance(inputs, list) or not isinstance(results, list):
            return []
        pairs = list(zip(inputs, results, strict=False))
        return [_test(arguments, value, compared, tolerance) for arguments, value in pairs]
    except (ValueError, TypeError):
        return []


def _statements(module: ast.Module) -> Iterator[ast.stmt]:
    """Those of the module, and those of its functions but `assertion` and its kind."""
    for statement in module.body:
        yield statement
        if isinstance(statement, ast.FunctionDef) and statement.name == "check":
            yield from statement.body


def _tolerance(call: ast.Call, names: Collection[str]) -> float | None:
    """`atol` of the loop's `assertion(candidate(*inp), exp, atol)`; None for another call."""
    match call:
        case ast.Call(ast.Name("assertion"), [ast.Call(_, [ast.Starred(ast.Name("inp"))]), ast.Name("exp"), within]):
            return float(constant(within)) if is_call(call.args[0], names) else None
    return None


def _test(arguments: Any, value: Any, compared: str, tolerance: float) -> Any:
    given = {"args": tagged(list(arguments)), "kwargs": {}, "value": tagged(value)}
    if compared == "set":
        return given | {"as": "set"}
    several = isinstance(value, list | tuple)
    floats = isinstance(value, float) or (several and all(isinstance(one, float) for one in value))
    within = tolerance or (FLOATS_WITHIN if floats else 0.0)
    if not within:
        return [given["args"], {}, given["value"]]
    return given | {"within": within, "relative": RELATIVE}
