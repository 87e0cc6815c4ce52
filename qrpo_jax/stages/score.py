"""Stage `score`: a reward for every completion that has none yet, sampled or brought by a data set."""

from typing import Any

from qrpo_jax.data.rows import Row, check_row
from qrpo_jax.job import reward_counts, summary, verdicts
from qrpo_jax.job.job import Job
from qrpo_jax.job.pace import SCORED
from qrpo_jax.job.reward_checks import check_reward
from qrpo_jax.job.scoring import describe, open_reward, report_dropped, score_rows, written
from qrpo_jax.job.stage_rows import rows_of
from qrpo_jax.job.units import Counts, run_units, written_counts


def run(job: Job) -> dict[str, Any] | None:
    source = rows_of(job, "score")
    failures = written(job, written_counts(job.folder("score"), source.units))
    with open_reward(job, failures) as reward:
        job.say(f"score: {describe(reward)}")
        together = reward.collective and job.together

        def work(unit: int) -> tuple[list[Row], Counts]:
            rows, left_out = source.read(unit)
            for row in rows:
                check_row(row)
            scored, counts = score_rows(reward, rows, job.config.reward.replace, failures)
            return scored, left_out | counts | reward_counts.counts_of(scored)

        folder, units = job.folder("score"), source.units
        counts = run_units(job, folder, units, work, title="score", measure=SCORED, together=together)
        if counts is None:
            return None
        counts, lines = verdicts.parted(counts)
        counts, rewards = reward_counts.parted(source.counts | counts)
        rows = summary.close(job, "score", folder, units=units, rows_in=source.total, counts=counts, measure=SCORED)
        report_dropped(job, "score", counts)
        verdicts.say(job, "score", counts, lines)
        found = {"counts": counts, "row_flow": rows, "rewards": summary.say_rewards(job, "score", rewards)}
        held = {"isolation": reward.isolation, "protections": reward.protections}
        return {"units": units, "first_lines": lines} | found | held


def check(job: Job) -> None:
    check_reward(job)
