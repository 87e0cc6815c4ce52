"""The worker's end of the pipe to `peers`: one training step for each line that arrives. Standard library only.

A worker runs in an interpreter of its own, which may lack everything but the trainer that it measures.
"""

import json
import os
import resource
import sys
import time
from typing import Any


class Turns:
    """Steps of this process, each made when the driver asks for it.

    A trainer owns its loop, so the turns are taken from inside of it: `wait` returns when the driver asks for a step,
    and ends the process when it asks for none; `done` reports the step. What libraries print goes to standard error.
    """

    def __init__(self) -> None:
        self._reports = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._start = (0.0, 0.0)

    def ready(self, **facts: Any) -> None:
        """Reports that everything before the first step is done, with facts about this side for the driver."""
        self._report(facts)

    def wait(self) -> None:
        if sys.stdin.readline().strip() != "step":
            sys.stdout.flush()
            os._exit(0)  # trainers would save a model first
        self._start = (time.perf_counter(), time.process_time())

    def done(self, tokens: int) -> None:
        """Reports a finished step.

        Args:
          tokens: of the prompts and completions in its batch, a prompt counted with each of its completions.
        """
        seconds, cpu_seconds = time.perf_counter() - self._start[0], time.process_time() - self._start[1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self._report({"seconds": seconds, "cpu_seconds": cpu_seconds, "tokens": tokens, "peak_gib": peak})

    def _report(self, record: dict[str, Any]) -> None:
        self._reports.write(json.dumps(record) + "\n")
        self._reports.flush()
