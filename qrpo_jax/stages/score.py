"""Stage `score`: a reward for every completion that has none yet."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row, check_row, check_scored
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.units import Counts, run_units
from qrpo_jax.rewards.models import ModelScorer, open_reward_model
from qrpo_jax.rewards.rewards import MODEL, TOO_LONG, ModelReward, Reward
from qrpo_jax.rewards.sandbox.pool import Limits

EMPTIED = "rows dropped: no completion left"


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
        tell_dropped(job, "score", counts)
        return {"units": units, "counts": counts, "protections": reward.protections}


def open_reward(job: Job) -> Reward | ModelReward:
    config = job.config.reward
    if config.name == MODEL:
        model = open_reward_model(Path(config.path), config.max_tokens)
        return ModelReward(ModelScorer(model, job.local_mesh, batch_rows=config.batch_rows, compute=job.compute))
    limits = Limits(cpu_seconds=config.cpu_seconds, memory_mb=config.memory_mb)
    return Reward(config.name, limits=limits, workers=config.workers)


def describe(reward: Reward | ModelReward) -> str:
    """One line on what keeps model-written code in bounds on this machine, or on the reward model."""
    if isinstance(reward, ModelReward):
        model = reward.model
        return f"score: by the reward model in {model.folder}, conversations of up to {model.max_tokens} tokens"
    if not reward.protections:
        return "score: the reward runs no model-written code"
    able = ", ".join(name for name, held in reward.protections.items() if held)
    unable = ", ".join(name for name, held in reward.protections.items() if not held)
    return f"score: code runs in processes of its own, limited: {able}" + (f"; NOT limited: {unable}" if unable else "")


def tell_dropped(job: Job, title: str, counts: Counts) -> int:
    """Says how many completions were too long for the reward model, and returns it."""
    dropped = sum(count for name, count in counts.items() if name == f"completions: {TOO_LONG}")
    if dropped:
        job.say(
            f"{title}: {dropped} completions were too long for the reward model and were dropped, and with them "
            f"{counts[EMPTIED]} rows that have no other (config.reward.max_tokens)"
        )
    return dropped


def score_rows(reward: Reward | ModelReward, rows: list[Row]) -> tuple[list[Row], Counts]:
    """Rows with the missing rewards filled in; rewards that are there stay.

    Completions that no reward can be given to are dropped and counted, and rows that have no other.

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
        found = [(c, next(fresh) if math.isnan(c.reward) else c.reward) for c in row.completions]
        filled = tuple(dataclasses.replace(c, reward=reward) for c, reward in found if reward is not None)
        if row.completions and not filled:
            continue
        done = dataclasses.replace(row, completions=filled)
        check_scored(done)
        scored.append(done)
    counts = {f"completions: {status}": count for status, count in scores.outcomes.items()} | dict(scores.counts)
    if isinstance(reward, ModelReward):
        counts[EMPTIED] = len(rows) - len(scored)
    return scored, counts
