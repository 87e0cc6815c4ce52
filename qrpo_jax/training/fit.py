"""The training loop: batches through the step, with metrics, checkpoints and exact resumption."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from qrpo_jax.data.batch import Batch
from qrpo_jax.devices.mesh import place, replicated, row_sharding
from qrpo_jax.model.decoder import DecoderSettings, Parameters
from qrpo_jax.model.settings import Lora
from qrpo_jax.training.checkpoints import Checkpoints
from qrpo_jax.training.metrics import MetricsWriter
from qrpo_jax.training.state import State, abstract_state, initial_state, state_shardings

Step = Callable[..., tuple[State, dict[str, Any]]]


class NonFiniteLossError(RuntimeError):
    """A loss or gradient became infinite or NaN; the message names step, rows and last good checkpoint."""


class Pace(NamedTuple):
    """How often the loop writes things down, in steps."""

    log_every: int
    checkpoint_every: int
    keep: int = 2


def fit(
    step: Step,
    optimizer: optax.GradientTransformation,
    settings: DecoderSettings,
    mesh: Mesh,
    batches: grain.DatasetIterator,
    *,
    steps: int,
    start: Callable[[], Parameters],
    seed: int,
    dtype: Any = np.float32,
    pace: Pace,
    directory: Path,
    names: tuple[str, ...],
    schedule: optax.Schedule,
    title: str,
    tensorboard: bool = True,
    wandb: dict[str, Any] | None = None,
    on_first: Callable[[Batch, dict[str, float]], None] | None = None,
    lora: Lora | None = None,
    frozen: Parameters | None = None,
) -> Parameters:
    """Runs all `steps` from the latest checkpoint in `directory`, or from `start()`, and returns the parameters.

    Args:
      dtype: of the parameters that `start` makes.
      batches: an iterator of host batches; its state is checkpointed with the rest. Where they come from
        (disk, a sampler) is its own affair.
      names: of the examples that `Batch.example_BxS` points at, for messages.
      on_first: called with the first batch and its metrics when a run starts from the beginning.
      lora: what `start` makes, and what is trained, saved and returned, are then its adapters.
      frozen: parameters that the step reads and never changes, placed on the mesh: the base of the adapters.

    Raises:
      NonFiniteLossError: the loss or the gradient norm is not finite.
    """
    with Checkpoints(directory / "checkpoints", keep=pace.keep) as checkpoints:
        shardings = state_shardings(mesh, settings, optimizer, lora)
        done = checkpoints.latest
        if done is None:
            make = jax.jit(lambda p: initial_state(p, optimizer, seed), out_shardings=shardings)
            state, done = make(start()), 0
        else:
            state = checkpoints.restore(abstract_state(mesh, settings, optimizer, dtype, lora), batches)
        where = row_sharding(mesh)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
        chief = jax.process_index() == 0
        bar = tqdm(total=steps, initial=done, desc=title, unit="step", disable=not chief, mininterval=0.5)
        # Files of a run are one process's to write.
        writing = MetricsWriter(directory, resume_step=done, tensorboard=tensorboard, wandb=wandb) if chief else None
        with writing or contextlib.nullcontext() as writer:
            clock = _Clock()
            pending: tuple[int, Batch, dict[str, Any]] | None = None

            def settle() -> None:
                # Metrics are read one step late, while the device already works on the next step.
                if pending is None:
                    return
                number, batch, metrics = pending
                values = _host(metrics, batch, names, number, checkpoints.latest, directory)
                if number == 1 and on_first is not None:
                    on_first(batch, values)
                clock.tokens += int((batch.segments_BxL > 0).sum())
                if number % pace.log_every == 0 or number in (1, steps):
                    values |= {"learning_rate": float(schedule(number - 1))} | clock.lap()
                    if writer is not None:
                        writer.write(number, values)
                    bar.set_postfix_str(f"loss {values['loss']:.4g}, |gradient| {values['gradient_norm']:.3g}")

            for number in range(done + 1, steps + 1):
                batch = next(batches)
                state, metrics = jitted(state, place(batch, where), frozen or {})
                settle()
                pending = (number, batch, metrics)
                if number % pace.checkpoint_every == 0 or number == steps:
                    # A checkpoint must be of a good step, so this one's metrics are read before it is saved.
                    settle()
                    pending = None
                    if writer is not None:
                        writer.flush()
                    checkpoints.save(state, batches)
                bar.update()
        bar.close()
    return state.parameters


class _Clock:
    """Tokens a second since the last lap; the first lap includes compilation and is not reported."""

    def __init__(self) -> None:
        self.tokens, self._since, self._laps = 0, time.perf_counter(), 0

    def lap(self) -> dict[str, float]:
        now = time.perf_counter()
        speed = {"tokens_per_second": self.tokens / (now - self._since)} if self._laps else {}
        self.tokens, self._since, self._laps = 0, now, self._laps + 1
        return speed


def _host(
    metrics: dict[str, Any], batch: Batch, names: tuple[str, ...], step: int, good: int | None, directory: Path
) -> dict[str, float]:
    """Scalars of a step on the host.

    Raises:
      NonFiniteLossError: see `fit`.
    """
    scalars = {name: float(value) for name, value in metrics.items() if name != "losses_BxS"}
    if not (np.isfinite(scalars["loss"]) and np.isfinite(scalars["gradient_norm"])):
        losses_BxS = np.asarray(jax.device_get(metrics["losses_BxS"]))
        bad = batch.example_BxS[~np.isfinite(losses_BxS) & (batch.example_BxS >= 0)]
        rows = ", ".join(names[i] for i in bad[:8]) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
        last = f"{directory / 'checkpoints' / str(good)}" if good is not None else "none yet"
        raise NonFiniteLossError(
            f"step {step}: loss {scalars['loss']}, gradient norm {scalars['gradient_norm']}; "
            f"offending rows: {rows or 'none (the gradient overflowed)'}; last good checkpoint: {last}"
        )
    return scalars
