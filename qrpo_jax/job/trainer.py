"""A training run from examples to saved parameters, shared by stages `sft` and `train`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from qrpo_jax.data.batch import Batch
from qrpo_jax.data.examples import Examples
from qrpo_jax.data.loader import Batches, batches
from qrpo_jax.devices.dtypes import FLOATS
from qrpo_jax.devices.mesh import own_rows
from qrpo_jax.devices.peaks import peak_bytes
from qrpo_jax.devices.processes import is_first
from qrpo_jax.errors import located
from qrpo_jax.faults import interruption
from qrpo_jax.job.chosen_objective import chosen_objective, reads_reference
from qrpo_jax.job.held_out_loss import held_out_visitor
from qrpo_jax.job.job import Job
from qrpo_jax.job.kept_steps import kept_steps
from qrpo_jax.job.packing import make_plan
from qrpo_jax.model import value_head
from qrpo_jax.model.decoder import Parameters, parameter_count
from qrpo_jax.model.settings import Lora
from qrpo_jax.training.checkpoints import Checkpoints
from qrpo_jax.training.fit import Step, Visitor, fit
from qrpo_jax.training.host_skew import HostSkew
from qrpo_jax.training.local_checkpoints import LocalCheckpoints
from qrpo_jax.training.logbook import Logbook
from qrpo_jax.training.metrics import MACHINE, METRICS, MetricsWriter, read_metrics
from qrpo_jax.training.objective import BoundObjective
from qrpo_jax.training.optimizer import Optimization, make_optimizer
from qrpo_jax.training.profile import parse_profile
from qrpo_jax.training.saved_parameters import kept_folder, save_parameters
from qrpo_jax.training.state import Trainable, parameter_layout
from qrpo_jax.training.step import BatchLoss, LogProbSettings, Prediction, make_step
from qrpo_jax.training.step_watch import StepWatch
from qrpo_jax.training.time_sheet import TimeSheet

STEPS = 1000  # of the schedule of a run that is only described, which changes neither its shapes nor its program


class Feed(NamedTuple):
    """Where the batches of a training run come from.

    Attributes:
      batches: host batches, in each process the `own_rows` of its devices.
      steps: of the whole run.
      microbatches: of each batch.
      name: of an example that `Batch.example_BxS` points at, for messages.
      facts: for the manifest, when all steps are made.
      producer: makes batches from the parameters, see `fit`; None where all data are there before.
    """

    batches: Batches
    steps: int
    microbatches: int
    name: Callable[[int], str]
    facts: Callable[[], dict[str, Any]]
    producer: Visitor | None = None


class Training(NamedTuple):
    """The inputs of a training run, without its data.

    Attributes:
      objective: the loss.
      log_prob_settings: how log-probs are computed.
      start: returns the policy's parameters before the first update; with `frozen`, the adapters.
      frozen: with LoRA the base of the adapters, which is the reference policy; None if all parameters are trained.
      reference_on_the_fly: compute log π_ref from `frozen` with every batch.
      predict: what QRPO asks of a batch, for its metrics.
      held_out: completions that are not trained on, whose loss is computed every so many steps; None without any.
      watch: makes what samples and scores held-out prompts between steps, from the number of all steps and `frozen`.
      on_first: called with the first batch, on the mesh, and its metrics, unless the run resumes.
      value_head: train a value head with the policy, for an objective that reads `LogProbs.value`. Checkpoints hold it;
        saved parameters and what `watch` sees do not.
    """

    objective: BoundObjective
    log_prob_settings: LogProbSettings
    start: Callable[[], Parameters]
    frozen: Parameters | None = None
    reference_on_the_fly: bool = False
    predict: Callable[[Batch], Prediction] | None = None
    on_first: Callable[[Batch, dict[str, float]], None] | None = None
    held_out: Examples | None = None
    watch: Callable[[int, Parameters | None], Visitor] | None = None
    value_head: bool = False


def planned_feed(job: Job, stage: str, examples: Examples) -> Feed:
    """The batches of examples that are all there before the first step, packed by one plan."""
    counts = ", ".join(f"{count} {name}" for name, count in examples.counts.items() if count)
    job.say(f"{stage}: {counts}")
    plan = make_plan(job, stage, examples)
    facts = {
        "counts": examples.counts,
        "padding": plan.padding,
        "rows": plan.rows,
        "row_tokens": plan.row_tokens,
        "tokens": plan.tokens,
        "separate_tokens": plan.separate_tokens,
    }
    own = batches(examples, plan, own_rows(job.mesh, plan.rows))
    return Feed(own, plan.steps, plan.microbatches, examples.name, lambda: facts)


def train(job: Job, stage: str, training: Training, feed: Feed) -> dict[str, Any]:
    """Trains to the end of the feed, writes parameters to the stage's folder and returns the stage's manifest.

    examples → plan → batches ─┐
    objective, optimizer → step ├→ fit → parameters
    start → training state ────┘   with checkpoints and logbook

    Args:
      stage: also the name of the config section with the options of the training.
    """
    folder = job.folder(stage)
    describe(job, stage, feed.steps, training)
    optimizer, schedule = configured_optimizer(job.config, stage, feed.steps)
    times = TimeSheet(folder if is_first() else None)
    with (
        located(**memory_keys(stage)),
        open_books(job, stage, training, feed, schedule, times) as (checkpoints, logbook),
    ):
        parameters = fit(
            policy_step(job, training, optimizer, feed.microbatches),
            trainable(job, training, optimizer),
            feed.batches,
            steps=feed.steps,
            checkpoints=checkpoints,
            logbook=logbook,
            times=times,
            profile=parse_profile(job.config.log.profile if is_first() else "", folder),
            frozen=training.frozen,
            visitors=visitors(job, stage, training, feed.steps),
            producer=feed.producer,
        )
    save_parameters(folder / "parameters", value_head.split(parameters)[0])
    return {"steps": feed.steps, **feed.facts(), "last": last_metrics(folder)}


def visitors(job: Job, stage: str, training: Training, steps: int) -> list[Visitor]:
    """What looks at the parameters while a stage trains: `train` keeps those of some steps, and has held-out data."""
    kept, found = kept_steps(job.config, steps) if stage == "train" else [], []

    def keep(step: int, parameters: Parameters) -> dict[str, float]:
        save_parameters(kept_folder(job.folder(stage), step), value_head.split(parameters)[0])
        return {}

    if training.held_out is not None and len(training.held_out.sizes_U):
        every, loss = job.config[stage].evaluate_every, batch_loss(job, training, job.log_prob_settings(job.mesh))
        found.append(held_out_visitor(job, training.held_out, loss, training.frozen, every, steps))
    if training.watch is not None:
        found.append(of_policy(training.watch(steps, training.frozen)))
    return [*found, Visitor(kept.__contains__, keep, "save")] if kept else found


def of_policy(visitor: Visitor) -> Visitor:
    """The visitor of the policy without its value head, as sampling needs it."""
    return visitor._replace(visit=lambda step, parameters: visitor.visit(step, value_head.split(parameters)[0]))


def batch_loss(job: Job, training: Training, settings: LogProbSettings) -> BatchLoss:
    """How the loss of a batch is computed.

    Args:
      settings: of log-probs, with or without a backward pass.
    """
    graph = job.shape.graph if training.frozen is None else job.shape.trained_graph
    reference = job.shape.graph if training.reference_on_the_fly else None
    return BatchLoss(graph, training.objective, settings, training.predict, reference, reads_reference(job))


def memory_keys(stage: str) -> dict[str, str]:
    """Config keys of what a step's memory depends on."""
    return {"microbatches": f"{stage}.microbatches", "remat": "model.remat", "split": "mesh.fsdp"}


def adapters(job: Job, training: Training) -> Lora | None:
    """The shape of the adapters to train; None if all parameters are trained."""
    return None if training.frozen is None else job.shape.lora


def policy_step(job: Job, training: Training, optimizer: optax.GradientTransformation, microbatches: int) -> Step:
    """One update of the policy."""
    return make_step(
        job.shape.graph if training.frozen is None else job.shape.trained_graph,
        training.objective,
        optimizer,
        log_prob_settings=training.log_prob_settings,
        microbatches=microbatches,
        predict=training.predict,
        reference_graph=job.shape.graph if training.reference_on_the_fly else None,
        has_reference=reads_reference(job),
    )


def trainable(job: Job, training: Training, optimizer: optax.GradientTransformation) -> Trainable:
    """The training state."""
    return Trainable(trained_layout(job, training), optimizer, lambda: first_parameters(job, training), job.config.seed)


def trained_layout(job: Job, training: Training) -> Parameters:
    """The layout of what is trained."""
    return layout_of(job, job.mesh, adapters(job, training), training.value_head)


def stage_layout(job: Job, stage: str, mesh: Mesh) -> Parameters:
    """The layout of what a stage will train, on any mesh."""
    if stage != "train":
        return layout_of(job, mesh, None, False)
    return layout_of(job, mesh, job.shape.lora, chosen_objective(job).needs_value)


def stage_trainable(job: Job, stage: str, mesh: Mesh) -> Trainable:
    """What a stage will train, for its shapes alone: it can be restored and lowered, and not be started."""
    optimizer, _ = configured_optimizer(job.config, stage, STEPS)
    return Trainable(stage_layout(job, stage, mesh), optimizer, dict, job.config.seed)


def layout_of(job: Job, mesh: Mesh, lora: Lora | None, with_value_head: bool) -> Parameters:
    """The layout of parameters or adapters; these are float32 on a base of any type, as is a value head."""
    dtype = FLOATS[job.config.model.parameter_dtype] if lora is None else np.float32
    return parameter_layout(mesh, job.shape.settings, dtype, lora, with_value_head)


def first_parameters(job: Job, training: Training) -> Parameters:
    """What is trained, before the first update: what `training.start` returns, and a new value head if any."""
    if not training.value_head:
        return training.start()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, trained_layout(job, training)[value_head.BRANCH])
    fresh = jax.jit(value_head.initial_head, static_argnums=0, out_shardings=shardings)
    return value_head.join(training.start(), fresh(job.shape.settings.d_model))


@contextmanager
def open_books(
    job: Job, stage: str, training: Training, feed: Feed, schedule: optax.Schedule, times: TimeSheet
) -> Iterator[tuple[Checkpoints, Logbook]]:
    """Checkpoints and logbook in the stage's folder; closed at the end, also after an error."""
    section, log, folder = job.config[stage], job.config.log, job.folder(stage)
    wandb = {"project": log.wandb_project, "name": f"{job.workdir.name}/{stage}"} if log.wandb else None
    with (
        make_checkpoints(job, stage) as checkpoints,
        MetricsWriter(folder, tensorboard=log.tensorboard, wandb=wandb) as writer,
        StepWatch(interruption.say) as watch,
        Logbook(
            writer,
            checkpoints,
            steps=feed.steps,
            every=section.log_every,
            name=feed.name,
            schedule=schedule,
            title=stage,
            watch=watch,
            skew=HostSkew(lambda: times.seconds("data")),
            figures=lambda: {"peak_memory_gb": peak_bytes(job.mesh) / 1e9},
            on_first=training.on_first,
        ) as logbook,
    ):
        yield checkpoints, logbook


def make_checkpoints(job: Job, stage: str) -> Checkpoints:
    """Checkpoints in the stage's folder and, if the config names a folder for them, on the disks of the hosts."""
    folder, every, local = job.folder(stage), job.config[stage].checkpoint_every, job.config.checkpoints
    if not local.local_directory:
        return Checkpoints(folder / "checkpoints", every=every, warn=job.say)
    return LocalCheckpoints(
        folder / "checkpoints",
        local=Path(local.local_directory),
        local_every=local.local_every,
        metrics=folder / METRICS,
        every=every,
        say=lambda line: job.say(f"{stage}: {line}"),
    )


def configured_optimizer(config: Any, stage: str, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer and learning rate that a stage's config section describes.

    Raises:
      UserError: an option is not allowed; names its key.
    """
    options = Optimization(**{name: config[stage][name] for name in Optimization._fields})
    with located(**{name: f"{stage}.{name}" for name in Optimization._fields}):
        return make_optimizer(options, steps)


def describe(job: Job, stage: str, steps: int, training: Training) -> None:
    """Prints the sizes of model and run."""
    size = f"{parameter_count(job.shape.settings):,} parameters"
    if (lora := adapters(job, training)) is not None:
        count = parameter_count(job.shape.settings, lora)
        size = f"{count:,} parameters of LoRA adapters on {size} that do not change"
    if training.value_head:
        size += f", and a value head of {job.shape.settings.d_model + 1:,}"
    devices = f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
    job.say(f"{stage}: {size}, {steps} steps on {devices}")


def last_metrics(folder: Path) -> dict[str, float]:
    """The last line of a stage's metrics, without what depends on the machine."""
    lines = read_metrics(folder / METRICS)
    return {name: value for name, value in lines[-1].items() if name not in MACHINE} if lines else {}
