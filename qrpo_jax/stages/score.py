"""Stage `score`: a reward for every completion that has none yet."""

import dataclasses
import math
from typing import Any

from qrpo_jax import row_files
from qrpo_jax.job import Job
from qrpo_jax.manifest import read_manifest
from qrpo_jax.rewards import Reward
from qrpo_jax.rows import Row, check_row, check_scored
from qrpo_jax.sandbox import Limits
from qrpo_jax.stages.units import Counts, run_units


def run(job: Job) -> dict[str, Any] | None:
    made = read_manifest(job.folder("sample"))
    assert made is not None, "stages run in order"
    units = made["units"]
    with open_reward(job) as reward:
        job.say(describe(reward))

        def work(unit: int) -> tuple[list[Row], Counts]:
            rows = list(row_files.read_unit(job.folder("sample"), unit, units))
            for row in rows:
                check_row(row)
            return score_rows(reward, rows)

        counts = run_units(job, job.folder("score"), units, work, title="score")
        if counts is None:
            return None
        return {"units": units, "counts": counts, "protections": reward.protections}


def open_reward(job: Job) -> Reward:
    config = job.config.reward
    limits = Limits(cpu_seconds=config.cpu_seconds, memory_mb=config.memory_mb)
    return Reward(config.name, limits=limits, workers=config.workers)


def describe(reward: Reward) -> str:
    """One line on what keeps model-written code in bounds on this machine."""
    if not reward.protections:
        return "score: the reward runs no model-written code"
    able = ", ".join(name for name, held in reward.protections.items() if held)
    unable = ", ".join(name for name, held in reward.protections.items() if not held)
    return f"score: code runs in processes of its own, limited: {able}" + (f"; NOT limited: {unable}" if unable else "")


def score_rows(reward: Reward, rows: list[Row]) -> tuple[list[Row], Counts]:
    """Rows with the missing rewards filled in; rewards that are there stay.

    Raises:
      ValueError: the reward function gave NaN or infinity.
    """
    pending = [
        dataclasses.replace(row, completions=tuple(c for c in row.completions if math.isnan(c.reward))) for row in rows
    ]
    scores = reward.score(pending)
    scored = []
    for row, rewards in zip(rows, scores.rewards, strict=True):
        fresh = iter(rewards)
        filled = tuple(
            dataclasses.replace(c, reward=next(fresh)) if math.isnan(c.reward) else c for c in row.completions
        )
        done = dataclasses.replace(row, completions=filled)
        check_scored(done)
        scored.append(done)
    counts = {f"completions: {status}": count for status, count in scores.outcomes.items()}
    return scored, counts
