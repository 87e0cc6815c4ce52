"""Stage `score`: a reward for every completion that has none yet."""

from typing import Any

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row, check_row
from qrpo_jax.job.job import Job
from qrpo_jax.job.scoring import check_reward, describe, open_reward, report_dropped, score_rows
from qrpo_jax.job.units import Counts, row_units, run_units
from qrpo_jax.rewards.rewards import ModelReward


def run(job: Job) -> dict[str, Any] | None:
    source = job.folder(job.rows_before("score"))
    units = row_units(source)
    with open_reward(job) as reward:
        job.say(f"score: {describe(reward)}")
        together = isinstance(reward, ModelReward) and job.together

        def work(unit: int) -> tuple[list[Row], Counts]:
            rows = list(row_files.read_unit(source, unit, units))
            for row in rows:
                check_row(row)
            return score_rows(reward, rows)

        counts = run_units(job, job.folder("score"), units, work, title="score", together=together)
        if counts is None:
            return None
        report_dropped(job, "score", counts)
        return {"units": units, "counts": counts, "protections": reward.protections}


def check(job: Job) -> None:
    check_reward(job)
