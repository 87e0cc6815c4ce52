"""The sandbox in a container, or on another machine: a command that starts Python there, such as one of podman or srun.

For clusters whose nodes forbid what the sandbox needs. What is sent and what comes back is the same: code and
arguments go, untrusted values return. The command brings nothing but Python 3.11 or newer; this package's modules
travel on its command line.
"""

import json
import os
import select
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Self

from qrpo_jax.rewards.sandbox import launch
from qrpo_jax.rewards.sandbox.pool import LEVELS, IsolationError
from qrpo_jax.rewards.sandbox.tasks import DEFAULT_LIMITS, Failed, Limits, Outputs, Task, failed
from qrpo_jax.rewards.sandbox.zygote import as_json

RELAY = ("values", "kernel", "tasks", "worker", "launch", "zygote", "pool", "relay")
START = (
    launch.BOOT
    + """
from qrpo_jax.rewards.sandbox.relay import main
main(json.loads(sys.argv[2]))
"""
)
STARTING_SECONDS = 600.0  # a queue for a node, or an image to load
SILENT_SECONDS = 60.0  # the far end says that it is alive more often than that
STARTS = 3  # in a row without one answer, before it is given up
LONGEST = 1 << 28  # bytes of a line


class EndedError(Exception):
    """The far end has ended, is silent, or does not keep the protocol."""


class RemoteSandbox:
    """A `Sandbox` at the other end of a command, with the same interface.

    Attributes:
      level, protections, notes: as of `Sandbox`, measured inside. What the container adds to it cannot be measured.
    """

    def __init__(
        self,
        command: str,
        limits: Limits = DEFAULT_LIMITS,
        workers: int = 0,
        *,
        isolation: str = "auto",
        require: str = "limits",
        python: str = "",
        preload: Sequence[str] = (),
    ) -> None:
        """Nothing runs before the first task, or `with`.

        Args:
          command: starts Python, with its input and output as this program's pipes: "podman run --rm -i IMAGE python3".
          workers: 0: one for each core there.
          python: path there.
        """
        self._command = shlex.split(command)
        if not self._command:
            raise ValueError("the command of a remote sandbox is empty; it must start Python")
        self.limits, self.workers = limits, workers
        self.level, self.protections, self.notes = "", dict[str, bool](), list[str]()
        self._require = require
        self._options: dict[str, Any] = {"limits": list(limits), "workers": workers, "isolation": isolation}
        self._options |= {"python": python, "preload": list(preload)}
        self._process: subprocess.Popen[bytes] | None = None
        self._read = b""

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def run(self, tasks: Sequence[Task], done: Callable[[int, Outputs], None] | None = None) -> list[Outputs]:
        """As `Sandbox.run`. Tasks whose answers a failure of the far end took are sent again.

        Raises:
          IsolationError: the far end does not start, or ends again and again.
        """
        texts = [as_json(task) for task in tasks]
        outcomes: dict[int, Outputs] = {}
        starts = 0
        while len(outcomes) < len(tasks):
            missing = [index for index in range(len(tasks)) if index not in outcomes]
            before = len(outcomes)
            try:
                if self._process is None:
                    self._open()
                for place, outputs in self._answers([texts[index] for index in missing]):
                    index = missing[place]
                    outcomes[index] = read_outputs(outputs, len(tasks[index].inputs))
                    if done is not None:
                        done(index, outcomes[index])
            except EndedError as error:
                self._close()
                starts = 1 if len(outcomes) > before else starts + 1
                if starts == STARTS:
                    raise IsolationError(
                        f"the sandbox's command ended {STARTS} times without an answer: {error}"
                    ) from None
            except BaseException:
                self._close()  # answers to abandoned tasks must not reach the next call
                raise
        return [outcomes[index] for index in range(len(tasks))]

    def _open(self) -> None:
        arguments = ["-s", "-c", START, launch.bundle(RELAY), json.dumps(self._options)]
        self._read = b""
        try:
            self._process = subprocess.Popen(
                [*self._command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as error:
            raise IsolationError(f"the sandbox's command {self._command[0]!r} does not start: {error}") from error
        # Read all the time, or a full pipe would hold the far end up; the last lines are kept for messages.
        self._errors: list[str] = []
        threading.Thread(target=self._read_errors, args=(self._process.stderr,), daemon=True).start()
        try:
            greeting = self._line(STARTING_SECONDS)
            self.level = greeting["level"] if greeting.get("level") in LEVELS else "limits"
            self.protections = {str(name): bool(holds) for name, holds in greeting["protections"].items()}
            self.notes = [str(note) for note in greeting["notes"]]
        except (EndedError, LookupError, TypeError, AttributeError) as error:
            self._close()
            raise IsolationError(f"the sandbox's command {self._command[0]!r} does not start Python: {error}") from None
        if LEVELS.index(self.level) < LEVELS.index(self._require):
            self._close()
            raise IsolationError(
                f"model-written code is isolated by {self.level!r} inside {self._command[0]!r}, {self._require!r} is "
                f"required: {'; '.join(self.notes)}"
            )

    def _close(self) -> None:
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()  # its input ends, and with it the far end
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _answers(self, texts: list[str]) -> Any:
        """Sends tasks, and yields the place and the untrusted outputs of each as it comes back."""
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(b"".join(f"{line}\n".encode() for line in (str(len(texts)), *texts)))
            self._process.stdin.flush()
        except OSError as error:
            raise EndedError(self._last(error)) from None
        left = set(range(len(texts)))
        while left:
            answer = self._line(SILENT_SECONDS)
            if "alive" in answer:
                continue
            if type(answer.get("index")) is not int or answer["index"] not in left:
                raise EndedError("it answered what was not asked")
            left.remove(answer["index"])
            yield answer["index"], answer.get("outputs")

    def _line(self, seconds: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        file, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._read:
            ready, _, _ = select.select([file], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(file, 1 << 20) if ready else b""
            if not piece:
                raise EndedError(self._last("it was silent" if not ready else "it ended"))
            self._read += piece
            if len(self._read) > LONGEST:
                raise EndedError("it answered with a line that does not end")
        line, _, self._read = self._read.partition(b"\n")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise EndedError(self._last(f"it answered {line[:80]!r}"))
        return answer

    def _read_errors(self, pipe: Any) -> None:
        for line in pipe:
            if text := line.decode(errors="replace").strip():
                self._errors = [*self._errors[-4:], text[:300]]
        pipe.close()

    def _last(self, otherwise: object) -> str:
        time.sleep(0.1)  # for what it says last
        return self._errors[-1] if self._errors else str(otherwise)


def read_outputs(given: Any, count: int) -> Outputs:
    """Outputs of a task of `count` inputs, from an untrusted answer."""
    if not isinstance(given, list) or len(given) != count:
        return (Failed("error", "its report is unreadable"),) * count
    pairs = [one if isinstance(one, list) and len(one) == 2 else ["error", "its report is unreadable"] for one in given]
    return tuple(value if label == "value" else failed(label, value) for label, value in pairs)
