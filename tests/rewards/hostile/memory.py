"""Programs that allocate, print and return too much, and that recurse too deeply."""

from tests.rewards.hostile.attack import KERNEL, Attack, loading, second

ATTACKS: list[Attack] = [
    # Touching that much memory can take the time of a test, too.
    second(f"memory: {name}", body, "memory|time", head=head)
    for name, body, head in [
        ("one array", "bytearray(400 << 20)", ""),
        ("a list", "[0] * (1 << 30)", ""),
        ("a text", "'x' * (1 << 30)", ""),
        ("a number", "1 << (1 << 33)", ""),
        ("growth", "x = []\nwhile True: x.append(bytes(8 << 20))", ""),
        ("an iterator without end", "list(bytes(1 << 20) for _ in iter(int, 1))", ""),
        ("joined", "''.join(itertools.repeat('x' * 1000, 10 ** 7))", "import itertools"),
        ("product of lists", "[[0] * 10 ** 6 for _ in range(10 ** 6)]", ""),
        ("array module", "array.array('d', bytes(8)) * 10 ** 8", "import array"),
        ("repr", "repr(['x' * 10 ** 6] * 999)", ""),
        ("replacement", "('a' * 10 ** 6).replace('a', 'b' * 1000)", ""),
        ("format", "format(1, '1000000000')", ""),
        ("formatted", "'%1000000000d' % 1", ""),
        ("encoded value", "return 'x' * (100 << 20)", ""),
        ("hex", "return bytes(60 << 20)", ""),
        ("raised", "raise MemoryError", ""),
    ]
]
ATTACKS += [
    second("memory: memory map", "import mmap\nmmap.mmap(-1, 400 << 20)", "error|memory"),
    second("memory: heap by the library", "assert libc.malloc(ctypes.c_size_t(400 << 20))", "error", head=KERNEL),
    second(
        "memory: raises its limit",
        "import resource as r\ntry: r.setrlimit(r.RLIMIT_AS, (-1, -1))\n"
        "except (OSError, ValueError): pass\nbytearray(400 << 20)",
        "memory",
    ),
    second(
        "memory: catches it",
        "x = []\nwhile True:\n    try: x.append(bytes(8 << 20))\n    except MemoryError: pass",
        "time",
    ),
    second("memory: small objects", "x = []\nwhile True: x = [x, x, []]", "memory|time|error"),
    second(
        "memory: file in memory",
        "fd = os.memfd_create('x')\nwhile True: os.write(fd, bytes(1 << 20))",
        "forbidden|output",
    ),
    second("memory: environment", "os.environ['x'] = 'y' * (8 << 20)\nos.environ['x'] * 99", "memory|error"),
    second("deep calls", "def g(n): return g(n + 1)\nsys.setrecursionlimit(10 ** 9)\ng(0)", "memory|error|time"),
    second("deep calls, default limit", "def g(n): return g(n + 1)\ng(0)", "error"),
    second("deep calls, low limit", "sys.setrecursionlimit(60)\ndef g(n): return g(n + 1)\ng(0)", "error"),
    second(
        "deep calls in C",
        "x = []\nfor _ in range(10 ** 5): x = [x]\nsys.setrecursionlimit(10 ** 9)\nrepr(x)",
        "error|memory|time",
    ),
    second("deep comparison", "x = y = None\nfor _ in range(10 ** 5): x, y = [x], [y]\nx == y", "error|time"),
    second("deep attributes", "class A: __getattr__ = lambda s, n: getattr(s, n + '_')\nA().x", "error|memory|time"),
    second("deep regex", "import re\nre.compile('(' * 5000 + ')' * 5000)", "error|memory|time"),
    second("deep freeing", "x = None\nfor _ in range(10 ** 5): x = (x,)\nraise ValueError", "error|time"),
    second(
        "deep regex in C",
        "libc.regcomp(ctypes.create_string_buffer(256), b'(' * 10 ** 6, 1)",
        "error|memory|time",
        head=KERNEL,
    ),
    second("null pointer", "ctypes.string_at(0)", "error", head=KERNEL),
    second("wild jump", "ctypes.CFUNCTYPE(None)(64)()", "error", head=KERNEL),
    second("overwrites an object", "ctypes.memset(id(a), 255, 64)\nreturn [a] * 9", "error|memory|time", head=KERNEL),
    second("overwrites None", "ctypes.memset(id(None), 0, 16)\nreturn None", "error|memory|time", head=KERNEL),
    second(
        "unmaps everything",
        "libc.munmap(ctypes.c_void_p(0), ctypes.c_size_t((1 << 47) - 4096))",
        "error|memory",
        head=KERNEL,
    ),
    second("aborts", "libc.abort()", "error", head=KERNEL),
    second("fatal error", "ctypes.pythonapi.Py_FatalError(b'x')", "error", head=KERNEL),
    second("output: a text", "return 'x' * 5000", "output"),
    second("output: numbers", "return list(range(5000))", "output"),
    second("output: one long number", "return 1 << 40_000", "output|error"),
    second("output: wide characters", "return '\\U0001f600' * 2000", "output"),
    second("output: escapes", "return '\\0' * 2000", "output"),
    second("output: nested", "x = []\nfor _ in range(12): x = [x] * 3\nreturn x", "output|memory|time"),
    second("output: wide tree", "x = 1\nfor _ in range(40): x = [x, x]\nreturn x", "memory|time|output"),
    second("output: contains itself", "x = []\nx.append(x)\nreturn x", "error"),
    second("output: dict that contains itself", "x = {}\nx['x'] = x\nreturn x", "error"),
    second("output: deep", "x = 1\nfor _ in range(3000): x = [x]\nreturn x", "error"),
    second("error: long message", "raise ValueError('x' * 10 ** 6)", "error"),
    second(
        "error: lines in a message", "raise ValueError('\\n'.join('[2, \"value\", 7]' for _ in range(99)))", "error"
    ),
    loading("error: deep errors", "def f(a):\n    try: f(a)\n    finally: f(a)\nf(1)", "error|memory|time"),
]
