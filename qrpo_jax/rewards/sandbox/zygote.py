"""One locked-down interpreter of the sandbox, as the program that sends it tasks sees it."""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from contextlib import suppress

from qrpo_jax.rewards.sandbox import kernel, launch
from qrpo_jax.rewards.sandbox.tasks import Limits, Outputs, Task, read_report
from qrpo_jax.rewards.sandbox.worker import DONE, ENTRY_BYTES, HEADER, Settings

STARTING_SECONDS = 120  # a busy machine, and modules of a user's environment


def anonymous_file(content: bytes = b"") -> int:
    """An open file without a name. Tasks enter and reports leave through such files."""
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
    inputs = [one if isinstance(one, str) else [one.positional, dict(one.named)] for one in task.inputs]
    try:
        return json.dumps({"code": task.code, "call": task.call, "inputs": inputs})
    except (TypeError, ValueError) as error:
        raise ValueError(f"inputs of a sandbox task must be JSON values: {error}") from error


class Zygote:
    """An interpreter, and the tasks sent to it that have not ended, oldest first."""

    def __init__(self, limits: Limits, *, level: str, python: str = "", preload: tuple[str, ...] = ()) -> None:
        self.limits = limits
        # Long enough that only code that waits for something reaches it, and never honest code on a busy machine.
        self.wall_seconds = 5 * limits.cpu_seconds + 10
        self.running: deque[tuple[int, int, int]] = deque()  # task, its number of tests, its report
        self.since = time.monotonic()  # when the oldest task could begin
        self.control, child_end = socket.socketpair()
        # A path that code must not see. It is removed when the interpreter has tried.
        self._host_file = tempfile.NamedTemporaryFile(prefix="outside-the-sandbox-")  # noqa: SIM115
        settings = Settings(
            limits.cpu_seconds,
            limits.memory_mb,
            limits.output_bytes,
            limits.failed_runs,
            self.wall_seconds,
            list(preload),
            self._host_file.name,
            level != "limits",
        )
        self._confined = level != "limits"
        # A file and no pipe: bubblewrap would end on a pipe without a reader, and leave its child waiting for ever.
        self._info = anonymous_file() if level == "bubblewrap" else -1
        try:
            self.process = launch.start(settings, python, preload, child_end.fileno(), self._info)
        except BaseException:
            self.control.close()
            self._host_file.close()
            self._close_info()
            raise
        finally:
            child_end.close()

    def greet(self) -> dict[str, bool]:
        """Waits until the interpreter is locked down, and returns what it found to hold.

        Raises:
          NotStartedError: with the last line that it wrote.
        """
        self.control.settimeout(STARTING_SECONDS)
        assert self.process.stderr is not None
        greeting = b""
        with suppress(OSError):
            greeting = self.control.recv(4096)
        self._host_file.close()
        if not greeting:
            self._kill()
            lines = self.process.stderr.read().decode(errors="replace").strip().splitlines()
            raise launch.NotStartedError(lines[-1] if lines else "no message")
        self.process.stderr.close()
        self.control.settimeout(None)
        return {name: bool(holds) for name, holds in json.loads(greeting).items()}

    def send(self, index: int, program: bool, tests: int, task: str) -> None:
        """Queues a task, as JSON."""
        question = anonymous_file(task.encode())
        report = anonymous_file()
        if not self.running:
            self.since = time.monotonic()
        self.running.append((index, tests, report))
        with suppress(OSError):  # `receive` detects a zygote that has just died
            socket.send_fds(self.control, [HEADER.pack(program, tests)], [question, report])
        os.close(question)

    def receive(self) -> tuple[int, Outputs] | None:
        """The oldest task's outputs; None if the zygote died. Call it only when there is something to read."""
        reply = b""
        with suppress(OSError):
            reply = self.control.recv(len(DONE))
        return self.finish() if reply == DONE else None

    def finish(self, end: bytes = b"") -> tuple[int, Outputs]:
        """Removes the oldest task from the queue; its index, and its outputs.

        Args:
          end: a line for the end of its report.
        """
        index, tests, file = self.running.popleft()
        report = os.pread(file, os.fstat(file).st_size, 0) + end
        os.close(file)
        self.since = time.monotonic()
        return index, read_report(report, tests, self.limits.output_bytes + ENTRY_BYTES)

    def overdue(self) -> bool:
        """Whether an answer is missing for longer than the zygote's supervision of a task can take."""
        if not self.running:
            return False
        most = self.wall_seconds * (self.running[0][1] + 1) + 30
        return time.monotonic() - self.since > most

    def abandon(self) -> tuple[int, Outputs] | None:
        """Ends it; the outputs of the task that it was at, if it had one."""
        self._kill()
        return self.finish(b'\n[-1, "error", "the sandbox ended"]\n') if self.running else None

    def close(self) -> None:
        """Ends it and everything it runs."""
        self.control.close()
        self._host_file.close()
        # Confined children are bound to die with it. Otherwise it kills its child when it finds the socket closed; and
        # inside a bubblewrap that is still starting, it ends itself.
        if not (kernel.LINUX and self._confined) or (self._info >= 0 and not self._inner()):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=5)
        self._kill()
        self._close_info()
        if self.process.stderr is not None:
            self.process.stderr.close()
        while self.running:
            os.close(self.running.popleft()[2])

    def _inner(self) -> int:
        """The number of the process inside bubblewrap, which bubblewrap's end does not end; 0: none yet."""
        with suppress(OSError, ValueError, KeyError):
            return int(json.loads(os.pread(self._info, 4096, 0))["child-pid"])
        return 0

    def _close_info(self) -> None:
        if self._info >= 0:
            os.close(self._info)
            self._info = -1

    def _kill(self) -> None:
        if self.process.poll() is None and (inner := self._inner()):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(inner, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
