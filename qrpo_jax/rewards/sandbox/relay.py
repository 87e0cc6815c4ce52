"""The far end of `remote.py`: a sandbox inside a container, which gets tasks as lines of JSON and answers with lines.

The first line out says what is held there. Then, for each run: a line with the number of tasks, a line for each task;
and back a line for each, in the order in which they end. A line `{"alive": true}` comes at times, whatever happens.
"""

import json
import os
import sys
import threading
from typing import Any

from qrpo_jax.rewards.sandbox.pool import Sandbox
from qrpo_jax.rewards.sandbox.tasks import Call, Failed, Limits, Outputs, Task

ALIVE_SECONDS = 10.0


def as_lines(outputs: Outputs) -> list[list[Any]]:
    """Outputs as JSON has them: `["value", value]` or `[reason, message]`."""
    return [[one.reason, one.message] if isinstance(one, Failed) else ["value", one] for one in outputs]


def read_task(line: str) -> Task:
    """A task, from the line that `zygote.as_json` makes of it."""
    given = json.loads(line)
    inputs = (one if isinstance(one, str) else Call(*one) for one in given["inputs"])
    return Task(given["code"], given["call"], tuple(inputs))


def main(options: dict[str, Any]) -> None:
    """Serves until its input ends.

    Args:
      options: arguments of `Sandbox`; `limits` as a list.
    """
    out, lock = os.fdopen(os.dup(1), "w"), threading.Lock()
    os.dup2(2, 1)  # what is printed by mistake is no answer
    workers = options.pop("workers") or os.cpu_count() or 1

    def say(answer: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(answer) + "\n")
            out.flush()

    def beat() -> None:
        while not ended.wait(ALIVE_SECONDS):
            say({"alive": True})

    ended = threading.Event()
    with Sandbox(Limits(*options.pop("limits")), workers, **options) as sandbox:
        say({"level": sandbox.level, "protections": sandbox.protections, "notes": sandbox.notes})
        threading.Thread(target=beat, daemon=True).start()
        for line in sys.stdin:
            tasks = [read_task(sys.stdin.readline()) for _ in range(json.loads(line))]
            sandbox.run(tasks, lambda index, outputs: say({"index": index, "outputs": as_lines(outputs)}))
    ended.set()
