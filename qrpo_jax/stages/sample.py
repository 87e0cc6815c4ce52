"""Stage `sample`: completions of every prompt from the reference policy."""

from typing import Any

from qrpo_jax.data.rows import Row
from qrpo_jax.job import summary
from qrpo_jax.job.completions import check_sampling, make_completer
from qrpo_jax.job.job import Job
from qrpo_jax.job.pace import SAMPLED
from qrpo_jax.job.prompts import open_prompts
from qrpo_jax.job.units import Counts, run_units


def run(job: Job) -> dict[str, Any] | None:
    parameters = job.reference_parameters(job.unit_mesh)
    prompts = open_prompts(job, "sample", parameters)
    complete = make_completer(job, job.config.sample, side="reference", purpose="sample", most=prompts.size)

    def work(unit: int) -> tuple[list[Row], Counts]:
        return complete(parameters, prompts.rows(unit), list(prompts.indices(unit)))

    folder, units = job.folder("sample"), prompts.units
    counts = run_units(job, folder, units, work, title="sample", measure=SAMPLED, together=job.together)
    if counts is None:
        return None
    counts, rows_in = prompts.counts | counts, prompts.source.count
    rows = summary.close(job, "sample", folder, units=units, rows_in=rows_in, counts=counts, measure=SAMPLED)
    return {"units": units, "counts": counts, "row_flow": rows}


def check(job: Job) -> None:
    check_sampling(job, "sample")
