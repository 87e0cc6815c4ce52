"""Stage `sample`: completions of every prompt from the reference policy."""

from typing import Any

from qrpo_jax.data.rows import Row
from qrpo_jax.job.completions import check_sampling, make_completer
from qrpo_jax.job.job import Job
from qrpo_jax.job.prompts import open_prompts
from qrpo_jax.job.units import Counts, run_units


def run(job: Job) -> dict[str, Any] | None:
    parameters = job.reference_parameters(job.unit_mesh)
    prompts = open_prompts(job, "sample", parameters)
    complete = make_completer(job, job.config.sample, side="reference", purpose="sample", most=prompts.size)

    def work(unit: int) -> tuple[list[Row], Counts]:
        return complete(parameters, prompts.rows(unit), list(prompts.indices(unit)))

    counts = run_units(job, job.folder("sample"), prompts.units, work, title="sample", together=job.together)
    return None if counts is None else {"units": prompts.units, "counts": prompts.counts | counts}


def check(job: Job) -> None:
    check_sampling(job, "sample")
