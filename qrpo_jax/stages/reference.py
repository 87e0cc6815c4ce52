"""Stage `reference`: log π_ref of every completion, computed once, so that training never loads the reference."""

import dataclasses
from typing import Any

import numpy as np

from qrpo_jax.data.rows import Row
from qrpo_jax.job import summary
from qrpo_jax.job.job import Job
from qrpo_jax.job.log_probs import make_log_probs
from qrpo_jax.job.pace import READ
from qrpo_jax.job.stage_rows import rows_of
from qrpo_jax.job.units import Counts, run_units


def run(job: Job) -> dict[str, Any] | None:
    source = rows_of(job, "reference")
    parameters = job.unit_reference()
    log_probs = make_log_probs(job)

    def work(unit: int) -> tuple[list[Row], Counts]:
        rows, left_out = source.read(unit)
        values, counts = log_probs(parameters, rows)
        return [with_reference(row, of_row) for row, of_row in zip(rows, values, strict=True)], left_out | counts

    folder, units = job.folder("reference"), source.units
    counts = run_units(job, folder, units, work, title="reference", measure=READ, together=job.together)
    if counts is None:
        return None
    counts = source.counts | counts
    rows = summary.close(job, "reference", folder, units=units, rows_in=source.total, counts=counts, measure=READ)
    return {"units": units, "counts": counts, "row_flow": rows}


def with_reference(row: Row, log_probs: np.ndarray) -> Row:
    """The row with its completions' log π_ref, `log_probs` [S]."""
    completions = tuple(
        dataclasses.replace(c, reference_log_prob=float(value))
        for c, value in zip(row.completions, log_probs, strict=True)
    )
    return dataclasses.replace(row, completions=completions)
