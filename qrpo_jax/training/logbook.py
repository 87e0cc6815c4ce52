"""The logbook of a run: reads the metrics of each step, reports them, and stops a run that diverged."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax import Array
from tqdm import tqdm

from qrpo_jax.data.batch import Batch
from qrpo_jax.devices import processes
from qrpo_jax.devices.mesh import gather
from qrpo_jax.training import host_skew
from qrpo_jax.training.checkpoints import Checkpoints
from qrpo_jax.training.host_skew import HostSkew
from qrpo_jax.training.metrics import MetricsWriter, Written
from qrpo_jax.training.step_watch import StepWatch

# The metric of a step that is an array: the loss of each completion. All others are scalars.
LOSSES = "losses_BxS"


class NonFiniteLossError(RuntimeError):
    """A loss or gradient became infinite or NaN; the message names step, rows and last good checkpoint."""


class PendingStep(NamedTuple):
    """A step that has been dispatched; its metrics may still be on their way.

    Attributes:
      host_seconds_P: of each process, if the step ends a lap, see `HostSkew`.
    """

    step: int
    batch: Batch
    metrics: dict[str, Array]
    host_seconds_P: Array | None


class Logbook:
    """Reports steps to the metrics files and the progress bar.

    The metrics of a step are read when the next step is recorded: the device then has work, and never waits for the
    host. A context manager, used after `begin`; leaving it closes the progress bar.

    Args:
      checkpoints: for messages, the last good one.
      steps: of the whole run.
      every: steps from one measurement of speed to the next, and from one line of the other sinks to the next; the
        first and the last step always have them. The metrics file has a line for each step.
      name: of an example that `Batch.example_BxS` points at, for messages.
      schedule: learning rate by number of updates made before the step.
      title: of the progress bar.
      watch: of the time that steps take.
      skew: between the processes.
      figures: more figures for each line.
      on_first: called with the first batch, on the mesh, and its metrics when a run starts from the beginning.
    """

    def __init__(
        self,
        writer: MetricsWriter,
        checkpoints: Checkpoints,
        *,
        steps: int,
        every: int,
        name: Callable[[int], str],
        schedule: optax.Schedule,
        title: str,
        watch: StepWatch,
        skew: HostSkew,
        figures: Callable[[], dict[str, float]] = dict,
        on_first: Callable[[Batch, dict[str, float]], None] | None = None,
    ) -> None:
        self._writer, self._checkpoints = writer, checkpoints
        self._steps, self._every, self._name, self._on_first = steps, every, name, on_first
        self._schedule, self._watch, self._skew, self._figures = schedule, watch, skew, figures
        self._title, self._bar = title, tqdm(disable=True)
        self._pending: PendingStep | None = None
        self._clock = Clock()
        self._added: dict[str, float] = {}

    def begin(self, step: int, kept: Written) -> None:
        """Opens the files and the progress bar of a run that goes on after `step`.

        Args:
          kept: what the checkpoint of that step knows of the metrics file.

        Raises:
          DamagedError: the metrics file is not what the checkpoint knows of it.
        """
        self._writer.begin(step, kept)
        silent = not processes.is_first()
        self._bar = tqdm(
            total=self._steps, initial=step, desc=self._title, unit="step", disable=silent, mininterval=0.5
        )

    def record(self, step: int, batch: Batch, metrics: dict[str, Array]) -> None:
        """Takes note of a dispatched step, and reports the one before.

        Args:
          batch: on the mesh.

        Raises:
          NonFiniteLossError: the loss or gradient norm of the step before is not finite.
        """
        self._report()
        self._pending = PendingStep(step, batch, metrics, self._skew.lap(step) if self._has_line(step) else None)
        self._watch.step(step)

    def add(self, figures: dict[str, float], seconds: float) -> None:
        """Adds figures to the line of the step that was recorded last, which has one then.

        Args:
          seconds: that they took; they are no part of the speed of training.
        """
        self._added |= figures
        self._clock.leave_out(seconds)

    def settle(self) -> Written:
        """Reports every recorded step, waiting for the device, flushes the files, and returns what metrics are written.

        Raises:
          NonFiniteLossError: the loss or gradient norm of the last step is not finite.
        """
        self._report()
        self._writer.flush()
        return self._writer.written

    def _report(self) -> None:
        if self._pending is None:
            return
        record, self._pending = self._pending, None
        added, self._added = self._added, {}
        step, batch, metrics, host_seconds_P = record
        values = scalars(metrics)
        if not (np.isfinite(values["loss"]) and np.isfinite(values["gradient_norm"])):
            raise NonFiniteLossError(
                f"step {step}: loss {values['loss']}, gradient norm {values['gradient_norm']}; "
                f"offending rows: {offending_rows(record, self._name) or 'none (the gradient overflowed)'}; "
                f"last good checkpoint: {self._checkpoints.latest_folder or 'none yet'}"
            )
        if step == 1 and self._on_first is not None:
            self._on_first(batch, values)
        self._clock.tokens += int(values["tokens"])
        values["learning_rate"] = learning_rate(self._schedule, step)
        if not (self._has_line(step) or added):
            self._writer.write_step(step, values)
        else:
            speed = self._clock.lap() | self._watch.lap() | host_skew.figures(host_seconds_P)
            self._writer.write(step, values | speed | self._figures() | added)
            self._bar.set_postfix_str(f"loss {values['loss']:.4g}, |gradient| {values['gradient_norm']:.3g}")
        self._bar.update()

    def _has_line(self, step: int) -> bool:
        return step % self._every == 0 or step in (1, self._steps)

    def __enter__(self) -> "Logbook":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def scalars(metrics: dict[str, Array]) -> dict[str, float]:
    """The scalar metrics of a step on the host."""
    values = jax.device_get({name: value for name, value in metrics.items() if name != LOSSES})
    return {name: float(value) for name, value in values.items()}


def learning_rate(schedule: optax.Schedule, step: int) -> float:
    """The learning rate that a step, counted from 1, was made with."""
    # The schedule computes with Python's numbers. Uploading them is meant, so a transfer guard lets them pass.
    with jax.transfer_guard_host_to_device("allow"):
        return float(jax.device_get(schedule(step - 1)))


def offending_rows(record: PendingStep, name: Callable[[int], str], most: int = 8) -> str:
    """Names of the completions whose loss is not finite; empty if there is none. All processes must ask.

    Args:
      name: of an example.
      most: names listed; the others are counted.
    """
    losses_BxS, example_BxS = gather(record.metrics[LOSSES]), gather(record.batch.example_BxS)
    rows = [name(i) for i in example_BxS[~np.isfinite(losses_BxS) & (example_BxS >= 0)]]
    return ", ".join(rows[:most]) + (f" and {len(rows) - most} more" if len(rows) > most else "")


class Clock:
    """Tokens per second of each lap, except the first, which includes compilation."""

    def __init__(self) -> None:
        self.tokens, self._since, self._laps = 0, time.perf_counter(), 0

    def leave_out(self, seconds: float) -> None:
        """Seconds of this lap that were not spent on tokens."""
        self._since += seconds

    def lap(self) -> dict[str, float]:
        """Starts the next lap and returns the speed of the one that ends."""
        now = time.perf_counter()
        speed = {"tokens_per_second": self.tokens / (now - self._since)} if self._laps else {}
        self.tokens, self._since, self._laps = 0, now, self._laps + 1
        return speed
