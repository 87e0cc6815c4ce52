"""Programs that read their standard input and print, and abuse both."""

from tests.rewards.hostile.attack import CONFINED, EVERYWHERE, Attack, program

ECHO = "n = int(input())\n"

# What a program does at input 2; it prints its number at the others.
AT_TWO: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("spins", "while True: pass", "time", EVERYWHERE),
    ("prints without an end", "while True: print('x' * 100)", "output|time", EVERYWHERE),
    ("prints empty lines without an end", "while True: print()", "output|time", EVERYWHERE),
    ("prints too much", "print('x' * 5000)", "output", EVERYWHERE),
    ("prints too much in wide characters", "print('\\U0001f600' * 4000)", "output", EVERYWHERE),
    ("writes too much to the descriptor", "import os\nos.write(1, b'x' * 5000)", "output", EVERYWHERE),
    ("reads too much", "input(); input()", "error", EVERYWHERE),
    ("raises", "1 / 0", "error", EVERYWHERE),
    ("exits with an error", "exit(3)", "error", EVERYWHERE),
    ("exits with a message", "import sys\nsys.exit('wrong')", "error", EVERYWHERE),
    ("ends", "import os\nos._exit(0)", "error", EVERYWHERE),
    ("crashes", "import ctypes\nctypes.string_at(0)", "error", EVERYWHERE),
    ("spins at exit", "import atexit\n@atexit.register\ndef g():\n    while True: pass", "time", EVERYWHERE),
    ("ends at exit", "import atexit, os\natexit.register(os._exit, 0)", "error", EVERYWHERE),
    ("spins in a destructor", "class D:\n    def __del__(s):\n        while True: pass\nd = D()", "time", EVERYWHERE),
    (
        "spins when flushed",
        "import sys\nclass S:\n    closed = False\n    def flush(s):\n        while True: pass\nsys.stdout = S()",
        "time",
        EVERYWHERE,
    ),
    (
        "raises when flushed",
        "import sys\nclass S:\n    closed = False\n    def flush(s): 1 / 0\nsys.stdout = S()",
        "error",
        EVERYWHERE,
    ),
    ("allocates", "x = bytearray(1 << 30)", "memory", EVERYWHERE),
    ("fills the stream by a hole", "import os\nos.ftruncate(1, 1 << 40)", "output", EVERYWHERE),
    ("forks", "import os\nos.fork()", "forbidden", CONFINED),
    ("starts a thread", "import threading\nthreading.Thread(target=print).start()", "forbidden", CONFINED),
    ("sleeps", "import time\ntime.sleep(9)", "forbidden", CONFINED),
    ("opens a file", "open(FOLDER + '/secret')", "forbidden|error", CONFINED),
    ("connects", "import socket\nsocket.create_connection(('127.0.0.1', PORT))", "forbidden", CONFINED),
]
ATTACKS: list[Attack] = [
    program(
        f"program: {name}",
        f"{ECHO}if n == 2:\n" + "".join(f"    {line}\n" for line in body.split("\n")) + "else:\n    print(n)\n",
        "1\n",
        right,
        "3\n",
        levels=levels,
    )
    for name, body, right, levels in AT_TWO
]
ATTACKS += [
    program(f"program: {name}", code, "1\n", "2\n", "3\n")
    for name, code in [
        ("closes its input", "print(input())\nimport sys, os\nsys.stdin.close(); os.close(0)"),
        ("closes its output", "import sys\nprint(input())\nsys.stdout.close()"),
        ("closes the descriptor of its output", "import sys, os\nprint(input(), flush=True)\nos.close(1)"),
        ("exits", "print(input())\nexit()"),
        ("quits", "print(input())\nquit(0)"),
        ("exits by exception", "print(input())\nraise SystemExit"),
        ("duplicates", "import os\nn = input()\nfd = os.dup(1)\nos.dup2(2, 1)\nos.write(fd, n.encode() + b'\\n')\n"),
        ("reads the descriptor", "import os\nos.write(1, os.read(0, 99) + b'\\n')"),
        ("opens its input", "print(open(0).read())"),
        ("opens its input twice", "print(open(0, closefd=False).readline()); open(0)"),
        (
            "replaces its streams",
            "import sys, io\nn = input()\nprint(n)\nsys.stdin = sys.stdout = io.StringIO()\nprint('lost')",
        ),
        (
            "prints with a class of its own",
            "import sys, os\nclass S:\n    b = ''\n    def write(s, t): s.b += t\n"
            "    def flush(s): os.write(1, s.b.encode()); s.b = ''\nsys.stdout = S()\nprint(input())",
        ),
        (
            "prints to another file",
            "import os\nout = os.fdopen(1, 'w', closefd=False)\nout.write(input() + '\\n')\nout.flush()",
        ),
        (
            "leaves a buffer to the interpreter",
            "import os\nout = os.fdopen(1, 'w', closefd=False)\ndef f(): out.write(input() + '\\n')\nf()",
        ),
        ("prints at exit", "import atexit\natexit.register(print, input())"),
        (
            "removes print",
            "import builtins as b\np, i = print, input\ndel b.print, b.input\np(i())\nb.print, b.input = p, i",
        ),
        ("changes its arguments", "import sys\nsys.argv.clear()\nprint(input())"),
        ("writes errors", "import sys\nprint('x' * 10 ** 5, file=sys.stderr)\nprint(input())"),
        ("is the main module", "if __name__ == '__main__': print(input())"),
        ("leaves names", "assert 'left' not in globals()\nleft = 1\nprint(input())"),
        ("catches its exit", "import sys\ntry: sys.exit(1)\nexcept SystemExit: print(input())"),
        ("changes the recursion limit", "import sys\nsys.setrecursionlimit(10 ** 6)\nprint(input())"),
        ("writes its input", "import os\nn = input()\nos.write(0, b'x' * 99)\nprint(n)"),
    ]
]
ATTACKS += [
    program("program: what does not load", "print(", "error", "error", "error"),
    program("program: loops at once", "while True: pass", "time", "time", "time"),
    program("program: half a character", "print('\\ud800' + input())", "?1\n", "?2\n", "?3\n"),
    program(
        "program: bytes that are no text",
        "import os\nos.write(1, b'\\xff' + input().encode())",
        "\ufffd1",
        "\ufffd2",
        "\ufffd3",
    ),
    program(
        "program: forges a report",
        'import os\nos.write(4, b\'[1, "value", "7"]\\n\')\nprint(input())',
        "1\n",
        "7",
        "3\n",
    ),
    program(
        "program: writes to every descriptor",
        "import os\nfor n in range(5, 99):\n    try: os.write(n, b'x')\n    except OSError: pass\nos._exit(0)",
        "error",
        "error",
        "error",
    ),
    program(
        "program: allocates at exit",
        "import atexit\natexit.register(lambda: bytearray(1 << 30))\nprint(input())",
        "1\n",
        "2\n",
        "3\n",
    ),
    program("program: halves in its input", "print(len(input()))", "1\n", "3\n", inputs=("x", "\ud800")),
]
