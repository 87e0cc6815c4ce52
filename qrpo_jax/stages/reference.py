"""Stage `reference`: log π_ref of every completion, computed once, so that training never loads the reference."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from qrpo_jax.data import row_files
from qrpo_jax.data.examples import build_examples
from qrpo_jax.data.loader import assemble
from qrpo_jax.data.packing import plan_rows
from qrpo_jax.data.rows import Row
from qrpo_jax.data.views import View
from qrpo_jax.devices.mesh import axis_size, place, row_sharding
from qrpo_jax.job.job import Job, before
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.prompts import padded
from qrpo_jax.job.units import Counts, run_units
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.training.step import completion_log_probs

LogProbs = Callable[[Parameters, list[Row]], tuple[list[np.ndarray], Counts]]


def run(job: Job) -> dict[str, Any] | None:
    source = before(job.config.stages, "reference", ("sample", "score"))
    assert source is not None, "checked before anything ran"
    made = read_manifest(job.folder(source))
    assert made is not None, "stages run in order"
    units = made["units"]
    parameters = job.reference_parameters(job.local_mesh)
    log_probs = make_log_probs(job)

    def work(unit: int) -> tuple[list[Row], Counts]:
        rows = list(row_files.read_unit(job.folder(source), unit, units))
        found, counts = log_probs(parameters, rows)
        return [with_reference(row, values) for row, values in zip(rows, found, strict=True)], counts

    counts = run_units(job, job.folder("reference"), units, work, title="reference")
    return None if counts is None else {"units": units, "counts": counts}


def with_reference(row: Row, log_probs: np.ndarray) -> Row:
    filled = tuple(
        dataclasses.replace(c, reference_log_prob=float(value))
        for c, value in zip(row.completions, log_probs, strict=True)
    )
    return dataclasses.replace(row, completions=filled)


def make_log_probs(job: Job, source: str = "reference", temperature: float | None = None) -> LogProbs:
    """A function from parameters and rows to log-probabilities of each row's completions (NaN if dropped as too long).

    The parameters are those of `source`, "reference" or "policy".

    It packs and computes as training does, with the same function, at the temperature of training unless told
    another.
    """
    pack, text, mesh, precision = job.config.pack, job.policy.text, job.local_mesh, job.precision()
    if temperature is not None:
        precision = precision._replace(temperature=temperature)
    graph = job.graph(source)
    view = View(max_tokens=pack.max_tokens, over_long=pack.over_long)
    batch_rows = padded(job.config.reference.batch_rows, axis_size(mesh, "rows"))
    jitted = jax.jit(lambda parameters, batch: completion_log_probs(graph, parameters, batch, precision))

    def log_probs(parameters: Parameters, rows: list[Row]) -> tuple[list[np.ndarray], Counts]:
        examples = build_examples(rows, text, view, transform=None)
        found: dict[int, float] = {}
        if examples.units:
            plan = plan_rows(examples.unit_lengths(), examples.unit_sizes(), pack.row_tokens, pack.slots, batch_rows)
            for index in range(plan.steps):
                batch = assemble(examples, plan, index)
                values_BxS = np.asarray(jitted(parameters, place(batch, row_sharding(mesh))))
                present = batch.example_BxS >= 0
                found |= dict(zip(batch.example_BxS[present].tolist(), values_BxS[present].tolist(), strict=True))
        by_name = {name: found[c] for c, name in enumerate(examples.names)}
        values = [
            np.asarray([by_name.get(f"{row.id}/{i}", np.nan) for i in range(len(row.completions))]) for row in rows
        ]
        return values, examples.counts

    return log_probs
