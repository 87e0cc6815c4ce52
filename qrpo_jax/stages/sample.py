"""Stage `sample`: completions of every prompt from the reference policy, sampled here or by servers that have it."""

from typing import Any

from qrpo_jax.data.rows import Row
from qrpo_jax.job import summary
from qrpo_jax.job.completions import Completer, check_sampling, make_completer
from qrpo_jax.job.job import Job
from qrpo_jax.job.pace import SAMPLED
from qrpo_jax.job.prompts import Prompts, open_prompts
from qrpo_jax.job.served_completions import ServedCompleter
from qrpo_jax.job.server_access import check_servers
from qrpo_jax.job.units import Counts, Work, run_units

NAME = "sample"


def run(job: Job) -> dict[str, Any] | None:
    prompts, counts = (sample if job.config.sample.backend == "local" else sample_served)(job)
    if counts is None:
        return None
    folder, units, counts = job.folder(NAME), prompts.units, prompts.counts | counts
    rows_in = prompts.source.count
    rows = summary.close(job, NAME, folder, units=units, rows_in=rows_in, counts=counts, measure=SAMPLED)
    return {"units": units, "counts": counts, "row_flow": rows}


def sample(job: Job) -> tuple[Prompts, Counts | None]:
    """Samples with the reference policy's weights, on the devices of this process or of all together."""
    parameters = job.unit_reference()
    prompts = open_prompts(job, NAME, parameters)
    complete = make_completer(job, job.config.sample, parameters, side="reference", purpose=NAME, most=prompts.size)
    work, folder = work_of(complete, prompts), job.folder(NAME)
    return prompts, run_units(job, folder, prompts.units, work, title=NAME, measure=SAMPLED, together=job.together)


def sample_served(job: Job) -> tuple[Prompts, Counts | None]:
    """Has servers sample. Each process asks for its own units, and for the next ones before one is complete."""
    prompts = open_prompts(job, NAME)
    with ServedCompleter(job, job.config.sample, side="reference", purpose=NAME, most=prompts.size) as complete:

        def begin(unit: int) -> None:
            complete.begin(prompts.rows(unit), prompts.indices(unit))

        work, folder = work_of(complete, prompts), job.folder(NAME)
        return prompts, run_units(
            job, folder, prompts.units, work, title=NAME, measure=SAMPLED, begin=begin, ahead=complete.ahead
        )


def work_of(complete: Completer, prompts: Prompts) -> Work:
    """The work of one unit: completions of its prompts."""

    def work(unit: int) -> tuple[list[Row], Counts]:
        return complete(prompts.rows(unit), prompts.indices(unit))

    return work


def check(job: Job) -> None:
    check_sampling(job, NAME)
    if job.config.sample.backend == "openai":
        check_servers(job, NAME)
