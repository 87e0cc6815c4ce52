"""Requests that another program makes of a policy, answered as rows in units, so that a kill loses little."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row
from qrpo_jax.errors import DamagedError
from qrpo_jax.job.job import Job
from qrpo_jax.job.pace import SAMPLED
from qrpo_jax.job.unit_size import unit_size
from qrpo_jax.job.units import Counts, run_units


class WaitingError(Exception):
    """Units of these requests are left to other shards."""


def answers(
    job: Job,
    folder: Path,
    requests: Sequence[Any],
    compute: Callable[[Sequence[int], Sequence[str]], tuple[list[Row], Counts]],
    title: str,
) -> list[Row]:
    """A row for each request, in order.

    Args:
      folder: of the rows.
      requests: what JSON can hold.
      compute: from indices of requests, and ids for their rows, to the rows and counts.
      title: of the progress bar.

    Raises:
      WaitingError: other shards have work left.
      DamagedError: the rows that are there answer other requests.
    """
    ids = [f"{index}-{fingerprint(request)}" for index, request in enumerate(requests)]
    size = unit_size(job, folder, len(ids))

    def work(unit: int) -> tuple[list[Row], Counts]:
        indices = range(unit * size, min((unit + 1) * size, len(ids)))
        return compute(indices, [ids[i] for i in indices])

    units = -(-len(ids) // size)
    if run_units(job, folder, units, work, title=title, measure=SAMPLED, together=job.together) is None:
        raise WaitingError
    rows = list(row_files.read(folder))
    if [row.id for row in rows] != ids:
        remedy = f"remove {folder} and run again"
        raise DamagedError(folder, "it answers other requests, as of another version of lm_eval or its data", remedy)
    return rows


def fingerprint(request: Any) -> str:
    """A short hash of a request."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
