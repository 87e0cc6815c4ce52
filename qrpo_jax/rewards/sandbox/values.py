"""Python values as JSON, for what goes into the sandbox and what comes out, and the equality of the two.

JSON's own values stand for themselves. Every other one is an object with one key, its tag:

    {"$tuple": [...]}, {"$set": [...]}, {"$frozenset": [...]}, {"$deque": [...]}, {"$range": [start, stop, step]},
    {"$dict": [[key, value], ...]}, {"$float": "inf"}, {"$int": "hex"}, {"$complex": [re, im]}, {"$bytes": "hex"},
    {"$number": "0.1", "of": "Decimal"}, {"$list_node": [...]}, {"$tree_node": [...]}

`$dict` is for keys that are no text, `$float` for what is not finite, `$int` for more than 1,000 digits: JSON lacks
the former, and Python reads the latter slowly or not at all. The nodes are LeetCode's linked list, as its values, and
binary tree, as its values by level with null for a child that is not there. An argument may also be
`{"$call": [name, argument, ...]}`, a call in the code's own namespace, such as `Pair(1, 2)` of some MBPP problems.

This module runs inside the sandbox, too, and imports the standard library alone.
"""

import decimal
import fractions
import math
import re
from collections import deque
from collections.abc import Mapping
from typing import Any

LARGEST = 100_000  # nodes of a linked list or of a tree: a list may be a ring
NUMBERS: dict[str, Any] = {"Decimal": decimal.Decimal, "Fraction": fractions.Fraction}
# What a tag stands for, where its values are a list.
ROOMS: dict[str, Any] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset, "$deque": deque}
VIEWS: dict[Any, str] = {type({}.keys()): "$set", type({}.items()): "$set", type({}.values()): "$deque"}
LONG = 3322  # bits of a whole number with 1,000 digits
# Python would also read 1e999999999 as a fraction, which fills the memory.
RATIONAL = re.compile(r"-?[0-9]+(/[0-9]+)?")


class Nodes(tuple[Any, ...]):
    """A linked list or a tree, outside the sandbox: its tag, then its values."""


def encode(value: Any) -> Any:
    """The value as JSON has it, with tags.

    Raises:
      TypeError: a value of another kind; its class is named.
      RecursionError: it is nested too deeply, or contains itself.
    """
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if value.bit_length() <= LONG else {"$int": f"{value:x}"}
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind is list:
        return [encode(one) for one in value]
    if isinstance(value, dict):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: encode(one) for key, one in value.items()}
        return {"$dict": [[encode(key), encode(one)] for key, one in value.items()]}
    for tag, room in ROOMS.items():
        if isinstance(value, room):
            return {tag: [encode(one) for one in value]}
    if isinstance(value, list):
        return [encode(one) for one in value]
    if kind in VIEWS:  # Python finds keys and items equal to sets, and values equal to nothing
        return {VIEWS[kind]: [encode(one) for one in value]}
    if isinstance(value, range):
        return {"$range": [encode(one) for one in (value.start, value.stop, value.step)]}
    if isinstance(value, complex):
        return {"$complex": [encode(value.real), encode(value.imag)]}
    if isinstance(value, bytes | bytearray):
        return {"$bytes": bytes(value).hex()}
    for plain in (bool, int, float, str):  # a class of its own that is one of these, as an enumeration can be
        if isinstance(value, plain):
            return encode(plain(value))
    for name, number in NUMBERS.items():
        if isinstance(value, number):
            return {"$number": str(value), "of": name}
    names = set(getattr(value, "__dict__", ()))
    if {"val", "next"} <= names:
        return {"$list_node": _linked(value)}
    if {"val", "left", "right"} <= names:
        return {"$tree_node": _levels(value)}
    if hasattr(kind, "item") and hasattr(kind, "dtype"):  # numbers and arrays of numpy
        return encode(value.tolist())
    raise TypeError(f"a value of class {kind.__name__} cannot leave the sandbox")


def decode(value: Any, namespace: Mapping[str, Any] | None = None) -> Any:
    """The value of `encode`.

    Args:
      namespace: where the names of `$call` are, and `list_node` and `tree_node`, which make nodes from values; None:
        there are none, and nodes become `Nodes`.

    Raises:
      ValueError: no such tag, or not what the tag needs.
    """
    if isinstance(value, list):
        return [decode(one, namespace) for one in value]
    if not isinstance(value, dict):
        return value
    tag = next((key for key in value if key.startswith("$")), "")
    if not tag:
        return {key: decode(one, namespace) for key, one in value.items()}
    given = value[tag]
    try:
        if tag in ROOMS:
            return ROOMS[tag](decode(one, namespace) for one in given)
        if tag == "$dict":
            return {decode(key, namespace): decode(one, namespace) for key, one in given}
        if tag == "$float" and given in ("inf", "-inf", "nan"):
            return float(given)
        if tag == "$int":
            return int(given, 16)
        if tag == "$complex":
            return complex(*map(decode, given))
        if tag == "$range":
            return range(*map(decode, given))
        if tag == "$bytes":
            return bytes.fromhex(given)
        if tag == "$number" and (value["of"] != "Fraction" or RATIONAL.fullmatch(given)):
            return NUMBERS[value["of"]](given)
        if tag == "$call" and namespace is not None:
            return namespace[given[0]](*(decode(one, namespace) for one in given[1:]))
        if tag in ("$list_node", "$tree_node"):
            nodes = [decode(one, namespace) for one in given]
            return Nodes([tag, *nodes]) if namespace is None else namespace[tag[1:]](nodes)
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"{tag} has a wrong value: {error}") from error
    raise ValueError(f"{tag} is no tag of a value")


def equal(output: Any, expected: Any, within: float = 0.0, relative: float = 0.0) -> bool:
    """Whether Python finds what came out equal to what was expected: 4 == 4.0 and True == 1, but a tuple is no list.

    Args:
      output: untrusted, as `encode` leaves it. Nothing is decoded that is larger than what was expected.
      expected: a decoded value.
      within, relative: numbers may differ by `within`, and by `relative` times the size of the expected one.

    >>> equal({"$tuple": [1, 2.0]}, (1, 2)), equal([1, 2], (1, 2)), equal({"$set": [2, 1]}, {1, 2})
    (True, False, True)
    """
    try:
        return _equal(output, expected, (within, relative))
    except (ValueError, TypeError, ArithmeticError, RecursionError):  # of an output that no honest process sends
        return False


def _equal(output: Any, expected: Any, slack: tuple[float, float]) -> bool:
    if isinstance(expected, bool | int | float | complex) or type(expected) in NUMBERS.values():
        number = _number(output)
        if number is None or _is_far(number, expected):
            return False
        if number == expected or not any(slack):
            return bool(number == expected)
        if isinstance(number, decimal.Decimal) or isinstance(expected, decimal.Decimal):
            number, expected = float(number), float(expected)  # Python subtracts no float from a decimal
        difference = abs(number - expected)
        # A share of infinity is infinity, which everything would be within.
        return math.isfinite(difference) and bool(difference <= slack[0] + slack[1] * abs(expected))
    if expected is None or isinstance(expected, str):
        return type(output) is type(expected) and bool(output == expected)
    if isinstance(expected, bytes):
        return _of("$bytes", output) == expected.hex()
    if isinstance(expected, list):
        return isinstance(output, list) and _all_equal(output, expected, slack)
    if isinstance(expected, Nodes):
        return _all_equal(_of(expected[0], output), expected[1:], slack)
    if isinstance(expected, tuple):
        return _all_equal(_of("$tuple", output), expected, slack)
    if isinstance(expected, set | frozenset):
        given = _of("$set", output)
        if given is None:
            given = _of("$frozenset", output)
        return _decoded(given, expected) == expected
    if isinstance(expected, deque):
        return _all_equal(_of("$deque", output), list(expected), slack)
    if isinstance(expected, range):
        return _of("$range", output) is not None and bool(decode(output) == expected)
    return isinstance(expected, dict) and isinstance(output, dict) and _equal_dicts(output, expected, slack)


def _equal_dicts(output: dict[str, Any], expected: dict[Any, Any], slack: tuple[float, float]) -> bool:
    values: dict[Any, Any] = output
    if any(key.startswith("$") for key in output):
        pairs = _of("$dict", output)
        if not isinstance(pairs, list) or _decoded([key for key, _ in pairs], expected) is None:
            return False
        values = {decode(key): value for key, value in pairs}
    return values.keys() == expected.keys() and all(_equal(values[key], one, slack) for key, one in expected.items())


def _all_equal(outputs: Any, expected: Any, slack: tuple[float, float]) -> bool:
    return (
        isinstance(outputs, list)
        and len(outputs) == len(expected)
        and all(_equal(a, b, slack) for a, b in zip(outputs, expected, strict=True))
    )


def _decoded(given: Any, expected: Any) -> set[Any] | None:
    """What came out, as a set; None if anything in it is not expected.

    Numbers can be chosen to have one hash, and a set of thousands of them takes seconds. So nothing larger than what is
    expected is decoded, and only what is among the expected enters a set.
    """
    if type(given) is not list or len(given) != len(expected) or _size(given) > 2 * _size(encode(list(expected))):
        return None
    values = [decode(one) for one in given]
    return set(values) if all(one in expected for one in values) else None


def _size(value: Any) -> int:
    """The number of values in a JSON value."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_size, inside))


def _of(tag: str, output: Any) -> Any:
    """What a tag holds; None if the output has another one."""
    return output[tag] if isinstance(output, dict) and len(output) == 1 and tag in output else None


def _is_far(number: Any, expected: Any) -> bool:
    """Whether a whole number is 1,000 digits longer than a decimal number, so that no slack reaches it. To compare the
    two takes a time that grows with the square of the digits.
    """
    if type(number) is not int or not isinstance(expected, decimal.Decimal) or not expected.is_finite():
        return False
    return number.bit_length() > LONG + 4 * max(expected.adjusted(), 0)


def _number(output: Any) -> Any:
    """The number that an output is; None if it is none."""
    if isinstance(output, bool | int | float):
        return output
    if isinstance(output, dict) and output.keys() & {"$int", "$float", "$complex", "$number"}:
        return decode(output)
    return None


def _linked(node: Any) -> list[Any]:
    values = []
    while node is not None:
        values.append(encode(node.val))
        node = node.next
        if len(values) > LARGEST:
            raise TypeError("a linked list without an end cannot leave the sandbox")
    return values


def _levels(root: Any) -> list[Any]:
    """A tree as LeetCode writes it: no null after the last value."""
    values: list[Any] = []
    waiting = deque([root])
    while waiting:
        node = waiting.popleft()
        values.append(None if node is None else encode(node.val))
        if node is not None:
            waiting += (node.left, node.right)
        if len(values) > LARGEST:
            raise TypeError("a tree without an end cannot leave the sandbox")
    while values and values[-1] is None:
        values.pop()
    return values
