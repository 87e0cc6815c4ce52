"""Assertions on one call's value, as tests: arguments and what must come out, in the JSON of a payload.

    assert candidate([1, 2], k=3) == {4}       [[[1, 2]], {"k": 3}, {"$set": [4]}]
    assert abs(candidate(2) - 0.5) < 1e-6      {"args": [2], "kwargs": {}, "value": 0.5, "within": 1e-06}
    assert candidate(3) is True                {"args": [3], "kwargs": {}, "value": true, "as": "strict"}
    assert not candidate(4)                    {"args": [4], "kwargs": {}, "value": false, "as": "truth"}

An argument that is no constant but a call by name, such as `Pair(1, 2)`, is a `$call`, whose name the completion or the
code before it defines.
"""

import ast
from collections.abc import Collection
from typing import Any

from qrpo_jax.data.layouts.constants import constant, tagged

# LeetCodeDataset's helpers: how each kind of nodes is compared, and made.
NODES = {"is_same_list": "list_node", "is_same_tree": "tree_node"}


def value_test(claim: ast.expr, names: Collection[str]) -> Any:
    """The test that an assertion makes; None if it is no such test.

    Args:
      names: what the assertion may call the function.
    """
    try:
        return _test(claim, names)
    except ValueError:
        return None


def is_call(node: ast.AST, names: Collection[str]) -> bool:
    """Whether an expression calls the function."""
    return isinstance(node, ast.Call) and name_of(node.func) in names


def name_of(function: ast.expr) -> str:
    """The source of an expression for a function.

    >>> name_of(ast.parse("Solution().f").body[0].value)
    'Solution().f'
    """
    return function.id if isinstance(function, ast.Name) else ast.unparse(function)


def encoded(node: ast.expr) -> Any:
    """An argument; calls by name are left to the code.

    Raises:
      ValueError: it is neither.
    """
    try:
        return tagged(constant(node))
    except ValueError:
        match node:
            case ast.List(elements):
                return [encoded(one) for one in elements]
            case ast.Tuple(elements):
                return {"$tuple": [encoded(one) for one in elements]}
            case ast.Dict(keys, values) if None not in keys:
                return {"$dict": [[encoded(k), encoded(v)] for k, v in zip(keys, values, strict=True) if k is not None]}
            case ast.Call(ast.Name(name), arguments, []):
                return {"$call": [name, *map(encoded, arguments)]}
        raise


def _test(claim: ast.expr, names: Collection[str]) -> Any:
    match claim:
        case ast.Call() if is_call(claim, names):
            return _given(claim) | {"value": True, "as": "truth"}
        case ast.UnaryOp(ast.Not(), operand) if is_call(operand, names):
            return _given(operand) | {"value": False, "as": "truth"}
        case ast.Compare(left, [ast.Eq()], [right]):
            call, value = (left, right) if is_call(left, names) else (right, left)
            if is_call(call, names):
                given = _given(call)
                return [given["args"], given["kwargs"], tagged(constant(value))]
        case ast.Compare(left, [ast.Is()], [ast.Constant(value)]) if is_call(left, names):
            return _given(left) | {"value": value, "as": "strict"}
        case ast.Compare(ast.Call(function, [ast.BinOp(left, ast.Sub(), right)], []), [ast.Lt() | ast.LtE()], [within]):
            call, value = (left, right) if is_call(left, names) else (right, left)
            if name_of(function) in ("abs", "math.fabs", "fabs") and is_call(call, names):
                return _given(call) | {"value": tagged(constant(value)), "within": float(constant(within))}
        case ast.Call(function, [left, right], tolerances) if name_of(function) in ("math.isclose", "isclose"):
            call, value = (left, right) if is_call(left, names) else (right, left)
            slack = {"rel_tol": 1e-9, "abs_tol": 0.0} | {str(one.arg): constant(one.value) for one in tolerances}
            if is_call(call, names) and len(slack) == 2:
                given = _given(call) | {"value": tagged(constant(value))}
                return given | {"within": slack["abs_tol"], "relative": slack["rel_tol"]}
        case ast.Call(ast.Name(name), [left, right], []) if name in NODES:
            call, value = (left, right) if is_call(left, names) else (right, left)
            if is_call(call, names):
                given = _given(call)
                return [given["args"], given["kwargs"], _nodes(value, NODES[name])]
    return None


def _given(call: Any) -> dict[str, Any]:
    """The arguments of a call.

    Raises:
      ValueError: as `encoded`.
    """
    if any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("arguments in a dictionary")
    return {
        "args": [encoded(argument) for argument in call.args],
        "kwargs": {str(keyword.arg): encoded(keyword.value) for keyword in call.keywords},
    }


def _nodes(node: ast.expr, maker: str) -> Any:
    """An expected list or tree, from the call that makes it; null if it is empty."""
    match node:
        case ast.Call(ast.Name(name), [values], []) if name == maker:
            given = constant(values)
        case _:
            given = constant(node)
    if not isinstance(given, list | None):
        raise ValueError("no list of values")
    while maker == "tree_node" and given and given[-1] is None:
        given = given[:-1]
    return {f"${maker}": tagged(given)} if given else None
