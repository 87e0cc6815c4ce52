"""Constant expressions of test code, computed without running it, and their values in the JSON of a payload.

docs/data.md lists the tags of values that JSON lacks. `rewards/sandbox/values.py` reads them.
"""

import ast
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

LARGEST = 1_000_000  # characters of text, or elements of a list, that an expression may compute
LONG = 3322  # bits of a whole number with 1,000 digits
LARGEST_POWER = 4096  # bits of a power
NAMES = {"inf": math.inf, "nan": math.nan}
MATH = NAMES | {"pi": math.pi, "e": math.e}  # of `math.`
OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_}
MAKERS: dict[str, Callable[..., Any]] = {
    made.__name__: made for made in (set, frozenset, tuple, list, dict, float, int, str, bool, complex, range)
}


def constant(node: ast.expr) -> Any:
    """The value of literals, of arithmetic on them, and of calls such as `float("inf")` and `set([1, 2])`.

    Raises:
      ValueError: it is another expression, or its value would be very large.
    """
    match node:
        case ast.Constant(value):
            return value
        case ast.List(elements):
            return [constant(one) for one in elements]
        case ast.Tuple(elements):
            return tuple(constant(one) for one in elements)
        case ast.Set(elements):
            return _applied(set, [[constant(one) for one in elements]])
        case ast.Dict(keys, values) if None not in keys:
            pairs = [(constant(key), constant(one)) for key, one in zip(keys, values, strict=True) if key is not None]
            return _applied(dict, [pairs])
        case ast.UnaryOp(op, operand) if type(op) in UNARY:
            return _applied(UNARY[type(op)], [constant(operand)])
        case ast.BinOp(left, op, right) if type(op) in OPERATIONS:
            return _computed(type(op), constant(left), constant(right))
        case ast.Name(name) if name in NAMES:
            return NAMES[name]
        case ast.Attribute(ast.Name("math"), name) if name in MATH:
            return MATH[name]
        case ast.Call(ast.Name(name), arguments, []) if name in MAKERS:
            given = [constant(one) for one in arguments]
            if name == "range" or not any(isinstance(one, range) for one in given):
                return _applied(MAKERS[name], given)
    raise ValueError("not a constant")


def _computed(operation: type, left: Any, right: Any) -> Any:
    """The result of an operation that cannot take long."""
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, str | bytes | list | tuple) and isinstance(times, int):
            large = len(sequence) * times > LARGEST
            if operation is not ast.Mult or large:
                raise ValueError("not a short operation")
    if operation is ast.Pow and not (_bits(left) * abs(right) <= LARGEST_POWER):
        raise ValueError("not a short operation")
    if isinstance(left, str) and operation is ast.Mod:  # text formats
        raise ValueError("not a constant")
    return _applied(OPERATIONS[operation], [left, right])


def _bits(number: Any) -> int:
    return number.bit_length() if isinstance(number, int) else 1


def _applied(function: Callable[..., Any], given: Sequence[Any]) -> Any:
    try:
        return function(*given)
    except (TypeError, ArithmeticError) as error:  # an unhashable element, or a division by zero
        raise ValueError(str(error)) from None


def _sorted(value: dict[str, Any]) -> bool:
    """Whether a dictionary keeps its order in a payload, whose keys are sorted."""
    return list(value) == sorted(value)


def tagged(value: Any) -> Any:
    """The value of a constant as JSON, with tags for what JSON lacks.

    Raises:
      ValueError: a value of another kind.

    >>> tagged((1, {2: math.inf}))
    {'$tuple': [1, {'$dict': [[2, {'$float': 'inf'}]]}]}
    """
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if value.bit_length() <= LONG else {"$int": f"{value:x}"}
        case float():
            return value if math.isfinite(value) else {"$float": repr(value)}
        case list():
            return [tagged(one) for one in value]
        case tuple() | set() | frozenset():
            return {f"${type(value).__name__}": [tagged(one) for one in value]}
        case dict() if all(isinstance(key, str) and not key.startswith("$") for key in value) and _sorted(value):
            return {key: tagged(one) for key, one in value.items()}
        case dict():
            return {"$dict": [[tagged(key), tagged(one)] for key, one in value.items()]}
        case range():
            return {"$range": [value.start, value.stop, value.step]}
        case complex():
            return {"$complex": [tagged(value.real), tagged(value.imag)]}
        case bytes():
            return {"$bytes": value.hex()}
    raise ValueError("not a value of a payload")
