"""Functions whose values have hostile classes."""

from typing import Any

from tests.rewards.hostile.attack import REASONS, Attack, Value, reasons

NODE = "class N:\n    def __init__(s, val, next=None): s.val, s.next = val, next\n"
TREE = "class T:\n    def __init__(s, val): s.val, s.left, s.right = val, None, None\n"

# Definitions, an expression for the value, and what is right to come out.
VALUES: list[tuple[str, str, str, Any]] = [
    ("object", "", "object()", "error"),
    ("function", "", "lambda: 0", "error"),
    ("class", "", "int", "error"),
    ("module", "import os", "os", "error"),
    ("generator", "", "(x for x in [1])", "error"),
    ("iterator", "", "iter([1])", "error"),
    ("file", "", "open(0)", "error"),
    ("exception", "", "ValueError(1)", "error"),
    ("frame", "import sys", "sys._getframe()", "error"),
    ("code", "", "(lambda: 0).__code__", "error"),
    ("memory view", "", "memoryview(b'x')", "error"),
    ("ellipsis", "", "...", "error"),
    ("not implemented", "", "NotImplemented", "error"),
    ("ring of nodes", NODE + "n = N(1)\nn.next = n\n", "n", "error|time|memory"),
    ("long list of nodes", NODE + "n = None\nfor i in range(2000): n = N(i, n)\n", "n", "output"),
    (
        "node without an end",
        "class N:\n    val = 1\n    __dict__ = {'val': 1, 'next': 1}\n    next = property(lambda s: s)\n",
        "N()",
        "error|time|memory",
    ),
    (
        "node that raises",
        "class N:\n    __dict__ = {'val': 1, 'next': 1}\n    val = property(lambda s: 1 / 0)\n",
        "N()",
        "error",
    ),
    ("node in a node", NODE + "n = N(1)\nn.val = n\n", "n", "error"),
    ("tree that is a ring", TREE + "t = T(1)\nt.left = t.right = t\n", "t", "error|time|memory"),
    ("tree in itself", TREE + "t = T(1)\nt.val = t\n", "t", "error"),
    ("attributes that raise", "class V:\n    __dict__ = property(lambda s: 1 / 0)\n", "V()", "error"),
    (
        "attributes without an end",
        "class V:\n    __dict__ = property(lambda s: iter(int, 1))\n",
        "V()",
        "error|time|memory",
    ),
    (
        "attributes of hostile texts",
        "class S(str):\n    __hash__ = lambda s: 1 / 0\nclass V:\n    __dict__ = property(lambda s: [S()])\n",
        "V()",
        "error",
    ),
    ("class that lies: dict", "class V:\n    __class__ = property(lambda s: dict)\n", "V()", "error"),
    (
        "class that lies: list",
        "class V:\n    __class__ = property(lambda s: list)\n    __iter__ = lambda s: iter([1])\n",
        "V()",
        Value([1]),
    ),
    ("class that lies: int", "class V:\n    __class__ = property(lambda s: int)\n", "V()", "error"),
    (
        "class that lies: complex",
        "class V:\n    __class__ = property(lambda s: complex)\n    real = imag = object()\n",
        "V()",
        "error",
    ),
    ("class that raises", "class V:\n    __class__ = property(lambda s: 1 / 0)\n", "V()", "error"),
    (
        "metaclass that raises",
        "class M(type):\n    __name__ = property(lambda c: 1 / 0)\nclass V(metaclass=M): pass\n",
        "V()",
        "error",
    ),
    (
        "metaclass of attributes",
        "class M(type):\n    __getattribute__ = lambda c, n: 1 / 0\nclass V(metaclass=M): pass\n",
        "V()",
        "error",
    ),
    ("metaclass of an array", "class V:\n    item = dtype = 1\n    tolist = lambda s: s\n", "V()", "error"),
    ("array that is a number", "class V:\n    item = dtype = 1\n    tolist = lambda s: 7\n", "V()", Value(7)),
    ("text with another text", "class S(str):\n    __str__ = lambda s: 'other'\n", "S('x')", Value("other")),
    ("text that is no text", "class S(str):\n    __str__ = lambda s: 1\n", "S('x')", "error"),
    (
        "text as a key",
        "class S(str):\n    startswith = lambda s, p: 1 / 0\n",
        "{S('x'): 1}",
        Value({"$dict": [["x", 1]]}),
    ),
    ("number with another value", "class I(int):\n    __int__ = lambda s: 8\n", "I(7)", Value(8)),
    ("float that raises", "class F(float):\n    __float__ = lambda s: 1 / 0\n", "F(7)", "error"),
    ("list that raises", "class L(list):\n    __iter__ = lambda s: 1 / 0\n", "L([1])", "error"),
    ("list of something else", "class L(list):\n    __iter__ = lambda s: iter([5])\n", "L([1])", Value([5])),
    (
        "list without an end",
        "import itertools\nclass L(list):\n    __iter__ = lambda s: itertools.repeat(1)\n",
        "L([1])",
        "memory|time",
    ),
    (
        "tuple without an end",
        "import itertools\nclass L(tuple):\n    __iter__ = lambda s: itertools.repeat(1)\n",
        "L([1])",
        "memory|time",
    ),
    (
        "set without an end",
        "import itertools\nclass L(set):\n    __iter__ = lambda s: itertools.repeat(1)\n",
        "L([1])",
        "memory|time",
    ),
    (
        "dict of something else",
        "class D(dict):\n    items = lambda s: [(1, 2)]\n",
        "D({3: 4})",
        Value({"$dict": [[1, 2]]}),
    ),
    ("dict that raises", "class D(dict):\n    __iter__ = lambda s: 1 / 0\n", "D({3: 4})", "error"),
    ("dict whose items are no pairs", "class D(dict):\n    items = lambda s: [1]\n", "D({3: 4})", "error"),
    (
        "default dict that grows",
        "import collections\nd = collections.defaultdict(list)\nd['x']\n",
        "d",
        Value({"x": []}),
    ),
    ("bytes", "class B(bytes):\n    __bytes__ = lambda s: b'zz'\n", "B(b'a')", Value({"$bytes": "7a7a"})),
    ("enumeration", "import enum\nclass E(enum.IntEnum):\n    A = 1\n", "E.A", Value(1)),
    ("named tuple", "import collections\nP = collections.namedtuple('P', 'x')\n", "P(1)", Value({"$tuple": [1]})),
    ("data class", "import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int = 1\n", "P()", "error"),
    ("keys with tags", "", "{'$tuple': [1]}", Value({"$dict": [["$tuple", [1]]]})),
    ("keys with calls", "", "{'$call': ['exit']}", Value({"$dict": [["$call", ["exit"]]]})),
    ("halves of characters", "", "'\\ud800'", Value("\ud800")),
    ("zero bytes", "", "'\\0'", Value("\0")),
    ("lines", "", "'\\n[1, \"value\", 7]\\n'", Value('\n[1, "value", 7]\n')),
    ("separators", "", "'\\u2028\\x1c\\x85'", Value("\u2028\x1c\x85")),
    ("decimal", "import decimal\n", "decimal.Decimal('1e999999')", Value({"$number": "1E+999999", "of": "Decimal"})),
    (
        "decimal that is none",
        "import decimal\n",
        "decimal.Decimal('sNaN')",
        Value({"$number": "sNaN", "of": "Decimal"}),
    ),
    ("coroutine", "async def c(): pass\n", "c()", "error"),
    ("weak", "import weakref\nclass V: pass\nv = V()\n", "weakref.proxy(v)", "error"),
    (
        "mock",
        "class V:\n    __getattr__ = lambda s, n: V()\n    __iter__ = lambda s: iter([V()])\n",
        "V()",
        "error|memory|time",
    ),
    (
        "abstract",
        "import collections.abc as c\nclass V(c.Mapping):\n    __getitem__ = __iter__ = __len__ = lambda *a: 1 / 0\n",
        "V()",
        "error",
    ),
    ("registered", "import numbers\nclass V: pass\nnumbers.Number.register(V)\n", "V()", "error"),
    ("slots", "class V:\n    __slots__ = ('val', 'next')\n", "V()", "error"),
]


def attack(name: str, head: str, value: str, right: Any) -> Attack:
    code = f"{head}\ndef f(a):\n    if a == 2:\n        return {value}\n    return a\n"
    if isinstance(right, str):
        assert set(right.split("|")) <= REASONS
        right = reasons(right)
    return Attack(f"value: {name}", code, (Value(1), right, Value(3)))


ATTACKS = [attack(*one) for one in VALUES]
