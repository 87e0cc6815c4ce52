"""Training runs of the tiny policy, and how a test kills one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grain
import jax
import optax

from qrpo_jax.model.decoder import Parameters
from qrpo_jax.training.checkpoints import Checkpoints
from qrpo_jax.training.host_skew import HostSkew
from qrpo_jax.training.logbook import Logbook
from qrpo_jax.training.metrics import MACHINE, MetricsWriter, read_metrics
from qrpo_jax.training.state import Trainable, parameter_layout
from qrpo_jax.training.step_watch import StepWatch
from qrpo_jax.training.time_sheet import TimeSheet
from tests.helpers import tiny


class Killed(BaseException):
    """Ends a run or a block as a signal would: nothing catches it."""


class Watched:
    """An iterator of batches that calls `before(n)` before it returns its n-th batch, counted from 1."""

    def __init__(self, batches: grain.DatasetIterator, before: Callable[[int], None]) -> None:
        self._batches, self._before, self._count = batches, before, 0

    def __next__(self) -> Any:
        self._count += 1
        self._before(self._count)
        return next(self._batches)

    def get_state(self) -> Any:
        return self._batches.get_state()

    def set_state(self, state: Any) -> None:
        self._batches.set_state(state)


def killing(batches: grain.DatasetIterator, at: int) -> Watched:
    """Batches that kill the run instead of returning the `at`-th of them; at 0 they never do."""

    def before(n: int) -> None:
        if n == at:
            raise Killed

    return Watched(batches, before)


@contextmanager
def books(
    directory: Path,
    *,
    steps: int,
    name: Callable[[int], str],
    schedule: optax.Schedule,
    save_every: int = 2,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """The arguments of `fit` that write to `directory`, where every step is logged."""
    times = TimeSheet(directory)
    with (
        Checkpoints(directory / "checkpoints", every=save_every) as checkpoints,
        MetricsWriter(directory) as writer,
        StepWatch(print) as watch,
        Logbook(
            writer,
            checkpoints,
            steps=steps,
            every=1,
            name=name,
            schedule=schedule,
            title="test",
            watch=watch,
            skew=HostSkew(lambda: times.seconds("data")),
            **options,
        ) as logbook,
    ):
        yield {"steps": steps, "checkpoints": checkpoints, "logbook": logbook, "times": times}


def trainable(
    optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh, start: Callable[[], Parameters], lora: Any = None
) -> Trainable:
    """Starts from a copy of `start()`, because the run donates its parameters."""
    layout = parameter_layout(mesh, tiny.SETTINGS, lora=lora)
    return Trainable(layout, optimizer, lambda: jax.tree.map(lambda x: x.copy(), start()), seed=0)


def figures(directory: Path) -> list[dict[str, float]]:
    """The metrics of a run without its speed, which no two runs share."""
    lines = read_metrics(directory / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in MACHINE} for line in lines]
