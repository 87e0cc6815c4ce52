"""The training loop: batches through the step, with metrics, checkpoints and exact resumption."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax import Array

from qrpo_jax.data.loader import Batches
from qrpo_jax.devices.mesh import place_rows, replicated
from qrpo_jax.devices.program.checked import CheckedProgram
from qrpo_jax.devices.xla_flags import compiler_options
from qrpo_jax.faults.interruption import RUN, Interrupted
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.training.checkpoints import Checkpoints, Resumed
from qrpo_jax.training.logbook import Logbook
from qrpo_jax.training.profile import NO_PROFILE, Profile
from qrpo_jax.training.state import State, Trainable
from qrpo_jax.training.time_sheet import TimeSheet

Step = Callable[..., tuple[State, dict[str, Array]]]


class Visitor(NamedTuple):
    """What looks at the parameters between steps, on all processes together.

    Attributes:
      due: whether it does so after this step.
      visit: called with the step and the parameters, which later steps replace; returns figures for the step's line
        of metrics.
      cause: of its time, in the time sheet.
    """

    due: Callable[[int], bool]
    visit: Callable[[int, Parameters], dict[str, float]]
    cause: str


def visited(visitor: Visitor, number: int, state: State, times: TimeSheet) -> tuple[dict[str, float], float]:
    """The figures of a visit, and its seconds."""
    jax.block_until_ready(state)  # or the rest of the step before would count as part of the visit
    began = time.perf_counter()
    with times.spent(visitor.cause):
        found = visitor.visit(number, state.parameters)
    return found, time.perf_counter() - began


def jitted(step: Step, trainable: Trainable) -> CheckedProgram:
    """The step as a run compiles it: the new state takes the place of the old one, metrics are on every device.

    If a device cannot hold it, that is about "microbatches", "remat" and "split".
    """
    program = jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(trainable.shardings(), replicated(trainable.mesh)),
        compiler_options=compiler_options(trainable.mesh, backward=True),
    )
    return CheckedProgram(program, trainable.mesh, "a training step", ("microbatches", "remat", "split"))


def fit(
    step: Step,
    trainable: Trainable,
    batches: Batches,
    *,
    steps: int,
    checkpoints: Checkpoints,
    logbook: Logbook,
    times: TimeSheet,
    profile: Profile = NO_PROFILE,
    frozen: Parameters | None = None,
    visitors: Sequence[Visitor] = (),
    producer: Visitor | None = None,
) -> Parameters:
    """Trains until `steps` updates are made, from the latest whole checkpoint if any, and returns the parameters.

    Args:
      step: `(state, batch, frozen) -> (state, metrics)`; see `make_step`.
      batches: host batches from any source, in each process the `own_rows` of its devices. A checkpoint stores the
        iterator's position with the state.
      times: counts the seconds of this start by cause.
      profile: steps to profile.
      frozen: parameters on the mesh that the step reads and does not change: the base of LoRA's adapters.
      visitors: a step that is made again after a kill is visited again, before its checkpoint is saved.
      producer: makes the batches of a step and of those behind it, before it, where a policy samples its own data. Its
        figures are in the line of that step.

    Raises:
      NonFiniteLossError: the loss or the gradient norm is not finite.
      UserError: a step needs more memory than a device has; about "microbatches", "remat" and "split".
      DamagedError: nothing that the run could go on from is whole.
      Interrupted: a signal stops the run; the state is saved.
    """
    with times.spent("restore"):
        state, done, metrics_file = checkpoints.restore(trainable.abstract(), batches) or Resumed(trainable.fresh())
    logbook.begin(done, metrics_file)
    times.begin(done)
    RUN.progress(done, steps, "steps")
    mesh, update = trainable.mesh, jitted(step, trainable)
    for number in range(done + 1, steps + 1):
        produced = visited(producer, number, state, times) if producer is not None and producer.due(number) else None
        with times.spent("data"):
            batch = place_rows(next(batches), mesh)
        inputs = state, batch, frozen or {}
        if number == done + 1:
            with times.spent("compile"):
                update.compiled(*inputs)
        with profile.step(number):
            state, metrics = update(*inputs)
            logbook.record(number, batch, metrics)
        if produced is not None:
            logbook.add(*produced)
        for visitor in (each for each in visitors if each.due(number)):
            logbook.add(*visited(visitor, number, state, times))
        stop = RUN.reached(number)
        last = number == steps or stop
        saved = last or checkpoints.due(number)
        if saved:
            written = logbook.settle()  # so that a step that is not finite is never saved
            with times.spent("save"):
                checkpoints.save(state, batches, written, last=last)
            RUN.progress(number, steps, "steps")
        times.reached(number, saved=saved)
        if stop:
            raise Interrupted
    return state.parameters
