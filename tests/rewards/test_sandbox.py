"""Laws of the sandbox: honest code gets its outputs back, hostile code harms only itself."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from qrpo_jax.rewards.sandbox import kernel, launch
from qrpo_jax.rewards.sandbox.pool import Call, Failed, IsolationError, Limits, Outputs, Sandbox, Task
from qrpo_jax.rewards.sandbox.tasks import DEEP_LINES, DEEPEST, read_report
from qrpo_jax.rewards.sandbox.values import equal
from tests.helpers.sandboxes import LIMITS, end_supervisor, reasons, task, weaken

HONEST = Task("def f(a, b):\n    return a + b", "f", (Call((2, 3)), Call(("x", "y")), Call(([1], [2]))))
HONEST_OUTPUTS = (5, "xy", [1, 2])


@pytest.fixture(scope="module", params=["kernel", "bubblewrap"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    opened = Sandbox(LIMITS, workers=2, isolation=request.param, require=request.param)
    with ExitStack() as stack:
        try:
            stack.enter_context(opened)
        except IsolationError as error:
            pytest.skip(str(error))
        yield opened


def run_one(sandbox: Sandbox, code: str, *inputs: tuple[object, ...]) -> Outputs:
    """Runs `code`'s function f between two honest tasks, which must not notice."""
    inputs = inputs or ((),)
    first, outputs, last = sandbox.run([HONEST, task(code, *inputs), HONEST])
    assert first == last == HONEST_OUTPUTS, (first, last)
    return outputs


def test_values_survive_with_their_types(sandbox: Sandbox) -> None:
    value: list[object] = [None, True, 1, 1.0, -0.5, 2**70, "é\n\ud800", {"k": [[], {}]}]
    outputs = run_one(sandbox, "def f(x):\n    return x", (value,), (True,), (1,), (1.0,))
    assert outputs == (value, True, 1, 1.0)
    assert [type(one) for one in outputs] == [list, bool, int, float]
    assert [type(one) for one in outputs[0]] == [type(one) for one in value]
    assert run_one(sandbox, "def f():\n    return (1, {2})") == ({"$tuple": [1, {"$set": [2]}]},)


def test_named_arguments_arrive(sandbox: Sandbox) -> None:
    code = "def f(a, *, b=0):\n    return [a, b]"
    inputs = (Call((1,)), Call((1,), {"b": 2}), Call((), {"a": 3, "b": 4}), Call((), {"c": 5}))
    (outputs,) = sandbox.run([Task(code, "f", inputs)])
    assert reasons(outputs) == [[1, 0], [1, 2], [3, 4], "error"]


def test_a_method_of_a_class_can_be_called(sandbox: Sandbox) -> None:
    code = "class Solution:\n    def add(self, a):\n        return a + 1"
    assert sandbox.run([Task(code, "Solution().add", (Call((1,)),))]) == [(2,)]


def test_a_program_reads_and_prints(sandbox: Sandbox) -> None:
    code = "import sys\nn = int(input())\nprint(n * 2)\nsys.stdout.write(sys.stdin.read())\nif n == 3: exit()"
    (outputs,) = sandbox.run([Task(code, None, ("1\nrest", "x", "3\n", ""))])
    assert reasons(outputs) == ["2\nrest", "error", "6\n", "error"]


def test_order_is_kept_and_every_task_is_done_once(sandbox: Sandbox) -> None:
    tasks = [task("def f(a):\n    return a * a", (index % 31,)) for index in range(101)]
    tasks[7] = task("def f(a):\n    while True: pass", (1,))
    seen: list[int] = []
    outputs = sandbox.run(tasks, lambda index, one: seen.append(index))
    assert [one for i, one in enumerate(outputs) if i != 7] == [((i % 31) ** 2,) for i in range(101) if i != 7]
    assert outputs[7] == (Failed("time"),)
    assert sorted(seen) == list(range(101))
    assert sandbox.run([]) == []


def test_an_exception_loses_only_its_own_input(sandbox: Sandbox) -> None:
    outputs = run_one(sandbox, "def f(a):\n    return 6 // a", (2,), (0,), (3,))
    assert outputs[::2] == (3, 2)
    assert outputs[1] == Failed("error", "ZeroDivisionError: integer division or modulo by zero")


def test_a_test_beyond_its_time_loses_only_itself(sandbox: Sandbox) -> None:
    code = "def f(a):\n    while a == 2: pass\n    return a"
    assert run_one(sandbox, code, (1,), (2,), (3,)) == (1, Failed("time"), 3)


def test_each_test_has_its_own_time(sandbox: Sandbox) -> None:
    """Nine tests of 0.1 s each use four times the limit of one."""
    code = "from time import process_time as t\ndef f(a):\n    end = t() + 0.1\n    while t() < end: pass\n    return a"
    assert run_one(sandbox, code, *((i,) for i in range(9))) == tuple(range(9))


def test_after_three_tests_that_end_the_process_the_rest_fails_for_the_same_reason(sandbox: Sandbox) -> None:
    code = "def f(a):\n    while a % 2: pass\n    return a"
    began = time.monotonic()
    outputs = run_one(sandbox, code, *((i,) for i in range(41)))
    assert reasons(outputs) == [0, "time", 2, "time", 4, *["time"] * 36]
    assert time.monotonic() - began < 10


def test_without_a_bound_every_test_is_run() -> None:
    code = "import os\ndef f(a):\n    if a % 2: os._exit(0)\n    return a"
    with Sandbox(LIMITS._replace(failed_runs=0), workers=1) as single:
        (outputs,) = single.run([task(code, *((i,) for i in range(21)))])
    assert reasons(outputs) == [i if i % 2 == 0 else "error" for i in range(21)]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("def f(:", "SyntaxError"),
        ("g = 1", "NameError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("def f():\n    return \0", ""),  # the name of the error for a null byte depends on the version
        ("import numpy", "ModuleNotFoundError"),
    ],
)
def test_code_that_does_not_load_is_an_error(sandbox: Sandbox, code: str, name: str) -> None:
    (failed,) = run_one(sandbox, code)
    assert isinstance(failed, Failed) and failed.reason == "error" and failed.message.startswith(name), failed


def test_cpu_time_is_limited_in_wall_time_too(sandbox: Sandbox) -> None:
    begin = time.monotonic()
    assert run_one(sandbox, "def f(a):\n    while True: pass", (1,), (2,), (3,)) == (Failed("time"),) * 3
    assert time.monotonic() - begin < 10


def test_a_whole_second_of_cpu_is_a_timeout_too() -> None:
    """The kernel's limit counts whole seconds and must not take effect first."""
    code = "import os\ndef f():\n    while True:\n        os.stat('/')"
    with Sandbox(LIMITS._replace(cpu_seconds=1.0), workers=1) as single:
        assert single.run([task(code, ())]) == [(Failed("time"),)]


def test_code_cannot_wait(sandbox: Sandbox) -> None:
    """A hang that uses no CPU time would hold up everything else for the whole wall limit."""
    assert sandbox.protections["waiting"]
    begin = time.monotonic()
    assert reasons(run_one(sandbox, "import time\ndef f():\n    time.sleep(9)")) == ["forbidden"]
    lock = "import _thread\ndef f():\n    lock = _thread.allocate_lock()\n    lock.acquire(); lock.acquire()"
    assert reasons(run_one(sandbox, lock)) == ["error"]
    assert time.monotonic() - begin < 5


@pytest.mark.slow
def test_waiting_is_limited_where_it_is_not_refused() -> None:
    with Sandbox(LIMITS, workers=1, isolation="limits") as weak:
        begin = time.monotonic()
        outputs = weak.run(
            [task("import time\ndef f(a):\n    while a == 2: time.sleep(9)\n    return a", (1,), (2,), (3,))]
        )
        assert [reasons(one) for one in outputs] == [[1, "time", "time"]]
        assert 9 < time.monotonic() - begin < 20


def test_memory_is_limited(sandbox: Sandbox) -> None:
    code = "def f(a):\n    return len(bytearray(a << 20))"
    assert reasons(run_one(sandbox, code, (1,), (300,), (2,))) == [1 << 20, "memory", 2 << 20]
    assert reasons(run_one(sandbox, "def f():\n    x = []\n    while True: x.append(bytes(8 << 20))")) == ["memory"]


def test_output_is_bounded(sandbox: Sandbox) -> None:
    code = "def f(a):\n    return 'x' * a"
    assert reasons(run_one(sandbox, code, (3,), (10**6,), (4000,))) == ["xxx", "output", "x" * 4000]
    (printed,) = sandbox.run([Task("print('x' * int(input()))", None, ("3", "4095", "4096", "9999999"))])
    assert reasons(printed) == ["xxx\n", "x" * 4095 + "\n", "output", "output"]


def least_time(function: Callable[..., object], *given: object) -> float:
    """CPU seconds of a call, the least of three: other processes disturb each other's caches."""
    times = []
    for _ in range(3):
        begin = time.process_time()
        function(*given)
        times.append(time.process_time() - begin)
    return min(times)


def test_a_report_is_read_in_a_few_milliseconds_whatever_it_holds() -> None:
    """At the default limits, and as long as a report can be: 100 tests of 64 KB."""
    most = 65536 + 512
    lists = b'[0,"value",[' + b"[]," * 21_000 + b"[]]]\n"
    hostile = {
        "lists": lists,
        "empty lines": b"\n" * most,
        "one line": b"[" + b"[]," * (100 * most // 3),
        "deep": (b"[" * (most - 1) + b"\n") * 100,
        "deep, many lines": (b"[" * (most // 5) + b"\n") * 500,
        "deep values": (b'[0,"value",' + b"[" * 9000 + b"]" * 9000 + b"]\n") * 100,
        "digits": (b'[0,"value",' + b"1" * 65_000 + b"]\n") * 100,
        "objects": (b'{"a":' * 13_000 + b"\n") * 100,
        "texts": (b'[0,"value","' + b"\\u0000" * 10_000 + b'"]\n') * 100,
        "floods": b'[9,"value",0]\n' * (100 * most // 14),
    }
    for name, report in hostile.items():
        seconds = least_time(read_report, report, 100, most)
        assert seconds < 0.1, f"{name}: {1e3 * seconds:.1f} ms"
    # A hundred tests that each return as many lists as they may.
    assert least_time(read_report, lists * 100, 100, most) < 1


def test_what_nests_too_deeply_does_not_count_and_reading_ends_after_some_of_it() -> None:
    def line(index: int, depth: int) -> bytes:
        return b'[%d,"value",' % index + b"[" * depth + b"7" + b"]" * depth + b"]\n"

    lost = Failed("error", "its report is unreadable")
    first, second, third = read_report(line(1, DEEPEST + 1) + line(0, DEEPEST) + line(2, 0), 3, 4096)
    assert (len(first), second, third) == (1, lost, 7)
    assert read_report(line(1, 3000) * (DEEP_LINES - 1) + line(0, 0), 2, 9999) == (7, lost)
    assert read_report(line(1, 3000) * DEEP_LINES + line(0, 0), 2, 9999) == (lost, lost)


def test_a_comparison_is_cheap_whatever_came_out() -> None:
    prime = 2**61 - 1  # of Python's hash of a number
    colliding = [prime * k for k in range(1, 3000)]
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    hostile: list[tuple[Any, Any]] = [
        ({"$set": [{"$frozenset": colliding}]}, {1}),
        ({"$set": colliding}, set(range(2999))),
        ({"$dict": [[{"$frozenset": colliding}, 1]]}, {1: 1}),
        ({"$dict": [[k, 1] for k in colliding]}, dict.fromkeys(range(2999), 1)),
        ({"$number": "1e999999999", "of": "Fraction"}, 1),
        ({"$number": "1e999999999", "of": "Decimal"}, 1.5),
        ({"$number": "9" * 60_000, "of": "Decimal"}, 1),
        ({"$int": "f" * 60_000}, 1.5),
        ({"$set": [deep]}, {1}),
        ({"$dict": [[deep, 1]]}, {1: 1}),
        ({"$complex": deep}, 1j),
        ({"$dict": [1, "ab", [1]]}, {1: 1, 2: 2, 3: 3}),
        ({"$range": [0, "9" * 4000, 1]}, range(3)),
    ]
    for output, expected in hostile:
        assert not equal(output, expected, 0.1)
        seconds = least_time(equal, output, expected, 0.1)
        assert seconds < 0.02, f"{str(output)[:50]}: {1e3 * seconds:.1f} ms"


def test_messages_reach_terminals_without_control_sequences() -> None:
    report = b'[0, "error", "\\u001b[2Jred\\u0007\\ud800\\u202e"]\n'
    assert read_report(report, 1, 4096) == (Failed("error", "\ufffd[2Jred\ufffd\ufffd\ufffd"),)


def test_the_network_is_out_of_reach(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = "import socket\ndef f(port):\n    socket.create_connection(('127.0.0.1', port), 1)"
        assert reasons(run_one(sandbox, code, (port,))) == ["forbidden"]
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()


def test_files_outside_the_library_cannot_be_read(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (failed,) = run_one(sandbox, "def f(p):\n    return open(p).read()", (str(tmp_path / "secret"),))
    assert isinstance(failed, Failed) and failed.reason in ("forbidden", "error"), failed
    assert run_one(sandbox, "import textwrap\ndef f():\n    return textwrap.dedent(' a')") == ("a",)


def test_bubblewrap_shows_nothing_of_the_host(tmp_path: Path) -> None:
    """Where Landlock does not hide it, too."""
    code = """
import os
def f(path):
    found = {}
    for folder in ("/", "/etc", "/proc", "/tmp", "/dev", "/home", "/root", "/var", "/sys", "/run", path):
        try: found[folder] = sorted(os.listdir(folder))
        except OSError: pass
    return [found, os.getuid(), os.getpid(), os.uname().nodename, dict(os.environ), os.path.exists(path)]
"""
    lacking = "import qrpo_jax.rewards.sandbox.kernel as k; k.restrict_files = lambda readable: None"
    with pytest.MonkeyPatch.context() as patch:
        weaken(patch, lacking)
        with Sandbox(LIMITS, workers=1) as inside:
            if inside.level != "bubblewrap":
                pytest.skip(f"no bubblewrap here: {inside.notes}")
            ((found,),) = inside.run([task(code, (str(tmp_path),))])
    assert isinstance(found, list), found
    listed, user, process, name, environment, exists = found
    # Only the folders above the interpreter's own files.
    assert set(listed["/"]) <= {"etc", "tmp", "dev", "usr", "lib", "lib64", *[p.parts[1] for p in interpreter_paths()]}
    assert listed["/etc"] == ["ld.so.cache"] and listed["/tmp"] == [] and listed["/dev"] == ["null"], listed
    assert "/proc" not in listed and "/sys" not in listed and "/home" not in listed and "/var" not in listed, listed
    assert (process, name, environment, exists) == (1, "sandbox", {}, False) and isinstance(user, int)


def interpreter_paths() -> list[Path]:
    return [Path(path) for path in launch.needed_paths("", ())[0]]


def test_the_environment_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    with Sandbox(LIMITS, workers=1) as fresh:
        assert fresh.run([task("import os\ndef f():\n    return dict(os.environ)", ())]) == [({},)]


def test_no_task_finds_another_in_memory_or_open_files() -> None:
    code = """
import gc, os
def f(part):
    dicts = [x for x in gc.get_objects() if isinstance(x, dict)]
    files = []
    for n in range(64):
        try: files.append(os.fstat(n) and n)
        except OSError: pass
    return [sum(part + "_one" in x for x in dicts), files]
"""
    with Sandbox(LIMITS, workers=1) as single:
        single.run([task("mark_one = 1\ndef f(): return mark_one", ())])
        assert single.run([task(code, ("mark",))]) == [([0, [0, 1, 2, 4]],)]


def test_no_task_leaves_something_in_the_shared_page() -> None:
    code = """
import sys
def f(mark):
    frame, found = sys._getframe(), b""
    while frame:
        for one in frame.f_locals.values():
            if type(one).__name__ == "mmap":
                found = found or one[16:].strip(bytes(1)) + b"."
                one[100:100 + len(mark)] = mark.encode()
        frame = frame.f_back
    return found.decode()
"""
    with Sandbox(LIMITS, workers=1) as single:
        assert single.run([task(code, ("first",))]) == [(".",)]
        assert single.run([task(code, ("second",))]) == [(".",)]


def test_a_forged_page_gives_no_more_cpu_time_than_all_tests_have(sandbox: Sandbox) -> None:
    """It says again and again that the next test begins now, and notes in its report how long it has lived."""
    code = """
import json, os, struct, sys, time
def f(count):
    frame, pages = sys._getframe(), []
    while frame:
        pages += [one for one in frame.f_locals.values() if type(one).__name__ == "mmap"]
        frame = frame.f_back
    while True:
        used = time.process_time()
        for at in (int(used / 0.15), count):
            for page in pages: struct.pack_into("=qd", page, 0, at, used)
        os.lseek(4, 0, 0)
        os.write(4, json.dumps([0, "value", round(used, 3)]).ljust(60).encode() + b"\\n")
"""
    count = 5
    (outputs,) = sandbox.run([task(code, *((count,) for _ in range(count)))])
    most = (count + 1) * LIMITS.cpu_seconds
    assert isinstance(outputs[0], float) and LIMITS.cpu_seconds * 0.9 < outputs[0] < most + 0.1, outputs
    assert reasons(outputs[1:]) == ["time"] * (count - 1), outputs


def test_outcomes_repeat_between_sandboxes(sandbox: Sandbox) -> None:
    code = """
import random
class A: pass
def f():
    return [random.random(), [str(x) for x in {"a", "b", "c", None, 1.5}], hash(A), hash("a")]
"""
    if not sandbox.protections["repeatable"]:
        pytest.skip("this machine does not fix addresses")
    outputs = []
    for workers in (1, 2):
        with Sandbox(LIMITS, workers, isolation=sandbox.level) as fresh:
            fresh.run([HONEST])
            outputs += fresh.run([task(code, *((),) * count) for count in (1, 2)])
    assert outputs[0] == outputs[2] and outputs[1] == outputs[3], outputs
    assert outputs[0][0] == outputs[1][0], outputs


def test_a_dead_supervisor_is_replaced_and_costs_one_task(sandbox: Sandbox) -> None:
    slow = task("def f(a):\n    while True: pass", (1,))
    with Sandbox(LIMITS._replace(cpu_seconds=5.0), workers=1, isolation=sandbox.level) as single:

        def kill(index: int, outputs: Outputs) -> None:
            if index == 0:
                end_supervisor(single)

        other = task(HONEST.code, (7, 8))
        outputs = single.run([HONEST, slow, other], kill)
        assert outputs == [HONEST_OUTPUTS, (Failed("error", "the sandbox ended"),), (15,)]


def test_an_abandoned_run_does_not_disturb_the_next(sandbox: Sandbox) -> None:
    def stop(index: int, outputs: Outputs) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sandbox.run([task(HONEST.code, (index, 1)) for index in range(11)], stop)
    assert sandbox.run([HONEST]) == [HONEST_OUTPUTS]


@pytest.mark.parametrize(
    ("limits", "workers"),
    [
        (Limits(cpu_seconds=0), 1),
        (Limits(cpu_seconds=float("nan")), 1),
        (Limits(memory_mb=1), 1),
        (Limits(output_bytes=0), 1),
        (Limits(failed_runs=-1), 1),
        (LIMITS, 0),
    ],
)
def test_impossible_limits_are_refused(limits: Limits, workers: int) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        Sandbox(limits, workers)


def test_unknown_levels_are_refused() -> None:
    for given in ({"isolation": "docker"}, {"require": "auto"}):
        with pytest.raises(ValueError, match="allowed: auto, limits, kernel, bubblewrap"):
            Sandbox(LIMITS, 1, **given)


def test_inputs_that_are_not_json_are_refused(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="must be JSON values"):
        sandbox.run([task(HONEST.code, (object(),))])


def test_throughput_is_printed(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [task(HONEST.code, *((i, k) for k in range(8))) for i in range(307)]
    begin = time.monotonic()
    outputs = sandbox.run(tasks)
    rate = len(tasks) / (time.monotonic() - begin)
    with capsys.disabled():
        print(f"\n{sandbox.level}: {rate:.0f} completions a second")
    assert outputs == [tuple(i + k for k in range(8)) for i in range(307)]
    assert rate > 20


def test_descriptors_stay_bounded(sandbox: Sandbox) -> None:
    if not kernel.LINUX:
        pytest.skip("needs /proc")
    sandbox.run([HONEST])
    before = len(os.listdir("/proc/self/fd"))
    sandbox.run([task(HONEST.code, (index, 2)) for index in range(99)])
    assert len(os.listdir("/proc/self/fd")) == before
