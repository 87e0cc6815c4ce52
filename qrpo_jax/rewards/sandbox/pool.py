"""The sandbox: runs untrusted Python functions on inputs, each completion in a separate, limited process.

The threat is code that a policy wrote: it may loop, allocate, fork, write, connect, exit, forge its report or attack
its supervisor. Expected values never enter the sandbox. The caller compares the outputs with `same_value`, so only
the right output earns a pass.

Outputs have JSON's types: None, bool, int, float, str, list and dict with str keys; tuples become lists. Another type,
an exception, or an input that the code never reached is a `Failed`.

Outcomes are repeatable: the hash seed, the random seed and addresses are fixed, entropy is refused, and the limit is
CPU time, not wall time. Only code that reads a clock can differ between runs.
"""

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Self

from qrpo_jax.rewards.sandbox import kernel
from qrpo_jax.rewards.sandbox.tasks import (
    DEFAULT_LIMITS,
    Failed,
    Limits,
    Outcome,
    Task,
    read_outcome,
    same_value,
)
from qrpo_jax.rewards.sandbox.worker import REPLY

__all__ = ["Failed", "Task", "Limits", "Outcome", "Sandbox", "same_value"]

# Makes this folder importable as a package without running the __init__ files above it, which may import JAX.
START = """
import sys, types
for name in ("qrpo_jax", "qrpo_jax.rewards", "qrpo_jax.rewards.sandbox"):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [sys.argv[1]]
from qrpo_jax.rewards.sandbox.worker import main
main(float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
"""


def anonymous_file(content: bytes = b"") -> int:
    """An open file without a name, at its start. Tasks enter and outputs leave through such files."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("task")
    else:
        with tempfile.TemporaryFile() as named:
            file = os.dup(named.fileno())
    while content:
        content = content[os.write(file, content) :]
    os.lseek(file, 0, os.SEEK_SET)
    return file


def as_json(task: Task) -> str:
    """The task in the form that the worker reads.

    Raises:
      ValueError: an input that is not JSON.
    """
    try:
        return json.dumps(task._asdict())
    except (TypeError, ValueError) as error:
        raise ValueError(f"inputs of a sandbox task must be JSON values: {error}") from error


class Zygote:
    """One locked-down interpreter, and the tasks sent to it that have not ended, oldest first."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        # Long enough that only code that waits for something reaches it, and never honest code on a busy machine.
        self.wall_seconds = 5 * limits.cpu_seconds + 10
        self.running: deque[tuple[int, int, int]] = deque()  # task, its number of inputs, its report
        self.since = time.monotonic()  # when the oldest task could begin
        self.control, child_end = socket.socketpair()
        kept = ("LD_LIBRARY_PATH", "PYTHONHOME")  # some interpreters do not start without these
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        numbers = (
            limits.cpu_seconds,
            self.wall_seconds,
            limits.memory_mb << 20,
            limits.output_bytes,
        )
        self.process = subprocess.Popen(
            # -s -P isolate enough, because the environment is set here; -I would also ignore PYTHONHASHSEED.
            [
                sys.executable,
                "-s",
                "-S",
                "-P",
                "-B",
                "-c",
                START,
                os.path.dirname(os.path.abspath(__file__)),
            ]
            + [str(number) for number in numbers],
            env={**environment, "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
            cwd="/",
            stdin=child_end.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        child_end.close()

    def greet(self) -> dict[str, bool]:
        """Waits until the interpreter is locked down and returns its protections.

        Raises:
          RuntimeError: it did not start.
        """
        self.control.settimeout(60)
        assert self.process.stderr is not None
        greeting = b""
        with suppress(OSError):
            greeting = self.control.recv(4096)
        if not greeting:
            self.process.kill()
            lines = self.process.stderr.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"the sandbox did not start: {lines[-1] if lines else 'no message'}")
        self.process.stderr.close()
        self.control.settimeout(None)
        return {name: bool(holds) for name, holds in json.loads(greeting).items()}

    def send(self, index: int, inputs: int, task: str) -> None:
        """Queues a task, as JSON."""
        question = anonymous_file(task.encode())
        answer = anonymous_file()
        if not self.running:
            self.since = time.monotonic()
        self.running.append((index, inputs, answer))
        with suppress(OSError):  # `receive` detects a zygote that has just died
            socket.send_fds(self.control, [b"j"], [question, answer])
        os.close(question)

    def receive(self) -> tuple[int, Outcome] | None:
        """The oldest task's outcome; None if the zygote died. Call it only when there is something to read."""
        reply = b""
        with suppress(OSError):
            reply = self.control.recv(REPLY.size, socket.MSG_WAITALL)
        return self.finish(*REPLY.unpack(reply)) if len(reply) == REPLY.size else None

    def finish(self, cause: bytes, code: int) -> tuple[int, Outcome]:
        """Removes the oldest task from the queue; its index, and its outcome for this end.

        Args:
          cause, code: as in `worker.REPLY`.
        """
        index, count, answer = self.running.popleft()
        bound = self.limits.output_bytes
        report = os.pread(answer, bound, 0)
        os.close(answer)
        self.since = time.monotonic()
        return index, read_outcome(cause, code, count, report, bound)

    def overdue(self) -> bool:
        """Whether an answer is missing for longer than the zygote's supervision of a task can take."""
        return bool(self.running) and time.monotonic() - self.since > self.wall_seconds + 30

    def close(self) -> None:
        """Ends it and everything it runs."""
        self.control.close()
        # On Linux its children are bound to die with it. Elsewhere it kills its child when it finds the socket closed.
        if not kernel.LINUX:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=1)
        self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()
        while self.running:
            os.close(self.running.popleft()[2])


class Sandbox:
    """Context manager holding `workers` zygotes; `run` sends tasks through them.

    `protections` lists what a completion cannot do on this machine; a child tries each at the start:
    "network" connect, "filesystem" write, "reading" read outside the interpreter's library,
    "processes" start or signal others, "memory" and "cpu" exceed the limits. "repeatable" means
    that addresses, on which some hashes depend, are the same in every run. A protection that the
    machine does not offer is False, and the tasks run without it.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, workers: int = os.cpu_count() or 1) -> None:
        for name, value, least in (
            ("cpu_seconds", limits.cpu_seconds, 0.01),
            ("memory_mb", limits.memory_mb, 64),
            ("output_bytes", limits.output_bytes, 256),
            ("workers", workers, 1),
        ):
            if not value >= least:
                raise ValueError(f"sandbox {name} is {value!r}, must be at least {least}")
        self.limits, self.workers = limits, workers
        self.protections: dict[str, bool] = {}
        self._zygotes: list[Zygote] = []

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _open(self) -> None:
        try:
            while len(self._zygotes) < self.workers:
                self._zygotes.append(Zygote(self.limits))
            protections = [zygote.greet() for zygote in self._zygotes]
        except BaseException:
            self._close()
            raise
        self.protections = {name: all(each[name] for each in protections) for name in protections[0]}

    def _close(self) -> None:
        while self._zygotes:
            self._zygotes.pop().close()

    def run(self, tasks: Sequence[Task], progress: Callable[[int], None] | None = None) -> list[Outcome]:
        """Outcomes in the order of `tasks`; `progress` is called with the number of tasks done so far.

        Equal tasks run once, because outcomes are repeatable.

        Raises:
          ValueError: an input that is not JSON.
        """
        if not self._zygotes:
            self._open()
        equal: dict[str, list[int]] = {}
        for index, task in enumerate(tasks):
            equal.setdefault(as_json(task), []).append(index)
        groups = list(equal.items())
        waiting = deque(range(len(groups)))
        outcomes: dict[int, Outcome] = {}
        try:
            while len(outcomes) < len(tasks):
                for zygote in self._zygotes:
                    # One more than it can run, so that it need not wait for this process.
                    while waiting and len(zygote.running) < 2:
                        text, members = groups[waiting[0]]
                        zygote.send(waiting.popleft(), len(tasks[members[0]].inputs), text)
                for group, outcome in self._replies(waiting):
                    outcomes.update(dict.fromkeys(groups[group][1], outcome))
                    if progress is not None:
                        progress(len(outcomes))
        except BaseException:
            self._close()  # answers to abandoned tasks must not reach the next call
            raise
        return [outcomes[index] for index in range(len(tasks))]

    def _replies(self, waiting: deque[int]) -> list[tuple[int, Outcome]]:
        """Waits for answers; a zygote that died or hangs is replaced, its current task "killed"."""
        selector = select.poll()
        for zygote in self._zygotes:
            selector.register(zygote.control, select.POLLIN)
        files = [file for file, _ in selector.poll(1000)]
        readable = [zygote for zygote in self._zygotes if zygote.control.fileno() in files]
        replies = []
        for place, zygote in enumerate(self._zygotes):
            reply = zygote.receive() if zygote in readable else None
            if reply is None and (zygote in readable or zygote.overdue()):
                if zygote.running:
                    zygote.process.kill()
                    zygote.process.wait()
                    reply = zygote.finish(b"s", 9)
                waiting.extendleft(index for index, _, _ in reversed(zygote.running))
                zygote.close()
                self._zygotes[place] = Zygote(self.limits)
                self._zygotes[place].greet()
            if reply is not None:
                replies.append(reply)
        return replies
