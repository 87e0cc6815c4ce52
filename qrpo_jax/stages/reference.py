"""Stage `reference`: log π_ref of every completion, computed once, so that training never loads the reference."""

import dataclasses
from typing import Any

import numpy as np

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row
from qrpo_jax.job.job import Job
from qrpo_jax.job.log_probs import make_log_probs
from qrpo_jax.job.units import Counts, row_units, run_units


def run(job: Job) -> dict[str, Any] | None:
    source = job.folder(job.rows_before("reference"))
    units = row_units(source)
    parameters = job.reference_parameters(job.unit_mesh)
    log_probs = make_log_probs(job)

    def work(unit: int) -> tuple[list[Row], Counts]:
        rows = list(row_files.read_unit(source, unit, units))
        values, counts = log_probs(parameters, rows)
        return [with_reference(row, of_row) for row, of_row in zip(rows, values, strict=True)], counts

    counts = run_units(job, job.folder("reference"), units, work, title="reference", together=job.together)
    return None if counts is None else {"units": units, "counts": counts}


def with_reference(row: Row, log_probs: np.ndarray) -> Row:
    """The row with its completions' log π_ref, `log_probs` [S]."""
    completions = tuple(
        dataclasses.replace(c, reference_log_prob=float(value))
        for c, value in zip(row.completions, log_probs, strict=True)
    )
    return dataclasses.replace(row, completions=completions)
