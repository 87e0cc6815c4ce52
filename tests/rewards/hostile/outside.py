"""What code in the sandbox must not reach, and runs of attacks on it. Without pytest, for interpreters that lack it."""

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from qrpo_jax.rewards.sandbox import kernel
from qrpo_jax.rewards.sandbox.pool import Call, Failed, Limits, Outputs, Sandbox, Task
from tests.rewards.hostile.attack import Attack, Value

LIMITS = Limits(cpu_seconds=0.1, memory_mb=128, output_bytes=4096)
ANY = "any value"


class Outside:
    """What code in the sandbox must not reach: files, a named pipe, sockets that listen, a process, a secret.

    Attributes:
      secret: in a file, in this process's environment and in its memory.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.secret, self.name = folder, secrets.token_hex(16), f"outside-{secrets.token_hex(8)}"
        (folder / "secret").write_text(self.secret)
        (folder / "kept").write_text("kept")
        os.mkfifo(folder / "pipe")
        self.pipe = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        stack.callback(os.close, self.pipe)
        os.environ["SECRET_OF_THE_TRAINER"] = self.secret
        stack.callback(os.environ.pop, "SECRET_OF_THE_TRAINER")
        self.sockets = [
            socket.create_server(("127.0.0.1", 0)),
            socket.socket(socket.AF_UNIX),
            socket.socket(socket.AF_UNIX),
        ]
        self.sockets[1].bind(str(folder / "socket"))
        self.sockets[2].bind("\0" + self.name if kernel.LINUX else str(folder / self.name))
        for one in self.sockets:
            one.listen()
            one.setblocking(False)
            stack.callback(one.close)
        self.process = stack.enter_context(subprocess.Popen(["sleep", "1000"]))
        stack.callback(self.process.kill)
        self.before = self.state()

    def names(self) -> str:
        """The line of code that tells a program where all that is."""
        port = self.sockets[0].getsockname()[1]
        return (
            f"FOLDER, PORT, NAME, OUTSIDE_PID, TRAINER_PID = "
            f"{str(self.folder)!r}, {port}, {self.name!r}, {self.process.pid}, {os.getpid()}\n"
        )

    def state(self) -> list[Any]:
        """All of it that a program could change."""
        entries = sorted((one.name, one.lstat().st_mode, one.lstat().st_mtime_ns) for one in self.folder.iterdir())
        kept = (self.folder / "kept").read_text(), (self.folder / "secret").read_text()
        attributes = os.listxattr(self.folder) + os.listxattr(self.folder / "kept") if hasattr(os, "listxattr") else []
        connected, written = 0, b""
        for one in self.sockets:
            with suppress(BlockingIOError):
                one.accept()
                connected += 1
        with suppress(BlockingIOError):
            written = os.read(self.pipe, 99)
        process = self.process.pid
        stopped = (
            subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout[:1] == "T"
        )
        return [
            *(entries, kept, attributes, connected, written, stopped),
            *(self.process.poll(), os.getpriority(os.PRIO_PROCESS, process)),
        ]


class Ran:
    """Attacks at one level, each followed by an honest completion in the same worker.

    Attributes:
      level, notes: as of the sandbox: what is held.
      outputs: of each attack, by its name.
    """

    def __init__(self, level: str, attacks: Sequence[Attack], outside: Outside) -> None:
        self._attacks = [attack for attack in attacks if level in attack.levels]
        tasks: list[Task] = []
        for index, attack in enumerate(self._attacks):
            tasks.append(Task(outside.names() + attack.code, attack.call, attack.inputs))
            tasks.append(honest(index))
        began = time.monotonic()
        with Sandbox(LIMITS, workers=1, isolation=level) as sandbox:
            self.level, self.notes = sandbox.level, sandbox.notes
            outputs = sandbox.run(tasks)
        self.seconds = time.monotonic() - began
        self.outputs = {one.name: found for one, found in zip(self._attacks, outputs[::2], strict=True)}
        self._honest = outputs[1::2]

    def wrong(self, among: Sequence[Attack]) -> list[str]:
        """The attacks with a verdict that is not right, and what came of them."""
        ran = [attack for attack in among if attack in self._attacks]
        return [f"{a.name}: {self.outputs[a.name]!r:.300}" for a in ran if not right(a, self.outputs[a.name])]

    def harmed(self) -> list[str]:
        """The attacks after which an honest completion did not get its outputs."""
        right = [([5, index], ["xy", index]) for index in range(len(self._honest))]
        return [a.name for a, one, two in zip(self._attacks, self._honest, right, strict=True) if one != two]

    def leaks(self, secret: str) -> list[str]:
        """The attacks from which a secret came out."""
        return [name for name, outputs in self.outputs.items() if secret in repr(outputs)]


def honest(index: int) -> Task:
    """One that no other equals, because equal tasks run once."""
    return Task(f"def f(a, b):\n    return [a + b, {index}]", "f", (Call((2, 3)), Call(("x", "y"))))


def right(attack: Attack, outputs: Outputs) -> bool:
    """Whether each output is one of those that are right."""
    return len(outputs) == len(attack.right) and all(map(matches, outputs, attack.right))


def matches(output: Any, allowed: Any) -> bool:
    if isinstance(allowed, frozenset | list):
        return any(matches(output, one) for one in allowed)
    if isinstance(allowed, Value):
        same = type(output) is type(allowed.value) and bool(output == allowed.value)
        return allowed.value == ANY or same
    return isinstance(output, Failed) and output.reason == allowed
