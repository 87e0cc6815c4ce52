"""Python values as JSON, for what goes into the sandbox and what comes out, and the equality of the two.

JSON's own values stand for themselves. Every other one is an object with one key, its tag:

    {"$tuple": [...]}, {"$set": [...]}, {"$frozenset": [...]}, {"$dict": [[key, value], ...]}, {"$complex": [re, im]},
    {"$bytes": "hex"}, {"$number": "0.1", "of": "Decimal"}, {"$list_node": [...]}, {"$tree_node": [...]}

`$dict` is for keys that are no text. The nodes are LeetCode's linked list, as its values, and binary tree, as its
values by level with null for a child that is not there. An argument may also be `{"$call": [name, argument, ...]}`, a
call in the code's own namespace, such as `list_node([1, 2])` of LeetCodeDataset.

This module runs inside the sandbox, too, and imports the standard library alone.
"""

import decimal
import fractions
from collections import deque
from collections.abc import Mapping
from typing import Any

LARGEST = 100_000  # nodes of a linked list or of a tree: a list may be a ring
NUMBERS: dict[str, Any] = {"Decimal": decimal.Decimal, "Fraction": fractions.Fraction}
# What a tag stands for, where its values are a list.
ROOMS: dict[str, Any] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}


class Nodes(tuple[Any, ...]):
    """A linked list or a tree, outside the sandbox: its tag, then its values."""


def encode(value: Any) -> Any:
    """The value as JSON has it, with tags.

    Raises:
      TypeError: a value of another kind; its class is named.
      RecursionError: it is nested too deeply, or contains itself.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [encode(one) for one in value]
    if isinstance(value, dict):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: encode(one) for key, one in value.items()}
        return {"$dict": [[encode(key), encode(one)] for key, one in value.items()]}
    for tag, room in ROOMS.items():
        if isinstance(value, room):
            return {tag: [encode(one) for one in value]}
    if isinstance(value, list | deque | range) or kind.__name__ in ("dict_keys", "dict_values", "dict_items"):
        return [encode(one) for one in value]
    if isinstance(value, complex):
        return {"$complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"$bytes": bytes(value).hex()}
    for plain in (bool, int, float, str):  # a class of its own that is one of these, as an enumeration can be
        if isinstance(value, plain):
            return plain(value)
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
      namespace: where the names of `$call` are; None: there are none, and nodes become `Nodes`.

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
        if tag == "$complex":
            return complex(*given)
        if tag == "$bytes":
            return bytes.fromhex(given)
        if tag == "$number":
            return NUMBERS[value["of"]](given)
        if tag == "$call" and namespace is not None:
            return namespace[given[0]](*(decode(one, namespace) for one in given[1:]))
        if tag in ("$list_node", "$tree_node") and namespace is None:
            return Nodes([tag, *map(decode, given)])
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"{tag} has a wrong value: {error}") from error
    raise ValueError(f"{tag} is no tag of a value")


def equal(output: Any, expected: Any, within: float = 0.0) -> bool:
    """Whether Python finds what came out equal to what was expected: 4 == 4.0 and True == 1, but a tuple is no list.

    Args:
      output: untrusted, as `encode` leaves it. Nothing is decoded that is larger than what was expected.
      expected: a decoded value.
      within: numbers may differ by this much.

    >>> equal({"$tuple": [1, 2.0]}, (1, 2)), equal([1, 2], (1, 2)), equal({"$set": [2, 1]}, {1, 2})
    (True, False, True)
    """
    if isinstance(expected, bool | int | float | complex) or type(expected) in NUMBERS.values():
        number = output if isinstance(output, bool | int | float) else _small(output)
        if not isinstance(number, bool | int | float | complex | decimal.Decimal | fractions.Fraction):
            return False
        try:
            return bool(number == expected or (within and abs(number - expected) <= within))
        except (TypeError, ArithmeticError):
            return False
    if isinstance(expected, list):
        return isinstance(output, list) and _all_equal(output, expected, within)
    if isinstance(expected, dict) and isinstance(output, dict):
        if not any(key.startswith("$") for key in output):
            return output.keys() == expected.keys() and all(
                equal(output[key], one, within) for key, one in expected.items()
            )
        pairs = _of("$dict", output)
        if not isinstance(pairs, list) or len(pairs) != len(expected):
            return False
        try:
            values = {decode(key): value for key, value in pairs}
        except (ValueError, TypeError):
            return False
        return values.keys() == expected.keys() and all(equal(values[k], one, within) for k, one in expected.items())
    for tag, room in (("$tuple", tuple), ("$set", set | frozenset)):
        if isinstance(expected, room):
            given = _of(tag, output)
            if given is None and tag == "$set":
                given = _of("$frozenset", output)
            if isinstance(expected, Nodes):
                given = [expected[0], *(_of(expected[0], output) or [])]
            if not isinstance(given, list) or len(given) != len(expected):
                return False
            if tag == "$tuple":
                return _all_equal(given, expected, within)
            try:
                return {decode(one) for one in given} == expected
            except (ValueError, TypeError):
                return False
    if expected is None or isinstance(expected, str):
        return type(output) is type(expected) and output == expected
    return isinstance(expected, bytes) and _of("$bytes", output) == expected.hex()


def _all_equal(outputs: Any, expected: Any, within: float) -> bool:
    return len(outputs) == len(expected) and all(equal(a, b, within) for a, b in zip(outputs, expected, strict=True))


def _of(tag: str, output: Any) -> Any:
    """What a tag holds; None if the output has another one."""
    return output[tag] if isinstance(output, dict) and len(output) == 1 and tag in output else None


def _small(output: Any) -> Any:
    """The number that an output with a tag is; None if it is none."""
    if not isinstance(output, dict) or not ("$complex" in output or "$number" in output) or len(str(output)) > 1000:
        return None
    try:
        return decode(output)
    except ValueError:
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
