"""What SFT and training share: from examples to packed batches, and from a config section to an optimizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from qrpo_jax.data.batch import Batch
from qrpo_jax.data.examples import Examples
from qrpo_jax.data.loader import batches
from qrpo_jax.data.packing import Plan, plan_batches
from qrpo_jax.devices.mesh import axis_size
from qrpo_jax.job.job import DTYPES, Job
from qrpo_jax.model.decoder import Parameters, parameter_count
from qrpo_jax.model.settings import Lora
from qrpo_jax.training.checkpoints import save_parameters
from qrpo_jax.training.fit import Pace, fit
from qrpo_jax.training.metrics import read_metrics
from qrpo_jax.training.objectives import LossFunction
from qrpo_jax.training.optimizer import make_optimizer
from qrpo_jax.training.step import Precision, make_step


def train(
    job: Job,
    stage: str,
    section: Any,
    examples: Examples,
    objective: LossFunction,
    precision: Precision,
    start: Callable[[], Parameters],
    *,
    lora: Lora | None = None,
    frozen: Parameters | None = None,
    reference_on_the_fly: bool = False,
    calibrated_target: Callable[[Batch], Array] | None = None,
    on_first: Callable[[Batch, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Trains to the end of the plan, leaves parameters in the stage's folder and returns what to put on record.

    Args:
      start: makes the parameters that are trained; with `lora` the adapters of `frozen`, which is the reference policy.
      reference_on_the_fly: log π_ref is computed from `frozen` with every batch.
    """
    plan = make_plan(job, section, examples)
    describe(job, stage, plan, examples, lora)
    optimizer, schedule = make_optimizer(
        learning_rate=section.learning_rate,
        schedule=section.schedule,
        warmup_share=section.warmup_share,
        steps=plan.steps,
        b1=section.b1,
        b2=section.b2,
        weight_decay=section.weight_decay,
        clip_norm=section.clip_norm,
    )
    step = make_step(
        job.policy.graph if lora is None else job.policy.trained_graph,
        objective,
        optimizer,
        precision=precision,
        microbatches=section.microbatches,
        calibrated_target=calibrated_target,
        reference=job.policy.graph if reference_on_the_fly else None,
    )
    log = job.config.log
    folder = job.folder(stage)
    parameters = fit(
        step,
        optimizer,
        job.policy.settings,
        job.mesh,
        batches(examples, plan),
        steps=plan.steps,
        start=start,
        seed=job.config.seed,
        dtype=DTYPES[job.config.model.parameter_dtype] if lora is None else np.float32,
        pace=Pace(section.log_every, section.checkpoint_every),
        directory=folder,
        names=examples.names,
        schedule=schedule,
        title=stage,
        tensorboard=log.tensorboard,
        wandb={"project": log.wandb_project, "name": f"{job.workdir.name}/{stage}"} if log.wandb else None,
        on_first=on_first,
        lora=lora,
        frozen=frozen,
    )
    save_parameters(folder / "parameters", parameters)
    return {
        "steps": plan.steps,
        "counts": examples.counts,
        "padding": plan.padding,
        "rows": plan.rows,
        "last": last_metrics(folder),
    }


def make_plan(job: Job, section: Any, examples: Examples) -> Plan:
    pack = job.config.pack
    return plan_batches(
        examples.unit_lengths(),
        examples.unit_sizes(),
        batch_units=section.batch_size,
        row_tokens=pack.row_tokens,
        slots=pack.slots,
        epochs=section.epochs,
        seed=job.config.seed,
        row_multiple=axis_size(job.mesh, "rows") * section.microbatches,
    )


def describe(job: Job, stage: str, plan: Plan, examples: Examples, lora: Lora | None) -> None:
    counts = ", ".join(f"{count} {name}" for name, count in examples.counts.items() if count)
    job.say(f"{stage}: {counts}")
    size = f"{parameter_count(job.policy.settings):,} parameters"
    if lora is not None:
        adapters = parameter_count(job.policy.settings, lora)
        size = f"{adapters:,} parameters of LoRA adapters on {size} that stay as they are"
    shape = f"{plan.rows} rows x {plan.row_tokens} tokens, {plan.padding:.1%} padding"
    devices = f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
    job.say(f"{stage}: {size}, {plan.steps} steps of {shape}, on {devices}")


def last_metrics(folder: Path) -> dict[str, float]:
    """The last line of a stage's metrics, without the one figure that is about the machine."""
    lines = read_metrics(folder / "metrics.jsonl")
    return {k: v for k, v in lines[-1].items() if k != "tokens_per_second"} if lines else {}
