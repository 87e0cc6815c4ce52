"""Programs that use CPU time, or wait."""

from tests.rewards.hostile.attack import CONFINED, KERNEL, Attack, harmless, loading, refused, second

HOSTILE_EQUAL = "class H:\n    def __hash__(self): return 0\n    def __eq__(self, other): return False\n"

ATTACKS: list[Attack] = [
    second(f"busy: {name}", body, "time", head=head)
    for name, body, head in [
        ("while", "while True: pass", ""),
        ("for over iter", "for _ in iter(int, 1): pass", ""),
        ("generator", "for _ in (x for x in iter(int, 1)): pass", ""),
        ("power", "10 ** 10 ** 8", ""),
        ("power of a long number", "pow(7, 1 << 40_000, (1 << 40_000) - 1)", ""),
        ("factorial", "math.factorial(3_000_000)", "import math"),
        ("long text of a number", "sys.set_int_max_str_digits(0)\nstr(1 << 5_000_000)", ""),
        ("long number of a text", "sys.set_int_max_str_digits(0)\nint('9' * 2_000_000)", ""),
        ("decimal root", "d.getcontext().prec = 3_000_000\nd.Decimal(2).sqrt()", "import decimal as d"),
        ("regex", "re.match('(a+)+$', 'a' * 60 + 'b')", "import re"),
        ("regex alternatives", "re.match('(a|aa)+$', 'a' * 90 + 'b')", "import re"),
        ("sum in C", "sum(iter(int, 1))", ""),
        ("all in C", "all(itertools.repeat(1))", "import itertools"),
        ("any in C", "any(itertools.repeat(0))", "import itertools"),
        ("max in C", "max(itertools.count())", "import itertools"),
        ("search in C", "2 in itertools.repeat(1)", "import itertools"),
        ("empty deque in C", "c.deque(itertools.count(), maxlen=0)", "import itertools, collections as c"),
        ("permutations", "for _ in itertools.permutations(range(13)): pass", "import itertools"),
        ("many hashes of a password", "h.pbkdf2_hmac('sha256', b'', b'', 10 ** 8)", "import hashlib as h"),
        ("digests", "while True: h.sha512(b'x' * 10 ** 6).digest()", "import hashlib as h"),
        ("collisions in a set", "{H() for _ in range(10 ** 6)}", HOSTILE_EQUAL),
        ("collisions in a dict", "{H(): 1 for _ in range(10 ** 6)}", HOSTILE_EQUAL),
        ("colliding numbers", "set((2 ** 61 - 1) * k for k in range(10 ** 6))", ""),
        ("sort with a key that loops", "sorted([1, 2], key=lambda x: sum(iter(int, 1)))", ""),
        (
            "sort with a hostile order",
            "sorted(O() for _ in range(9))",
            "class O:\n    def __lt__(s, o):\n        while 1: pass",
        ),
        ("sorting without end", "while True: sorted(range(10 ** 5), key=lambda x: -x)", ""),
        ("catches everything", "while True:\n    try:\n        while True: pass\n    except BaseException: pass", ""),
        ("finally", "while True:\n    try: continue\n    finally: continue", ""),
        ("returns from finally", "def g():\n    try: return 1\n    finally:\n        while True: pass\ng()", ""),
        (
            "ignores signals",
            "for s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): 0\n"
            "while True: pass",
            "import signal",
        ),
        (
            "handles signals",
            "def again(*_):\n    while True: pass\n"
            "for s in (10, 12, 14, 15, 24, 26):\n    signal.signal(s, again)\nwhile True: pass",
            "import signal",
        ),
        (
            "raises its limit of CPU time",
            "try: r.setrlimit(r.RLIMIT_CPU, (10 ** 6, 10 ** 6))\nexcept (OSError, ValueError): pass\nwhile True: pass",
            "import resource as r",
        ),
        ("deletes names", "import builtins\nvars(builtins).clear()\nwhile True: pass", ""),
        ("deletes modules", "sys.modules.clear()\nwhile True: pass", ""),
        ("deletes its own frame's names", "sys._getframe(1).f_globals.clear()\nwhile True: pass", ""),
        ("destructor", "class D:\n    def __del__(self):\n        while True: pass\nD()", ""),
        ("resurrection", "class D:\n    def __del__(self): D()\nd = D()\ndel d\nwhile True: D()", ""),
        ("trace", "def t(*_):\n    while True: pass\nsys.settrace(t)\nprint()\nint()\n(lambda: 0)()", ""),
        ("profile", "def t(*_):\n    while True: pass\nsys.setprofile(t)\nint()", ""),
        ("audit hook", "def h(*_):\n    while True: pass\nsys.addaudithook(h)\ncompile('1', '', 'eval')", ""),
        (
            "descriptor",
            "class P:\n    @property\n    def x(self): return self.x\n"
            "while True:\n    try: P().x\n    except RecursionError: pass",
            "",
        ),
        ("attribute hook", "class G:\n    def __getattr__(self, n):\n        while True: pass\nG().x", ""),
        ("boolean", "class B:\n    def __bool__(self):\n        while True: pass\nassert B()", ""),
        ("message of an error", "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E", ""),
        (
            "value that is a list without end",
            "class L(list):\n    def __iter__(self):\n        while True: pass\nreturn L()",
            "",
        ),
        (
            "value that is a dict without end",
            "class D(dict):\n    def items(self):\n        while True: pass\nreturn D({1: 1})",
            "",
        ),
        (
            "value's attributes",
            "class V:\n    @property\n    def __dict__(self):\n        while True: pass\nreturn V()",
            "",
        ),
        ("text of a number", "class N(int):\n    def __int__(self):\n        while True: pass\nreturn N()", ""),
        ("looking at files", "while True: os.stat('/')", ""),
        ("yielding", "while True: os.sched_yield()", ""),
        ("reading nothing", "while True: os.read(0, 1)", ""),
        ("writing nothing", "while True: os.write(1, b'')", ""),
        ("compiles", "while True: compile('1+' * 500 + '1', '', 'eval')", ""),
        ("imports again", "import textwrap\nwhile True: importlib.reload(textwrap)", "import importlib"),
        ("JSON", "while True: json.loads('[' * 500 + ']' * 500)", "import json"),
        ("copies", "x = [[] for _ in range(99)]\nwhile True: copy.deepcopy(x)", "import copy"),
        ("deep calls", "def g(n): return g(n - 1) + g(n - 1) if n else 1\ng(60)", ""),
        ("warns", "import warnings\nwhile True: warnings.warn('x')", ""),
        ("mmap in a loop", "import mmap\nwhile True: mmap.mmap(-1, 4096).close()", ""),
    ]
]
ATTACKS += [
    loading("loads for ever", "while True: pass", "time"),
    loading("loads for ever in a decorator", "def d(f):\n    while True: pass\n@d\ndef f(a): return a", "time"),
    loading(
        "loads for ever in a class",
        "class M(type):\n    def __new__(*a):\n        while 1: pass\nclass C(metaclass=M): pass",
        "time",
    ),
    loading("loads for ever in a default", "def f(a, b=sum(iter(int, 1))): return a", "time"),
    loading("loads a long sum", "x = " + "+".join("x" * 60_000), "error|memory|time"),
    loading("loads deep brackets", "(" * 3000 + ")" * 3000, "error|memory"),
    loading("loads deep blocks", "".join(" " * i + "if 1:\n" for i in range(150)) + " " * 150 + "pass", "error"),
    loading("loads a long number", "x = " + "9" * 50_000, "error"),
    loading("loads deep minuses", "x = " + "-" * 60_000 + "1", "error|memory|time"),
    loading("loads null bytes", "def f(a): return \0", "error"),
    loading("loads halves of characters", "def f(a): return '\ud800'\nf = 1 / 0", "error"),
    loading("exits while it loads", "raise SystemExit(0)", "error"),
    loading("ends while it loads", "import os\nos._exit(0)", "error"),
    loading("has no function", "g = 1", "error"),
    loading("needs a module that is not there", "import numpy_of_the_trainer", "error"),
]
# What waits is refused where the kernel confines it; the law here is that it does not wait, and harms only itself.
ATTACKS += [
    second(f"waits: {name}", body, right, head=KERNEL, levels=CONFINED)
    for name, body, right in [
        ("sleep", "import time\ntime.sleep(99)", "forbidden"),
        ("lock", "import _thread\nl = _thread.allocate_lock()\nl.acquire(); l.acquire()", "error"),
        ("lock with a deadline", "import threading\nl = threading.Lock()\nl.acquire(); l.acquire(timeout=99)", "error"),
        ("select", "import select\nselect.select([], [], [], 99)", "forbidden"),
        ("select on input", "import select\nselect.select([0], [], [0], 99)", "forbidden"),
        ("poll", "import select\nselect.poll().poll(99_000)", "forbidden"),
        ("epoll", "import select\nselect.epoll().poll(99)", "forbidden"),
        ("pipe", "r, w = os.pipe()\nos.read(r, 1)", "forbidden"),
        ("lock of a file", "import fcntl\nfcntl.flock(4, fcntl.LOCK_EX)", "forbidden"),
        ("record lock", "import fcntl\nfcntl.lockf(4, fcntl.LOCK_EX)", "forbidden"),
        ("signal wait", "import signal\nsignal.sigwait({10})", "forbidden"),
        ("timed signal wait", "import signal\nsignal.sigtimedwait({10}, 99)", "forbidden"),
        ("child", "os.wait()", "forbidden"),
        ("futex", "word = ctypes.c_int(0)\ncall(202, 98, ctypes.byref(word), 0, 0, None, None, 0)", "forbidden"),
        (
            "futex bitset",
            "word = ctypes.c_int(0)\ncall(202, 98, ctypes.byref(word), 9, 0, None, None, -1)",
            "forbidden",
        ),
        ("futex2", "call(455, 455, None, 0, 0, 0)", "forbidden"),
        ("interval timer", "import signal\nsignal.setitimer(signal.ITIMER_REAL, 1, 1)", "forbidden|error"),
        ("timer", "call(222, 107, 0, None, None)", "forbidden"),
        ("timer file", "call(283, 85, 0, 0)", "forbidden"),
        ("event file", "call(290, 19, 0, 0)\nos.read(5, 8)", "forbidden"),
        ("socket pair", "import socket\na, b = socket.socketpair()\na.recv(1)", "forbidden"),
        ("restart", "call(219, 128)", "forbidden"),
        ("message queue", "call(68, 186, 1, 0o1666)", "forbidden"),
        ("semaphore", "call(64, 190, 1, 1, 0o1666)", "forbidden"),
    ]
]
ATTACKS += [
    harmless("waits: signal", "import signal\nsignal.pause()", levels=CONFINED),
    harmless("waits: alarm", "import signal\nsignal.alarm(1)\nsignal.pause()", levels=CONFINED),
    refused(
        "signal handler by alarm of the library", "libc.alarm.restype = ctypes.c_uint\nlibc.alarm(1)\ncall(37, None, 1)"
    ),
]
