"""The driver's end of the pipe to a worker: a process that makes a training step when it is asked for one."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NoReturn

WORKERS = Path(__file__).parent / "workers"
ROOT = WORKERS.parents[2]


class Worker:
    """A started worker. Creating it waits until the worker is ready for its first step.

    Args:
      name: of the side, for messages.
      command: interpreter, script in `workers`, arguments.
      log: folder for what it writes to standard error; None lets it write to ours.

    Attributes:
      facts: what the worker reported when it was ready.

    Raises:
      SystemExit: it ended before it was ready; the message has the end of its log.
    """

    def __init__(self, name: str, command: list[str], log: Path | None) -> None:
        interpreter, script, *arguments = command
        self._name = name
        self._log = None if log is None else log / f"{name}.log"
        errors = None if self._log is None else self._log.open("w")
        self._process = subprocess.Popen(
            [interpreter, str(WORKERS / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        self.facts = self._report()

    def step(self) -> dict[str, Any]:
        """Lets the worker make one step and returns its report."""
        self._say("step")
        return self._report()

    def stop(self) -> None:
        """Ends the worker."""
        self._say("stop")
        self._process.wait()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def _report(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else self._fail()

    def _fail(self) -> NoReturn:
        end = "" if self._log is None else "\n" + "\n".join(self._log.read_text().splitlines()[-20:])
        raise SystemExit(f"worker {self._name} ended with status {self._process.wait()}{end}")
