"""The packing plan of a stage: row length and rows at a time, set by the config or chosen, and kept for resumption."""

import math
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from qrpo_jax.data.batch_order import batch_order
from qrpo_jax.data.examples import Examples
from qrpo_jax.data.packing import UNLIMITED, Plan, check_fit, plan_batches, plan_rows
from qrpo_jax.data.packing_units import Units
from qrpo_jax.data.row_cost import MACHINES, Machine, model_cost
from qrpo_jax.data.row_planner import Choice, Planner
from qrpo_jax.devices.dtypes import FLOATS
from qrpo_jax.devices.mesh import axis_size, platform_of, round_up
from qrpo_jax.devices.processes import is_first
from qrpo_jax.errors import located
from qrpo_jax.faults.records import read_record, write_record
from qrpo_jax.job.job import Job
from qrpo_jax.model.attention import plain
from qrpo_jax.model.decoder import parameter_count
from qrpo_jax.model.token_log_probs import CHUNK

CHOSEN = "rows.json"  # in the stage's folder
MEMORY_SHARE = 0.8  # of an accelerator's memory; the rest is for what the estimate leaves out
KEYS = {"lengths": "select", "row_tokens": "pack.row_tokens", "slots": "pack.slots"}


def shares_prompts(job: Job) -> bool:
    """Whether siblings in a packed row share one copy of their prompt."""
    return job.config.pack.share_prompts


def make_plan(job: Job, stage: str, examples: Examples, folder: str | None = None) -> Plan:
    """Packs the examples of all epochs into batches whose rows split over the mesh and into microbatches.

    Row length and rows at a time that the config leaves open are chosen. They depend on the machine, so they are
    written into the stage's folder: a run that resumes elsewhere keeps its rows.

    Args:
      folder: of another stage, for what is chosen.
    """
    folder = folder or stage
    section, pack, units = job.config[stage], job.config.pack, examples.packing_units()
    shuffle, share = section.get("shuffle", "units"), shares_prompts(job)
    with located(**KEYS):
        check_fit(units, pack.row_tokens or UNLIMITED, pack.slots or UNLIMITED, share=share)
        chosen = read_choice(job, folder)
        orders = batch_order(units, section.batch_size, section.epochs, job.config.seed, shuffle)
        if chosen is None:
            planner = make_planner(job, job.mesh, units, orders, microbatches=section.microbatches, stage=stage)
            chosen = planner.evaluate(pack.row_tokens) if pack.row_tokens else planner.choose()
            keep_choice(job, folder, chosen)
        plan = plan_batches(
            units,
            batch_units=section.batch_size,
            row_tokens=chosen.row_tokens,
            slots=pack.slots or UNLIMITED,
            epochs=section.epochs,
            seed=job.config.seed,
            shuffle=shuffle,
            share=share,
            row_multiple=axis_size(job.mesh, "rows") * (1 if section.microbatches else chosen.part_rows),
            microbatches=section.microbatches,
            orders=orders,
        )
    job.say(f"{folder}: {line_about(job, plan, chosen)}")
    return plan


def plan_log_probs(job: Job, mesh: Mesh, units: Units) -> Plan:
    """Packs completions whose log-probs are computed, without regard to which are together.

    The plan depends on these completions, the config and the machine alone, so any process can compute any part of a
    stage. Row lengths are few, so that parts of similar data run the same compiled program.
    """
    pack, rows, share = job.config.pack, job.config.log_probs.batch_rows, shares_prompts(job)
    with located(**KEYS):
        check_fit(units, pack.row_tokens or UNLIMITED, pack.slots or UNLIMITED, share=share)
        planner = make_planner(job, mesh, units, [np.arange(len(units))])
        chosen = planner.evaluate(pack.row_tokens) if pack.row_tokens else planner.choose_coarsely()
        batch_rows = round_up(rows or chosen.part_rows * planner.devices, planner.devices)
        plan = plan_rows(units, chosen.row_tokens, pack.slots or UNLIMITED, batch_rows, share=share)
    return plan if pack.slots else plan._replace(slots=1 << (plan.slots - 1).bit_length())


def make_planner(
    job: Job, mesh: Mesh, units: Units, orders: Sequence[np.ndarray], *, microbatches: int = 0, stage: str | None = None
) -> Planner:
    """A planner for the job's model on this mesh.

    Args:
      stage: the training stage; None for a forward pass.
    """
    config, settings = job.config.model, job.shape.settings
    platform = platform_of(mesh)
    machine = MACHINES[platform]
    if job.compute(mesh).attention is plain.attend:
        machine = machine._replace(block=0)
    cached = platform == "cpu"  # caches see the computation at hand; memory also what the backward pass needs
    model = model_cost(
        settings,
        bytes_per_number=np.dtype(FLOATS[config.compute_dtype]).itemsize,
        vocab_chunk=config.vocab_chunk or CHUNK,
        stored=None if cached or stage is None else config.remat,
    )
    if not cached:
        machine = machine._replace(working_bytes=free_bytes(job, mesh, machine, stage))
    return Planner(
        units,
        orders,
        machine,
        model,
        share=shares_prompts(job),
        slots=job.config.pack.slots or UNLIMITED,
        devices=axis_size(mesh, "rows"),
        microbatches=microbatches,
        multiple=math.lcm(machine.multiple * mesh.shape["context"], mesh.shape["context"] * mesh.shape["tensor"]),
    )


def free_bytes(job: Job, mesh: Mesh, machine: Machine, stage: str | None) -> float:
    """What parameters, gradients and moments leave of an accelerator's memory for activations."""
    limit = (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit", machine.working_bytes)
    settings, bytes_per_parameter = job.shape.settings, np.dtype(FLOATS[job.config.model.parameter_dtype]).itemsize
    held = parameter_count(settings) * float(bytes_per_parameter)
    if stage is not None:
        adapted = job.shape.lora if stage == "train" else None
        moment_bytes = np.dtype(FLOATS[job.config[stage].moment_dtype]).itemsize
        held += (4.0 + 2 * moment_bytes) * parameter_count(settings, adapted)  # a float32 gradient and two moments
    split = axis_size(mesh, "embed") * axis_size(mesh, "vocab")
    return max(MEMORY_SHARE * limit - held / split, 0.05 * limit)


def read_choice(job: Job, stage: str) -> Choice | None:
    """The rows that an earlier start of the stage chose; None without one, or if prompts were shared otherwise."""
    path = job.folder(stage) / CHOSEN
    if not path.exists():
        return None
    record = read_record(path)
    if record.pop("share_prompts") != shares_prompts(job):
        return None
    return Choice(**record)


def keep_choice(job: Job, stage: str, chosen: Choice) -> None:
    """Writes the chosen rows into the stage's folder."""
    if is_first():
        write_record(job.folder(stage) / CHOSEN, chosen._asdict() | {"share_prompts": shares_prompts(job)})


def line_about(job: Job, plan: Plan, chosen: Choice) -> str:
    """What a run's batches look like, and why."""
    fewest, most = int(plan.row_counts.min()), int(plan.row_counts.max())
    rows = f"{most} rows" if fewest == most else f"{fewest} to {most} rows"
    at_once = plan.rows // plan.microbatches
    parts = "all at once" if plan.microbatches == 1 else f"{at_once} at a time"
    shared = f", {1 - plan.tokens / plan.separate_tokens:.0%} of the tokens saved by sharing prompts"
    why = "set by config.pack.row_tokens" if job.config.pack.row_tokens else f"the cheapest of {chosen.tried} lengths"
    return (
        f"batches of {rows} x {plan.row_tokens} tokens ({why}), {parts}, up to {plan.slots} completions a row, "
        f"{plan.padding:.1%} padding{shared if plan.tokens < plan.separate_tokens else ''}"
    )
