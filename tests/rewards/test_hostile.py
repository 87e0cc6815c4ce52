"""Hostile programs at every level that this machine holds: nothing escapes, every verdict is right, and the next honest
completion in the same worker is unharmed."""

import os
import secrets
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from qrpo_jax.rewards.sandbox import kernel
from qrpo_jax.rewards.sandbox.pool import Call, Failed, IsolationError, Limits, Outputs, Sandbox, Task
from tests.rewards.hostile import classes, files, loops, memory, processes, programs, reports
from tests.rewards.hostile.attack import EVERYWHERE, Attack, Value

LIMITS = Limits(cpu_seconds=0.1, memory_mb=128, output_bytes=4096)
KINDS = {
    kind.__name__.rpartition(".")[2]: kind for kind in (classes, files, loops, memory, processes, programs, reports)
}
ATTACKS: list[Attack] = [attack for kind in KINDS.values() for attack in kind.ATTACKS]


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
    """Every attack at one level, each followed by an honest completion in the same worker."""

    def __init__(self, level: str, outside: Outside) -> None:
        attacks = [attack for attack in ATTACKS if level in attack.levels]
        tasks: list[Task] = []
        for index, attack in enumerate(attacks):
            tasks.append(Task(outside.names() + attack.code, attack.call, attack.inputs))
            tasks.append(honest(index))
        began = time.monotonic()
        with Sandbox(LIMITS, workers=1, isolation=level) as sandbox:
            self.level, self.notes = sandbox.level, sandbox.notes
            outputs = sandbox.run(tasks)
        self.seconds = time.monotonic() - began
        self.outputs = {attack.name: one for attack, one in zip(attacks, outputs[::2], strict=True)}
        self.honest = outputs[1::2]


def honest(index: int) -> Task:
    """One that no other equals, because equal tasks run once."""
    return Task(f"def f(a, b):\n    return [a + b, {index}]", "f", (Call((2, 3)), Call(("x", "y"))))


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    with ExitStack() as stack:
        yield Outside(tmp_path_factory.mktemp("outside"), stack)


@pytest.fixture(scope="module")
def ran(outside: Outside) -> dict[str, Ran]:
    """By level; at the same time, because each uses one core."""

    def run(level: str) -> Ran | None:
        try:
            return Ran(level, outside)
        except IsolationError:  # bubblewrap is not here
            return None

    with ThreadPoolExecutor(len(EVERYWHERE)) as pool:
        runs = dict(zip(EVERYWHERE, pool.map(run, EVERYWHERE), strict=True))
    for level, one in runs.items():
        print(f"{level}: {len(one.outputs)} attacks in {one.seconds:.1f} s" if one else f"{level}: not here")
    return {level: one for level, one in runs.items() if one is not None and one.level == level}


def need(ran: dict[str, Ran], level: str) -> Ran:
    if level not in ran:
        pytest.skip(f"this machine does not hold level {level}")
    return ran[level]


def right(attack: Attack, outputs: Outputs) -> bool:
    """Whether each output is one of those that are right."""
    return len(outputs) == len(attack.right) and all(map(matches, outputs, attack.right))


def matches(output: Any, allowed: Any) -> bool:
    if isinstance(allowed, frozenset | list):
        return any(matches(output, one) for one in allowed)
    if isinstance(allowed, Value):
        same = type(output) is type(allowed.value) and bool(output == allowed.value)
        return allowed.value == processes.ANY or same
    return isinstance(output, Failed) and output.reason == allowed


def test_there_are_many_attacks_and_no_two_have_one_name() -> None:
    counts = Counter(attack.name for attack in ATTACKS)
    assert len(ATTACKS) >= 200 and counts.most_common(1)[0][1] == 1, (len(ATTACKS), counts.most_common(3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", EVERYWHERE)
def test_every_verdict_is_right(ran: dict[str, Ran], level: str, kind: str) -> None:
    one = need(ran, level)
    attacks = [attack for attack in KINDS[kind].ATTACKS if level in attack.levels]
    wrong = [f"{a.name}: {one.outputs[a.name]!r:.300}" for a in attacks if not right(a, one.outputs[a.name])]
    assert not wrong, f"{len(wrong)} of {len(attacks)}: {wrong}"


@pytest.mark.parametrize("level", EVERYWHERE)
def test_the_next_honest_completion_is_unharmed(ran: dict[str, Ran], level: str) -> None:
    found = need(ran, level).honest
    assert [one for index, one in enumerate(found) if one != ([5, index], ["xy", index])] == []


def test_nothing_outside_is_reached_or_leaks(ran: dict[str, Ran], outside: Outside) -> None:
    assert ran
    assert outside.state() == outside.before
    leaks = [
        (level, name)
        for level, one in ran.items()
        for name, outputs in one.outputs.items()
        if outside.secret in repr(outputs)
    ]
    assert leaks == []


@pytest.mark.parametrize("level", ["kernel", "bubblewrap"])
def test_the_kernel_lets_no_system_call_through_but_those_allowed(ran: dict[str, Ran], level: str) -> None:
    one = need(ran, level)
    place = 1 if os.uname().machine == "aarch64" else 0
    listed = [entry.split()[1 + place] for entry in kernel.ALLOWED.replace("\n", ",").split(",") if entry]
    allowed = {int(number) for number in listed if number != "-"} | {rule.numbers[place] for rule in kernel.RULES}
    for attack in processes.SWEEPS:
        (found,) = one.outputs[attack.name]
        assert isinstance(found, list), (attack.name, found)
        beyond = sorted(set(found) - allowed)
        assert not beyond, f"{attack.name}: {beyond}"
    most = set(one.outputs[processes.SWEEPS[1].name][0])
    assert len(most) > 40, sorted(most)  # or the sweep finds nothing
