"""Programs that forge their report or the page that says how far they are, or turn the worker's own code against it."""

from typing import Any

from tests.rewards.hostile.attack import KERNEL, Attack, Value, harmless, reasons, second

ERROR = reasons("error")
WRITE = "import os\ndef f(a):\n    if a == 1: os.write(4, {!r})\n    return a\n"


def forged(name: str, text: bytes, *right: Any) -> Attack:
    """Writes the text before its first line; `right` as of `Attack`, by default what it returns."""
    return Attack(f"forges: {name}", WRITE.format(text), right or (Value(1), Value(2), Value(3)))


def swallowed(name: str, text: bytes) -> Attack:
    """A text without an end of line, which spoils the line behind it."""
    return forged(name, text, ERROR, Value(2), Value(3))


ATTACKS: list[Attack] = [
    forged("a later test", b'[2, "value", 7]\n', Value(1), Value(2), Value(7)),
    forged("its own test twice", b'[0, "value", 7]\n[0, "value", 8]\n', Value(7), Value(2), Value(3)),
    forged("all others", b'[-1, "value", 7]\n'),
    forged("a test beyond the last", b'[3, "value", 7]\n[99, "value", 7]\n'),
    forged("a test before the first", b'[-2, "value", 7]\n'),
    forged("true as a test", b'[true, "value", 7]\n'),
    forged("a number with a point", b'[1.0, "value", 7]\n'),
    forged("a text as a test", b'["1", "value", 7]\n'),
    forged("a list as a test", b'[[1], "value", 7]\n'),
    forged("no test", b'[null, "value", 7]\n'),
    forged("a long number as a test", b"[" + b"9" * 3000 + b', "value", 7]\n'),
    forged("a number too long to read", b'[1, "value", ' + b"9" * 4400 + b"]\n"),
    forged("a test that is no number", b'[NaN, "value", 7]\n'),
    forged("no value", b'[1, "value"]\n'),
    forged("too many values", b'[1, "value", 7, 8]\n'),
    forged("an object", b'{"index": 1, "value": 7}\n'),
    forged("an object of three", b'{"a": 1, "b": 2, "c": 3}\n'),
    forged("a text of three", b'"abc"\n'),
    forged("a number", b"7\n"),
    forged("half a character", b"\xff\xfe[1]\n"),
    forged("zeros", bytes(99) + b"\n"),
    forged("another encoding", '[1, "value", 7]\n'.encode("utf-16")[:-2] + b"\n", Value(1), Value(7), Value(3)),
    forged("deep lists", b"[" * 4000 + b"\n"),
    forged("deep objects", b'{"a":' * 800 + b"\n"),
    forged("deep value", b'[1, "value", ' + b"[" * 2000 + b"]" * 2000 + b"]\n"),
    forged("one line that is too long", b'[1, "value", "' + b"x" * 5000 + b'"]\n'),
    forged("empty lines", b"\n" * 5),
    forged("passed", b'[1, "passed", ""]\n', Value(1), ERROR, Value(3)),
    forged("a reason that is no text", b'[1, [], ""]\n', Value(1), ERROR, Value(3)),
    forged("a reason of its choice", b'[1, "memory", ""]\n', Value(1), reasons("memory"), Value(3)),
    forged("a message that is no text", b'[1, "time", {"a": 1}]\n', Value(1), reasons("time"), Value(3)),
    forged("a long message", b'[1, "error", "' + b"x" * 3000 + b'"]\n', Value(1), ERROR, Value(3)),
    forged("a message for a terminal", b'[1, "error", "\\u001b[2J\\u0007\\ud800"]\n', Value(1), ERROR, Value(3)),
    forged("a value that is not finite", b'[1, "value", Infinity]\n', Value(1), Value(float("inf")), Value(3)),
    swallowed("half a line", b'[0, "value", '),
    swallowed("half a text", b'[0, "value", "'),
    swallowed("spaces", b"x" * 99),
    Attack("forges: floods lines", "import os\ndef f(a):\n    while True: os.write(4, b'\\n' * 4000)\n", (ERROR,) * 3),
    Attack(
        "forges: floods lines to the last byte",
        "import os\ndef f(a):\n    while True: os.write(4, b'\\n')\n",
        (reasons("error|time"),) * 3,
    ),
    Attack(
        "forges: floods its own line",
        "import os\ndef f(a):\n    while True: os.write(4, b'[0,\"value\",7]\\n' * 99)\n",
        (Value(7), ERROR, ERROR),
    ),
    Attack("forges: floods one line", "import os\ndef f(a):\n    while True: os.write(4, b'[' * 4000)\n", (ERROR,) * 3),
    Attack(
        "forges: all others, and ends",
        "import os\ndef f(a):\n    os.write(4, b'[-1, \"value\", 7]\\n')\n    os._exit(0)\n",
        (ERROR,) * 3,
    ),
    Attack(
        "forges: empties its report",
        "import os\ndef f(a):\n    if a == 3: os.ftruncate(4, 0)\n    return a\n",
        (ERROR, ERROR, reasons("error") | {Value(3)}),
    ),
    Attack(
        "forges: a long hole",
        "import os\ndef f(a):\n    if a == 2: os.ftruncate(4, 1 << 40)\n    return a\n",
        (Value(1), reasons("output"), Value(3)),
    ),
    Attack(
        "forges: a short hole",
        "import os\ndef f(a):\n    if a == 2: os.ftruncate(4, 8000); os.lseek(4, 0, 2)\n    return a\n",
        (Value(1), ERROR, Value(3)),
    ),
    Attack(
        "forges: writes over its report",
        "import os\ndef f(a):\n    if a == 2: os.lseek(4, 0, 0)\n    return a\n",
        (ERROR, Value(2), Value(3)),
    ),
    Attack(
        "forges: goes far beyond",
        "import os\ndef f(a):\n    if a == 2: os.lseek(4, 1 << 40, 0)\n    return a\n",
        (Value(1), ERROR, reasons("error") | {Value(3)}),
    ),
    Attack(
        "forges: sparse",
        "import os\ndef f(a):\n    if a == 2: os.lseek(4, 9000, 0)\n    return a\n",
        (Value(1), ERROR, Value(3)),
    ),
    Attack("forges: closes its report", "import os\ndef f(a):\n    os.close(4)\n    return a\n", (ERROR,) * 3),
    Attack("forges: closes everything", "import os\ndef f(a):\n    os.closerange(0, 99)\n    return a\n", (ERROR,) * 3),
    Attack(
        "forges: another file as its report", "import os\ndef f(a):\n    os.dup2(1, 4)\n    return a\n", (ERROR,) * 3
    ),
    Attack(
        "forges: reads its report",
        "import os\ndef f(a):\n    return os.pread(4, 999, 0).decode()\n",
        (
            Value(""),
            Value('[0, "value", ""]\n'),
            Value('[0, "value", ""]\n[1, "value", "[0, \\"value\\", \\"\\"]\\n"]\n'),
        ),
    ),
]

# What finds the worker's own objects from inside.
FIND = """
import sys, mmap, struct, time, os
def found(kind):
    frame, seen = sys._getframe(), []
    while frame:
        for one in [*frame.f_locals.values()]:
            for each in (one, *vars(one).values()) if hasattr(one, "__dict__") else (one,):
                if type(each).__name__ == kind: seen.append(each)
        frame = frame.f_back
    return seen
def page(at, began):
    for one in found("mmap"): struct.pack_into("=qd", one, 0, at, began)
def spin():
    while True: pass
"""


def paged(name: str, body: str, *right: Any) -> Attack:
    return Attack(f"page: {name}", f"{FIND}\ndef f(a):\n    {body}\n    return a\n", right)


TIME = reasons("time")
ATTACKS += [
    paged("done, and spins", "page(3, time.process_time()); spin()", TIME, TIME, TIME),
    paged("beyond, and spins", "page(2 ** 62, time.process_time()); spin()", TIME, TIME, TIME),
    paged("before, and spins", "page(-9, 0.0); spin()", TIME, TIME, TIME),
    paged("in the future", "page(1, 1e9); spin()", TIME, TIME, TIME),
    paged("no number", "page(1, float('nan')); spin()", TIME, TIME, TIME),
    paged("infinite", "page(1, float('inf')); spin()", TIME, TIME, TIME),
    paged("in the past", "page(1, -1e9); spin()", TIME, TIME, TIME),
    paged("again and again", "while True: page(1, time.process_time())", TIME, TIME, TIME),
    paged("every test's share", "for i in range(4): page(i, time.process_time())\n    spin()", TIME, TIME, TIME),
    paged("done, and ends", "page(3, 0.0); os._exit(0)", ERROR, ERROR, ERROR),
    paged("a later test, and ends", "if a == 1: page(2, time.process_time()); os._exit(0)", ERROR, ERROR, ERROR),
    paged("all zeros", "for one in found('mmap'): one[:] = bytes(len(one))", Value(1), Value(2), Value(3)),
    paged("all ones", "for one in found('mmap'): one[:] = b'\\xff' * len(one)", Value(1), Value(2), Value(3)),
    paged("closes it", "for one in found('mmap'): one.close()", Value(1), Value(2), Value(3)),
]

ATTACKS += [
    second(f"turns: {name}", body, "error")
    for name, body in [
        ("the worker's exit", "os._exit = lambda *_: 0\nraise SystemExit"),
        ("the interpreter's exit", "raise SystemExit(0)"),
        ("keyboard", "raise KeyboardInterrupt"),
        ("an end without an error", "os._exit(0)"),
        ("an end with one", "os._exit(7)"),
        ("exception of no class", "raise type('M', (type,), {'__name__': property(0)})('E', (Exception,), {})"),
        ("group", "raise BaseExceptionGroup('x', [SystemExit()])"),
        ("generator's exit", "raise GeneratorExit"),
        ("error that is its own cause", "e = ValueError()\ne.__cause__ = e.__context__ = e\nraise e"),
        ("error with a hostile text", "raise type('E', (Exception,), {'__str__': lambda s: 1 / 0})"),
        (
            "error with another text",
            "raise type('E', (Exception,), {'__str__': lambda s: type('S', (str,), {'strip': 0})()})",
        ),
        ("error whose class lies", "raise type('E', (Exception,), {'__class__': property(lambda s: 1 / 0)})"),
        ("builtins of the encoder", "import builtins\nbuiltins.isinstance = lambda *_: True"),
        (
            "encoder of this value",
            "import json\nsys.modules['qrpo_jax.rewards.sandbox.worker'].encode = lambda v: 1 / 0\nreturn 2",
        ),
    ]
]
ATTACKS[-1] = ATTACKS[-1]._replace(right=(Value(1), ERROR, ERROR))
ATTACKS += [
    harmless(f"turns: {name}", body, head=FIND)
    for name, body in [
        ("json", "import json\njson.dumps = json.loads = lambda *_, **__: '[0, \"value\", 7]'"),
        ("json's encoder", "import json\njson.encoder.encode_basestring_ascii = 0\njson._default_encoder = 0"),
        ("writes", "os.write = os.pread = os.lseek = lambda *_: 1 / 0"),
        ("clocks", "import time\ntime.process_time = time.monotonic = lambda: -1e9"),
        ("struct", "import struct\nstruct.pack_into = struct.Struct = None"),
        ("builtins", "import builtins\nbuiltins.print = builtins.open = builtins.compile = None"),
        ("names of errors", "import builtins\nbuiltins.BaseException = builtins.Exception = ValueError"),
        ("modules", "sys.modules.clear()"),
        ("path", "sys.path[:] = ['/tmp']\nsys.meta_path.clear()"),
        ("streams", "sys.stdout = sys.stderr = sys.stdin = None"),
        ("hooks", "sys.excepthook = sys.unraisablehook = sys.displayhook = lambda *_: 1 / 0"),
        ("exit hooks", "import atexit\natexit.register(os._exit, 3)"),
        ("collector", "import gc\ngc.disable(); gc.set_threshold(1); gc.callbacks.append(lambda *_: 1 / 0)"),
        ("recursion", "sys.setrecursionlimit(10 ** 8)"),
        ("digits", "sys.set_int_max_str_digits(0)"),
        ("tracing", "sys.settrace(lambda *_: None)"),
        ("the worker's file of the task", "import sys\nfor r in found('Child'): r = None"),
        ("print", "print('[2, \"value\", 7]' * 99, file=sys.stderr)\nprint('x' * 10 ** 6)"),
        ("random", "import random\nrandom.seed(1)"),
        ("decimal", "import decimal\ndecimal.getcontext().prec = 1"),
        ("encoding", "import locale, codecs\ncodecs.register(lambda n: 1 / 0)"),
        ("warnings", "import warnings\nwarnings.simplefilter('error')"),
        ("signals", "import signal\nfor s in (2, 10, 15): signal.signal(s, signal.SIG_IGN)"),
    ]
]
ATTACKS += [
    # Its own verdicts suffer, and no others.
    Attack(
        "turns: its report's file",
        f"{FIND}\ndef f(a):\n    for r in found('Report'): r._file = 1\n    return a\n",
        (ERROR,) * 3,
    ),
    Attack(
        "turns: its report's writer",
        f"{FIND}\ndef f(a):\n    for r in found('Report'): r._write = lambda *_: 0\n    return a\n",
        (ERROR,) * 3,
    ),
    Attack(
        "turns: its report's limit",
        f"{FIND}\ndef f(a):\n    for r in found('Report'): r._most = 10 ** 9\n    return 'x' * 6000 if a == 2 else a\n",
        (Value(1), ERROR, Value(3)),
    ),
    Attack(
        "turns: the code of the worker",
        f"{FIND}\ndef f(a):\n    w = sys.modules['qrpo_jax.rewards.sandbox.worker']\n"
        "    w.run_task.__code__ = (lambda: 7).__code__\n    w.supervise = w.main = None\n    return a\n",
        (Value(1), Value(2), Value(3)),
    ),
    second(
        "machine: overwrites the worker's modules",
        "for n, m in list(sys.modules.items()):\n    if 'sandbox' in n: vars(m).clear()\nos._exit(0)",
        "error",
    ),
    second(
        "machine: writes into code",
        "ctypes.memset(ctypes.cast(libc.write, ctypes.c_void_p).value, 0xCC, 1)",
        "error",
        head=KERNEL,
    ),
]
