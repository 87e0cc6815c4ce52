"""Stage `harness`: published benchmarks on the run's policies: code, GSM8K, AlpacaEval, lm-evaluation-harness."""

from typing import Any

from qrpo_jax.harnesses import lm_eval_task, sampled
from qrpo_jax.harnesses.task_job import TaskJob, about, task_jobs
from qrpo_jax.harnesses.tasks import LM_EVAL
from qrpo_jax.job import results_file
from qrpo_jax.job.job import Job
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.report.harness_table import lines
from qrpo_jax.stages import RESULTS

# Numbers of a side in results.json that are counts of the manifest too.
COUNTS = {
    "not_asked": "prompts that were too long",
    "without_reward": "prompts without a reward, which count as failed",
    "contexts_cut": "contexts cut on the left",
}


def run(job: Job) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    base: Parameters | None = None
    waits = False
    for one in task_jobs(job):
        with about(one.task):
            base = one.unit_reference() if base is None else base
            record = kind_of(one).run(one, base)
        if record is None:
            waits = True
            continue
        found[one.task.name] = record
    if waits:
        return None
    results_file.write_part(job, "harness", found)
    job.say("\nHarnesses, with 95 % intervals:")
    for line in lines(found):
        job.say(f"  {line}")
    job.say("")
    return {"results": RESULTS, "tasks": list(found), "counts": counts(found)}


def kind_of(job: TaskJob) -> Any:
    """The module with `check` and `run` of a task."""
    return lm_eval_task if job.task.kind == LM_EVAL else sampled


def counts(found: dict[str, Any]) -> dict[str, int]:
    """Prompts that were not asked, contexts that were cut, and records that were dropped, for the manifest."""
    total: dict[str, int] = {}
    for name, record in found.items():
        for side in ("reference", "policy"):
            for count, what in COUNTS.items():
                if record.get(side, {}).get(count):
                    total[f"{name}, {side}: {what}"] = record[side][count]
        total |= {f"{name}: {what}": number for what, number in record.get("counts", {}).items()}
    return total


def check(job: Job) -> None:
    for one in task_jobs(job):
        with about(one.task):
            kind_of(one).check(one)
