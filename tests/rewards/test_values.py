"""Values: they come out of the sandbox as they were, are equal as in Python, and cost little if they are hostile."""

import itertools
import json
import math
import time
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction

import pytest

from qrpo_jax.data.layouts.constants import tagged
from qrpo_jax.rewards.sandbox.values import LARGEST, Nodes, decode, encode, equal

Point = namedtuple("Point", "x y")
VALUES = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        10**18,
        10**18 + 1,
        10**5000,
        0.0,
        1.0,
        0.1,
        1e300,
        math.inf,
        -math.inf,
        1j,
        1 + 0j,
    ),
    *("", "a", "1", "$set", "\ud800", "\n", b"", b"a", Decimal("0.1"), Decimal(1), Fraction(1, 10), Fraction(1)),
    *([], [1], [1, 2], [2, 1], [True], [1.0], [[1]], [None], (), (1,), (1, 2), ((1,),), ([1],), [(1,)], ("a", 1)),
    *(set(), {1}, {1, 2}, {(1, 2)}, {"a"}, {1.0}, frozenset(), frozenset({1}), range(3), range(0), range(0, 3, 1)),
    *(
        {},
        {"a": 1},
        {"a": 1.0},
        {1: "a"},
        {"1": "a"},
        {(1, 2): [3]},
        {"$set": [1]},
        {None: 1},
        {True: 1},
        {"b": {"a": ()}},
    ),
    *(deque(), deque([1]), deque([1, 2])),
]


def sent(value):
    """The value as it is when it has left the sandbox."""
    return json.loads(json.dumps(encode(value), allow_nan=False))


def test_a_value_comes_out_as_it_was():
    back = [decode(sent(value)) for value in VALUES]
    assert [a for a, b in zip(VALUES, back, strict=True) if type(a) is not type(b) or a != b] == []


def test_two_values_are_equal_as_python_has_it():
    wrong = [(a, b) for a, b in itertools.product(VALUES, VALUES) if equal(sent(a), b) != (a == b)]
    assert not wrong, (len(wrong), wrong[:5])
    assert not equal(sent(math.nan), math.nan) and math.isnan(decode(sent(math.nan)))


def test_classes_that_are_plain_values_count_as_these():
    pairs = [
        (Point(1, 2), (1, 2)),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(b=1, a=2), {"a": 2, "b": 1}),
        (defaultdict(int, {1: 2}), {1: 2}),
        ({"a": 1}.keys(), {"a"}),
        ({"a": 1}.items(), {("a", 1)}),
        (bytearray(b"a"), b"a"),
    ]
    assert [pair for pair in pairs if pair[0] != pair[1] or not equal(sent(pair[0]), pair[1])] == []
    unequal = [({"a": 1}.values(), [1]), (deque([1]), [1]), (range(2), [0, 1])]
    assert [pair for pair in unequal if pair[0] == pair[1] or equal(sent(pair[0]), pair[1])] == []


def test_numbers_may_be_off_by_so_much():
    assert equal(0.5 + 1e-7, 0.5, within=1e-6) and not equal(0.5 + 1e-5, 0.5, within=1e-6)
    assert equal([1000.001], [1000], relative=1e-5) and not equal([1000.1], [1000], relative=1e-5)
    assert not equal("0.5", 0.5, within=1.0) and not equal(None, 0, within=1.0)
    assert not equal(sent(10**5000), 1.0, within=1.0) and equal(sent(math.inf), math.inf, within=1.0)


class ListNode:
    def __init__(self, val, next=None):
        self.val, self.next = val, next


class TreeNode:
    def __init__(self, val, left=None, right=None):
        self.val, self.left, self.right = val, left, right


def list_node(values):
    node = None
    for value in reversed(values):
        node = ListNode(value, node)
    return node


def test_linked_lists_and_trees_are_their_values():
    assert sent(ListNode(1, ListNode(2))) == {"$list_node": [1, 2]}
    tree = TreeNode(1, None, TreeNode(2, TreeNode(3)))
    assert sent(tree) == {"$tree_node": [1, None, 2, 3]}
    assert decode(sent(tree)) == Nodes(["$tree_node", 1, None, 2, 3]) and equal(sent(tree), decode(sent(tree)))
    assert not equal(sent(tree), decode({"$list_node": [1, None, 2, 3]})) and not equal(
        [1, 2], decode(sent(list_node([1, 2])))
    )
    made = decode([{"$list_node": [1, 2]}, {"$call": ["ListNode", 3]}], {"list_node": list_node, "ListNode": ListNode})
    assert [made[0].next.val, made[1].val] == [2, 3]
    ring = ListNode(1)
    ring.next = ring
    with pytest.raises(TypeError, match="without an end"):
        encode(ring)


def test_what_has_no_value_is_named():
    for value, name in ((object(), "object"), (iter([]), "list_iterator"), (int, "type"), (print, "builtin")):
        with pytest.raises(TypeError, match=f"a value of class {name}"):
            encode(value)


@pytest.mark.parametrize(
    "text", ['{"$unknown": 1}', '{"$call": ["f"]}', '{"$float": "1"}', '{"$set": [[1]]}', '{"$dict": [1]}']
)
def test_a_tag_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"^\$"):
        decode(json.loads(text))


def deep(inner, depth, tag=None):
    for _ in range(depth):
        inner = [inner] if tag is None else {tag: [inner]}
    return inner


HOSTILE = {
    "a fraction that fills the memory": {"$number": "1e999999999", "of": "Fraction"},
    "a decimal with an exponent": {"$number": "1e999999999", "of": "Decimal"},
    "a decimal with many digits": {"$number": "9" * 60000, "of": "Decimal"},
    "no number": {"$number": [], "of": "Decimal"},
    "no class": {"$number": "1", "of": "__import__"},
    "a whole number with many digits": {"$int": "f" * 60000},
    "a range": {"$range": [0, 10**18, 1]},
    "no range": {"$range": ["a"]},
    "deep lists": deep(1, 900),
    "deep tuples": deep(1, 450, "$tuple"),
    "a set of deep tuples": {"$set": [deep(1, 450, "$tuple")]},
    "a dictionary with deep keys": {"$dict": [[deep(1, 450, "$tuple"), 1]]},
    "a set of lists": {"$set": [[1]]},
    "a dictionary of lists": {"$dict": [[[1], 1]]},
    "a dictionary without pairs": {"$dict": [1]},
    "two tags": {"$tuple": [1], "$set": [1]},
    "a call": {"$call": ["print", 1]},
    "bytes": {"$bytes": "zz"},
    "a complex number": {"$complex": [1, 2, 3]},
    "many equal elements": {"$set": [1] * 60000},
    "long": [1] * 60000,
    "nodes": {"$list_node": 1},
}


@pytest.mark.parametrize("output", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_output_is_equal_to_nothing_and_costs_little(output):
    start = time.process_time()
    claimed = [value for value in (*VALUES, Nodes(["$list_node", 1])) if equal(output, value)]
    claimed += [value for value in VALUES if equal(output, value, within=1e-6, relative=1e-6)]
    assert not claimed and time.process_time() - start < 1.0, (claimed, time.process_time() - start)


@pytest.mark.parametrize("digits", [1, 997, 1009, 1511])
def test_long_whole_numbers_equal_decimals_of_their_value_alone(digits):
    number = 10 ** (digits - 1)
    for expected in (Decimal(number), -Decimal(number)):
        output = encode(int(expected))
        assert equal(output, expected) and not equal(encode(int(expected) + 1), expected)
        assert not equal(encode(7 * int(expected)), expected)
        assert not equal(encode(number * 10**1100), expected, within=1e300, relative=1e300)
    assert not equal(encode(number), Decimal("inf")) and not equal(encode(number), Decimal("nan"))


@pytest.mark.parametrize("kind", [float, Decimal, Fraction])
@pytest.mark.parametrize("other", [float, Decimal, Fraction, int])
def test_numbers_of_every_class_may_differ_by_the_slack(kind, other):
    output, expected = encode(kind(1.125)), other(1)
    assert equal(output, expected, within=0.1251) and equal(output, expected, relative=0.1251)
    assert not equal(output, expected, within=0.1249) and not equal(output, expected, relative=0.1249)
    assert not equal(output, expected)


@pytest.mark.parametrize("infinite", [math.inf, -math.inf, Decimal("inf"), complex(0, math.inf)])
def test_nothing_is_within_a_share_of_infinity_but_itself(infinite):
    assert equal(encode(infinite), infinite, relative=0.5)
    for output in (-infinite, 7, 0.5, Decimal(3), Fraction(1, 3)):
        assert not equal(encode(output), infinite, relative=0.5)
        assert not equal(encode(infinite), output, relative=0.5)


def test_the_layouts_write_the_same_tags():
    plain = [value for value in VALUES if not isinstance(value, Decimal | Fraction | deque)]
    assert [value for value in plain if decode(tagged(value)) != value or tagged(value) != encode(value)] == []
    unsorted = {"b": 1, "a": 2}  # keys of a payload are sorted, and the order of an argument matters
    assert list(decode(json.loads(json.dumps(tagged(unsorted), sort_keys=True)))) == ["b", "a"]


def test_a_long_list_of_nodes_is_refused_before_it_fills_the_memory():
    with pytest.raises(TypeError, match="linked list without an end"):
        encode(list_node(range(LARGEST + 1)))
