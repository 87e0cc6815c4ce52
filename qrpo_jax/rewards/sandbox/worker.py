"""The interpreter of the sandbox: it locks itself down, then runs each completion in a new child.

`launch.py` starts it with nothing imported but the standard library and the modules that it names. It never sees an
expected value, and it does not read the tasks: a task arrives as two open files, one to read and one for the report,
which go to the new child. So no child finds another task's code or answers in its memory.

A child runs the tests of a completion in turn. One that ends before its last test, by a limit or otherwise, fails that
test alone: a new child goes on with the next.
"""

import atexit
import builtins
import errno
import gc
import importlib
import io
import json
import math
import mmap
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from qrpo_jax.rewards.sandbox import kernel
from qrpo_jax.rewards.sandbox.values import decode, encode

HEADER = struct.Struct("=?I")  # of a task: whether it is a program; the number of its tests
DONE = b"d"  # the answer when a report is complete
PAGE = struct.Struct("=qd")  # what a child says of itself: the test that it is at, its CPU time when that began
ENTRY_BYTES = 512  # of a report's line beyond its value

# Imported once here, because a child's fork is cheap and its import is not (and may be forbidden).
PRELOADED = (
    "array base64 binascii bisect calendar cmath collections copy dataclasses datetime decimal enum fractions "
    "functools hashlib heapq itertools json math numbers operator random re statistics string struct sys textwrap time "
    "typing"
)

# What a child tries at the start; see `pool.Sandbox`.
PROTECTIONS = ("network", "filesystem", "reading", "paths", "processes", "waiting", "memory", "cpu", "repeatable")
FILES = 32  # open files of this process and of a completion


class Settings(NamedTuple):
    """What the starting process sets: `tasks.Limits`, the most wall time of a test, and modules to import first.

    Attributes:
      host_path: a file outside of everything that code may see, for the probe.
      confined: False: without the kernel's tools, with resource limits alone.
    """

    cpu_seconds: float
    memory_mb: int
    output_bytes: int
    failed_runs: int
    wall_seconds: float
    preload: list[str]
    host_path: str
    confined: bool


class Child(NamedTuple):
    """A task for children: its files, whether it is a program, the number of its tests."""

    question: int
    report: int
    program: bool
    tests: int


def lock_down(settings: Settings) -> None:
    """Forbids what can be forbidden once, for this process and all its children."""
    for name in (*PRELOADED.split(), *settings.preload):
        importlib.import_module(name)
    for name in ("exit", "quit"):  # of the module site, which this interpreter may lack
        if not hasattr(builtins, name):
            setattr(builtins, name, sys.exit)
    random.seed(0)
    kernel.adopt_orphans()
    kernel.isolate()
    kernel.restrict_files(sys.path)
    limit("CORE", 0)
    limit("NOFILE", FILES)
    limit("AS", settings.memory_mb << 20)


def limit(name: str, value: int) -> None:
    """Sets one resource limit, both soft and hard, where the system has it."""
    with suppress(AttributeError, ValueError, OSError):
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))


def enter_child(files: list[int], cpu_seconds: float, file_bytes: int, parent: kernel.Parent) -> list[int]:
    """Locks one child down. It keeps files 0 to 2 (null) and `files`, which become 3 and following; returns these."""
    kernel.die_with_parent()
    if parent.ended():  # before the line above
        os._exit(0)
    with suppress(PermissionError):
        os.setsid()
    high = [os.dup2(file, FILES - 8 + at) for at, file in enumerate(files)]
    os.closerange(3, FILES - 8)
    low = [os.dup2(file, 3 + at, inheritable=False) for at, file in enumerate(high)]
    os.closerange(3 + len(low), FILES)
    # A second limit, later than the exact one in `supervise`, so that the two cannot race.
    limit("CPU", math.ceil(cpu_seconds) + 1)
    limit("FSIZE", file_bytes)
    limit("NPROC", 0)
    random.seed(0)  # os.fork changes the seed
    kernel.drop_capabilities()
    kernel.filter_calls()
    return low


def described(error: BaseException) -> tuple[str, str]:
    """The reason and the first line of an error that a completion raised. Its class may be hostile."""
    try:
        name = str(type(error).__name__)[:80]
    except BaseException:
        name = "Exception"
    try:
        text = str(error).strip().partition("\n")[0][:160]
    except BaseException:
        text = ""
    if isinstance(error, MemoryError):
        return "memory", name
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "output", "it writes more than the limit"
    # New processes and threads are refused with these.
    thread = isinstance(error, RuntimeError) and "start new thread" in text
    refused = thread or isinstance(error, PermissionError | BlockingIOError)
    return ("forbidden" if refused else "error"), f"{name}: {text}" if text else name


class Report:
    """The lines that a child writes, and the page in which its supervisor sees how far it is."""

    def __init__(self, file: int, page: mmap.mmap, output_bytes: int) -> None:
        self._file, self._page, self._most = file, page, output_bytes + ENTRY_BYTES
        # Kept here, because a completion may replace what modules hold.
        self._dumps, self._write, self._clock, self._pack = json.dumps, os.write, time.process_time, PAGE.pack_into

    def begin(self, index: int) -> None:
        self._pack(self._page, 0, index, self._clock())

    def value(self, index: int, value: Any) -> None:
        text = self._dumps([index, "value", encode(value)], ensure_ascii=False) + "\n"
        line = text.encode("utf-8", "surrogatepass")
        if len(line) > self._most:
            self.failed(index, "output", "the value is larger than the limit")
        else:
            self._write(self._file, line)

    def failed(self, index: int, reason: str, message: str) -> None:
        self._write(self._file, (self._dumps([index, reason, message]) + "\n").encode())


def run_task(child: Child, first: int, page: mmap.mmap, output_bytes: int, streams: list[int]) -> None:
    """Runs the tests from the number `first` on, and writes a line for each as it is done.

    Args:
      streams: of a program: files that become its standard input and output in each test.
    """
    report = Report(child.report, page, output_bytes)
    report.begin(first - 1)
    size = os.fstat(child.question).st_size
    task = json.loads(os.pread(child.question, size, 0))
    os.close(child.question)
    namespace: dict[str, Any] = {"__name__": "completion", "__builtins__": builtins}
    try:
        code = compile(task["code"], "completion", "exec")
        if not child.program:
            exec(code, namespace)
            function = eval(task["call"], namespace)
    except BaseException as error:
        report.failed(-1, *described(error))
        report.begin(child.tests)
        return
    for index in range(first, child.tests):
        given = task["inputs"][index]
        report.begin(index)
        try:
            if child.program:
                value = run_program(code, given, streams, output_bytes)
                if len(value) > output_bytes:
                    report.failed(index, "output", "it prints more than the limit")
                    continue
            else:
                positional, named = given
                value = function(*decode(positional, namespace), **decode(named, namespace))
            report.value(index, value)
        except BaseException as error:
            report.failed(index, *described(error))
    report.begin(child.tests)


def run_program(code: Any, text: str, streams: list[int], output_bytes: int) -> str:
    """What a program prints when it reads the text; at most one character more than the limit."""
    inward, outward = streams
    for file, content in ((inward, text.encode(errors="surrogatepass")), (outward, b"")):
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        while content:
            content = content[os.write(file, content) :]
        os.lseek(file, 0, os.SEEK_SET)
    os.dup2(inward, 0)  # again for each test, because open(0) closes it
    os.dup2(outward, 1)
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    raw = open(1, "wb", buffering=0, closefd=False)  # noqa: SIM115
    sys.stdout = printed = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="replace")
    sys.__stdout__ = printed  # type: ignore[misc]
    sys.argv = ["completion"]
    namespace = {"__name__": "__main__", "__builtins__": builtins}
    try:
        exec(code, namespace)
    except SystemExit as ended:
        if ended.code not in (None, 0, False):
            raise
    finally:
        try:
            # What an interpreter does at its end: also a class of the program's own may hold back what it prints.
            atexit._run_exitfuncs()
            for stream in (sys.stdout, printed):
                if stream is not None and not getattr(stream, "closed", False):
                    stream.flush()
        finally:
            namespace.clear()
            raw.close()  # or what could not be flushed would go to the next test's output
    return os.pread(outward, output_bytes + 1, 0).decode(errors="replace")


def probe(files: list[int], settings: Settings) -> None:
    """Tries what a completion must not be able to do; writes which attempts were refused."""

    def refused(attempt: Callable[[], object]) -> bool:
        try:
            attempt()
        except (OSError, MemoryError):
            return True
        return False

    def datagram() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outlet:
            outlet.connect(("127.0.0.1", 9))

    def second_process() -> None:
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    protections = {
        "network": refused(datagram) and refused(lambda: socket.socket(socket.AF_UNIX)),
        "filesystem": refused(lambda: os.open(os.devnull, os.O_WRONLY)),
        "reading": refused(lambda: os.open(settings.host_path, os.O_RDONLY)),
        "paths": refused(lambda: os.stat(settings.host_path)),
        "processes": refused(second_process) and refused(lambda: os.kill(os.getppid(), 0)),
        "waiting": refused(lambda: select.poll().poll(0)),
        "memory": refused(lambda: bytearray(settings.memory_mb << 20)),
    }
    os.write(files[0], json.dumps(protections).encode())


class Ended(NamedTuple):
    """How a child ended.

    Attributes:
      test: the test that it was at; `Child.tests` if it had done all.
      reason, message: as of `tasks.Failed`.
      waited: it used no CPU time, and the wall clock ended it.
    """

    test: int
    reason: str
    message: str
    waited: bool = False


def supervise(pid: int, control: int, settings: Settings, page: mmap.mmap, first: int, tests: int) -> Ended:
    """Waits for a child, or kills it at its limits with all it started.

    When the other end of `control` has gone, so has the program that started this one: it kills the child and exits.

    Args:
      first: the number of its first test; it is at the one before while it loads.
    """
    at, cpu_before, wall_before = first - 1, 0.0, time.monotonic()
    events, child, reason, waited = select.poll(), -1, "", False
    events.register(control, 0)  # wakes when the parent has gone
    with suppress(AttributeError, OSError):
        child = os.pidfd_open(pid)
        events.register(child, select.POLLIN)
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        cpu = usage.ru_utime + usage.ru_stime if ended else kernel.cpu_time(pid)
        now_at, began = PAGE.unpack_from(page)
        # The page is the child's to write: it can be at a later test only, and each has its CPU time once.
        if at < now_at <= tests and cpu_before <= began <= cpu + 0.05:
            at, cpu_before, wall_before = now_at, began, time.monotonic()
        if ended:
            break
        # A child cannot use more CPU time than passes, so it reaches no limit before `patience` is over.
        cpu_left = settings.cpu_seconds - (cpu - cpu_before)
        wall_left = wall_before + settings.wall_seconds - time.monotonic()
        patience = min(cpu_left, wall_left)
        woken = [] if patience <= 0 else events.poll(math.ceil(1e3 * patience) if child >= 0 else 2)
        orphaned = any(file == control for file, _ in woken)
        if patience <= 0 or orphaned:
            reason, waited = "time", cpu_left > 0
            os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            if orphaned:
                kill_rest(pid)
                os._exit(0)
            break
    kill_rest(pid)
    if child >= 0:
        os.close(child)
    if reason:
        return Ended(at, reason, "it waits for something" if waited else "", waited)
    if os.WIFSIGNALED(status):
        if cpu - cpu_before >= settings.cpu_seconds:
            return Ended(at, "time", "")
        return Ended(at, "error", f"ended by signal {os.WTERMSIG(status)}")
    return Ended(at, "error", f"it ended the process, with status {os.WEXITSTATUS(status)}")


def kill_rest(pid: int) -> None:
    """Kills the processes that a child started, if it had no process namespace; also those in another group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    own = f"/proc/self/task/{os.getpid()}/children"
    # Those of a killed process appear here in turn, see `kernel.adopt_orphans`.
    with suppress(OSError):  # there are none any more, or the system has no such file
        while True:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            with open(own) as children:
                for child in children.read().split():
                    os.kill(int(child), signal.SIGKILL)


def start(
    task: Callable[[list[int]], None], namespace: bool, files: list[int], cpu_seconds: float, file_bytes: int = 65536
) -> int:
    """Forks a child that locks itself down and runs task(files); its pid, -1 if refused."""
    parent = kernel.Parent()
    try:
        pid = kernel.fork(namespace)
    except OSError:
        parent.close()
        return -1
    if pid == 0:
        try:
            task(enter_child(files, cpu_seconds, file_bytes, parent))
        finally:
            os._exit(0)
    parent.close()
    return pid


def run_children(child: Child, control: int, settings: Settings, page: mmap.mmap, namespace: bool) -> None:
    """Runs a task in as many children as it takes, and completes its report."""
    files = [child.question, child.report]
    streams = [anonymous_file(), anonymous_file()] if child.program else []
    file_bytes = child.tests * (settings.output_bytes + ENTRY_BYTES) + ENTRY_BYTES
    first, failures = 0, 0
    while first < child.tests:
        begin = first  # of this child; the variable moves on

        def task(low: list[int], begin: int = begin) -> None:
            own = child._replace(question=low[0], report=low[1])
            run_task(own, begin, page, settings.output_bytes, low[2:])

        cpu_seconds = settings.cpu_seconds * (child.tests - first + 1)
        page[:] = bytes(len(page))  # no completion leaves something for another in the rest of it
        PAGE.pack_into(page, 0, first - 1, 0.0)
        # Ended process namespaces are freed a little later, so a refusal may be temporary.
        for _ in range(500):
            pid = start(task, namespace, files + streams, cpu_seconds, file_bytes)
            if pid > 0:
                break
            select.poll().poll(10)
        ended = supervise(pid, control, settings, page, first, child.tests)
        done = ended.test == child.tests
        if done and ended.reason != "time":
            break
        failures += 1
        # While it loads, or where it cannot be stopped otherwise, the rest would end in the same way. One that says
        # that it is done and goes on for too long has no rest, if it is honest.
        last = done or ended.test < first or ended.waited or failures == settings.failed_runs
        entries = [[ended.test, ended.reason, ended.message]] if ended.test >= first else []
        if last:
            entries.append([-1, ended.reason, ended.message])
        os.lseek(child.report, 0, os.SEEK_END)
        os.write(child.report, b"".join(b"\n" + json.dumps(entry).encode() + b"\n" for entry in entries))
        if last:
            break
        first = ended.test + 1
    for file in streams:
        os.close(file)


def anonymous_file() -> int:
    """An open file without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("stream")
    with tempfile.TemporaryFile() as named:
        return os.dup(named.fileno())


def spin(files: list[int]) -> None:
    """Uses CPU time forever."""
    while True:
        pass


def rehearse(page: mmap.mmap) -> None:
    """Runs a task in this process, so that children need not copy the pages of memory that a task writes to."""
    task = {"code": "def f(a):\n    return a", "call": "f", "inputs": [[[1], {}], [[""], {}], [[[]], {}], [[], {}]]}
    text = json.dumps(task).encode()
    for _ in range(20):
        question, report = anonymous_file(), anonymous_file()
        os.write(question, text)
        run_task(Child(question, report, False, 4), 0, page, 1000, [])
        os.close(report)


def measure(control: int, settings: Settings, page: mmap.mmap, namespace: bool) -> dict[str, bool]:
    """What holds on this machine: children try it."""

    def run(task: Callable[[list[int]], None], files: list[int], own: Settings) -> Ended:
        PAGE.pack_into(page, 0, -1, 0.0)
        pid = start(task, namespace, files, 1.0)
        return supervise(pid, control, own, page, 0, 1)

    answer, question = os.pipe()
    patient = settings._replace(cpu_seconds=1.0, wall_seconds=10.0)
    run(lambda files: probe(files, settings), [question], patient)
    os.close(question)  # or a probe that dies would leave the line below waiting for ever
    protections = json.loads(os.read(answer, 4096) or b"{}")
    os.close(answer)
    limited = run(spin, [], patient._replace(cpu_seconds=0.01))
    return dict.fromkeys(PROTECTIONS, False) | protections | {"cpu": limited.reason == "time" and not limited.waited}


def main(settings: Settings) -> None:
    """Locks down, reports to the parent which protections hold, then serves tasks until the parent ends."""
    if not settings.confined:
        kernel.give_up()
    fixed = kernel.fix_addresses()
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    lock_down(settings)
    page = mmap.mmap(-1, mmap.PAGESIZE)
    rehearse(page)
    pid = start(lambda files: None, True, [], 1.0)
    namespace = pid > 0 and kernel.has_namespaces()
    if pid > 0:
        supervise(pid, control.fileno(), settings, page, 0, 1)
    protections = measure(control.fileno(), settings, page, namespace) | {"repeatable": fixed}
    for standard in range(3):
        os.dup2(null, standard)
    os.close(null)
    control.sendall(json.dumps(protections).encode())
    os.environ.clear()
    gc.collect()
    gc.freeze()  # keeps the collector of a child from copying this process's pages
    while True:
        header, files, _, _ = socket.recv_fds(control, HEADER.size, 2)
        if len(header) < HEADER.size:
            return
        program, tests = HEADER.unpack(header)
        question, report = files
        run_children(Child(question, report, program, tests), control.fileno(), settings, page, namespace)
        for file in files:
            os.close(file)
        control.sendall(DONE)
