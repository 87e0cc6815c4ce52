"""The interpreter of the sandbox: it locks itself down, then runs each completion in a new child.

`pool.py` starts it with nothing imported but the standard library. It never sees an expected value, and it does not
read the tasks: a task arrives as two open files, one to read and one for the answer, which go to the new child. So no
child finds another task's code or answers in its memory.
"""

import builtins
import gc
import importlib
import json
import math
import os
import random
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from qrpo_jax.rewards.sandbox import kernel

REPLY = struct.Struct("=ci")  # how a child ended: e(xit), s(ignal), c(pu), w(all clock); its code

# Imported once here, because a child's fork is cheap and its import is not (and may be forbidden).
PRELOADED = (
    "bisect cmath collections copy dataclasses datetime decimal enum fractions functools heapq "
    "itertools json math operator random re statistics string typing"
)

FILES = 32  # open files of this process and of a completion


def lock_down(memory_bytes: int, output_bytes: int) -> None:
    """Forbids what can be forbidden once, for this process and all its children."""
    for name in PRELOADED.split():
        importlib.import_module(name)
    random.seed(0)
    kernel.isolate()
    kernel.restrict_files(sys.path)
    limit("CORE", 0)
    limit("NOFILE", FILES)
    limit("FSIZE", output_bytes)
    limit("AS", memory_bytes)


def limit(name: str, value: int) -> None:
    """Sets one resource limit, both soft and hard, where the system has it."""
    with suppress(AttributeError, ValueError, OSError):
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))


def enter_child(files: list[int], cpu_seconds: float, namespace: bool, parent: kernel.Parent) -> list[int]:
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
    if not namespace:
        random.seed(0)  # os.fork changes the seed
        limit("NPROC", 0)
        kernel.filter_calls(namespace)
    kernel.drop_capabilities()
    return low


def plain(value: Any) -> Any:
    """The value in JSON's types, tuples as lists; TypeError for anything else."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: plain(item) for key, item in value.items()}
    raise TypeError("not a JSON value")


def kind(error: BaseException) -> str:
    """The name of the error's class; "Exception" if a hostile class hides it."""
    try:
        return str(type(error).__name__)[:80]
    except BaseException:
        return "Exception"


def run_task(files: list[int]) -> None:
    """Runs the task in files[0]; writes one JSON line an input to files[1], as each is done."""
    task = json.loads(b"".join(iter(lambda: os.read(files[0], 65536), b"")))

    def write(label: str, value: Any) -> None:
        os.write(files[1], (json.dumps([label, value]) + "\n").encode())

    try:
        namespace: dict[str, Any] = {"__name__": "completion", "__builtins__": builtins}
        exec(compile(task["code"], "completion", "exec"), namespace)
        function = eval(task["call"], namespace)
    except BaseException as error:
        write("load", kind(error))
        return
    for arguments in task["inputs"]:
        try:
            write("value", plain(function(*arguments)))
        except BaseException as error:
            write("raised", kind(error))


def probe(files: list[int], memory_bytes: int) -> None:
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
        "reading": refused(lambda: os.listdir("/")),
        "processes": refused(second_process) and refused(lambda: os.kill(os.getppid(), 0)),
        "memory": refused(lambda: bytearray(memory_bytes)),
    }
    os.write(files[0], json.dumps(protections).encode())


def supervise(pid: int, control: int, cpu_seconds: float, wall_seconds: float) -> bytes:
    """Waits for the child, or kills it at its limits with all it started; returns a REPLY.

    When the other end of `control` has gone, so has the program that started this one: it kills the child and exits.
    """
    deadline = time.monotonic() + wall_seconds
    events, child, cause, orphaned = select.poll(), -1, b"e", False
    events.register(control, 0)  # wakes when the parent has gone
    with suppress(AttributeError, OSError):
        child = os.pidfd_open(pid)
        events.register(child, select.POLLIN)
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        # A child cannot use more CPU time than passes, so it reaches no limit before `patience` is over.
        cpu_left, wall_left = cpu_seconds - kernel.cpu_time(pid), deadline - time.monotonic()
        patience = min(cpu_left, wall_left)
        woken = [] if patience <= 0 else events.poll(math.ceil(1e3 * patience) if child >= 0 else 2)
        orphaned = any(file == control for file, _ in woken)
        if patience <= 0 or orphaned:
            cause = b"c" if cpu_left <= 0 else b"w"
            os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            break
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # the processes that it started, if it had no process namespace
    if orphaned:
        os._exit(0)
    if child >= 0:
        os.close(child)
    if cause == b"e" and os.WIFSIGNALED(status):
        cause = b"c" if usage.ru_utime + usage.ru_stime >= cpu_seconds else b"s"
    return REPLY.pack(cause, os.waitstatus_to_exitcode(status))


def start(task: Callable[[list[int]], None], namespace: bool, files: list[int], cpu_seconds: float) -> int:
    """Forks a child that locks itself down and runs task(files); its pid, -1 if refused."""
    parent = kernel.Parent()
    try:
        pid = kernel.fork(namespace)
    except OSError:
        parent.close()
        return -1
    if pid == 0:
        try:
            task(enter_child(files, cpu_seconds, namespace, parent))
        finally:
            os._exit(0)
    parent.close()
    return pid


def spin(files: list[int]) -> None:
    """Uses CPU time forever."""
    while True:
        pass


def rehearse() -> None:
    """Runs a task in this process, so that children need not copy the pages of memory that a task writes to."""
    task = {"code": "def f(a):\n    return a", "call": "f", "inputs": [[1], [""], [[]], []]}
    for _ in range(20):
        files = list(os.pipe())
        question, into = os.pipe()
        os.write(into, json.dumps(task).encode())
        os.close(into)
        run_task([question, files[1]])
        for file in (*files, question):
            os.close(file)


def main(cpu_seconds: float, wall_seconds: float, memory_bytes: int, output_bytes: int) -> None:
    """Locks down, reports to the parent which protections hold, then serves tasks until the parent ends."""
    fixed = kernel.fix_addresses()
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    lock_down(memory_bytes, output_bytes)
    rehearse()
    answer, question = os.pipe()
    pid = start(lambda files: None, True, [], 1.0)
    if namespace := pid > 0 and kernel.MACHINE is not None:
        kernel.filter_calls(namespace)
    if pid > 0:
        supervise(pid, control.fileno(), 1.0, 10.0)
    pid = start(lambda files: probe(files, memory_bytes), namespace, [question], 1.0)
    supervise(pid, control.fileno(), 1.0, 10.0)
    protections = json.loads(os.read(answer, 4096)) | {"repeatable": fixed}
    pid = start(spin, namespace, [], 0.01)
    protections["cpu"] = supervise(pid, control.fileno(), 0.01, 10.0)[:1] == b"c"
    for standard in range(3):
        os.dup2(null, standard)
    for file in (null, answer, question):
        os.close(file)
    control.sendall(json.dumps(protections).encode())
    os.environ.clear()
    gc.collect()
    gc.freeze()  # keeps the collector of a child from copying this process's pages
    while True:
        message, files, _, _ = socket.recv_fds(control, 1, 2)
        if not message:
            return
        # Ended process namespaces are freed a little later, so a refusal may be temporary.
        for _ in range(500):
            pid = start(run_task, namespace, files, cpu_seconds)
            if pid > 0:
                break
            select.poll().poll(10)
        for file in files:
            os.close(file)
        control.sendall(supervise(pid, control.fileno(), cpu_seconds, wall_seconds))
