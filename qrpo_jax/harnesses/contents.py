"""What tells the data of the tasks from others in the same place, for the settings of a run."""

from qrpo_jax.data.sources import kind_of
from qrpo_jax.harnesses.presets import PRESETS
from qrpo_jax.harnesses.task_job import about, task_jobs
from qrpo_jax.job.job import Job
from qrpo_jax.job.prompts import source_options


def contents(job: Job) -> dict[str, str]:
    """For each task with problems of its own a text that differs between two contents of its source."""
    found = {}
    for one in task_jobs(job):
        identity = kind_of(one.config.prompts.source).identity
        if one.task.kind in PRESETS and identity is not None:
            with about(one.task):
                found[f"harness.tasks {one.task.name} content"] = identity(source_options(one.config))
    return found
