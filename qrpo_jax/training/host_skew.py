"""Skew between hosts: which process is late with its batches, and by how much.

All processes end a step together, so their step times are equal and do not say who was slow. What differs is how long
a process takes to get its rows and to put them on its devices; the others wait for it inside the step.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from qrpo_jax.devices.processes import start_gather

SECONDS, SLOWEST = "host_skew_seconds", "slowest_process"  # figures of a line, in a job of several processes


class HostSkew:
    """Compares the processes over laps, from one line of the metrics to the next.

    Their seconds meet on the devices, behind the step that is under way, and are read with its metrics: no step waits.
    The call that starts a step does not count: where it blocks, as on a CPU, it is the wait for the others.

    Args:
      seconds: that this process has spent on batches so far.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds, self._since, self._step, self._started = seconds, 0.0, 0, False

    def lap(self, step: int) -> Array | None:
        """Ends a lap with this step, which has been dispatched; all processes call this together.

        Returns:
          Seconds a step of each process in this lap, float32 [P], which may still be on their way; None for the first
          lap, in which the loader starts, and in a job of one process.
        """
        steps, self._step = step - self._step, step
        now = self._seconds()
        seconds, self._since = now - self._since, now
        if jax.process_count() == 1 or not self._started:
            self._started = True
            return None
        return start_gather(seconds / steps)


def figures(seconds_P: Array | None) -> dict[str, float]:
    """What a line says of a lap: by how many seconds a step the slowest process exceeds the median, and which it is.

    Of an even number of processes the median is the lower one, so that of two processes one is compared with the other.
    """
    if seconds_P is None:
        return {}
    values_P = np.asarray(jax.device_get(seconds_P))
    median = np.sort(values_P)[(len(values_P) - 1) // 2]
    return {SECONDS: float(values_P.max() - median), SLOWEST: float(values_P.argmax())}


class Summary(NamedTuple):
    """Skew over a stage.

    Attributes:
      seconds: a step, the mean over all lines.
      worst: of one line.
      process: that was the slowest for most of these seconds.
      share: of the seconds.
    """

    seconds: float
    worst: float
    process: int
    share: float


def summary(lines: Sequence[Mapping[str, float]]) -> Summary | None:
    """Skew over the lines of a metrics file; None if they are those of one process."""
    laps = [(int(line[SLOWEST]), line[SECONDS]) for line in lines if SECONDS in line and SLOWEST in line]
    if not laps:
        return None
    by_process = np.bincount([process for process, _ in laps], [seconds for _, seconds in laps])
    total, process = float(by_process.sum()), int(by_process.argmax())
    return Summary(
        total / len(laps), max(seconds for _, seconds in laps), process, float(by_process[process]) / (total or 1.0)
    )
