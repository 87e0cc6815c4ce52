"""Held-out rows: a folder for each policy and seed in that of stage `evaluate`, and the rows of several together."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row
from qrpo_jax.errors import located
from qrpo_jax.evaluation.answers import NOTHING, Answers
from qrpo_jax.evaluation.compare import POLICY, SIDES
from qrpo_jax.evaluation.kl import LogRatios
from qrpo_jax.job.job import Job
from qrpo_jax.rewards.parts import SUM, read_parts
from qrpo_jax.rewards.rewards import GRADED


def folder_of(job: Job, policy: str, seed: int) -> Path:
    """Where the rows of a policy are that were sampled with one of `evaluate.seeds`."""
    first = job.config.evaluate.seeds[0]
    return job.folder("evaluate") / (policy if seed == first else f"{policy}-seed-{seed}")


def sides_of(job: Job) -> tuple[str, ...]:
    """The sides that are compared: both, or the policy alone."""
    return SIDES if "train" in job.config.stages or job.config.evaluate.against else (POLICY,)


def rows_by_seed(job: Job, policy: str) -> dict[int, list[Row]]:
    """The rows of a policy, for each seed."""
    return {seed: list(row_files.read(folder_of(job, policy, seed))) for seed in job.config.evaluate.seeds}


def shared_rows(job: Job) -> dict[str, list[Row]]:
    """Rows of each side in the same order, with the completions of all seeds.

    Prompts that lost all completions of a side and seed are left out.
    """
    found = {side: rows_by_seed(job, side) for side in sides_of(job)}
    every = [{row.id for row in rows} for of_side in found.values() for rows in of_side.values()]
    shared = set.intersection(*every)
    return {
        side: joined([[row for row in rows if row.id in shared] for rows in of_side.values()])
        for side, of_side in found.items()
    }


def joined(parts: Sequence[Sequence[Row]]) -> list[Row]:
    """Rows of the same prompts in the same order, as rows with the completions of all."""
    return [
        dataclasses.replace(rows[0], completions=tuple(c for row in rows for c in row.completions))
        for rows in zip(*parts, strict=True)
    ]


def graded_by(job: Job) -> str | None:
    """What grades completions by tests: "" for the reward itself, the name of a part of a sum, or None for nothing.

    Of a sum with several such parts, which tests a completion passed has no one answer.
    """
    if job.config.reward.name != SUM:
        return "" if job.config.reward.name in GRADED else None
    with located("reward.parts"):
        graded = [part.name for part in read_parts(job.config.reward.parts) if part.reward in GRADED]
    return graded[0] if len(graded) == 1 else None


def answers(row: Row, ratios: LogRatios | None = None, graded: str | None = None) -> Answers:
    """A row as numbers.

    Args:
      ratios: log-ratios of its completions, if they are known.
      graded: of `graded_by`.
    """
    log_ratio_S, token_k3_S = (NOTHING, NOTHING) if ratios is None else ratios
    rewards = [c.reward for c in row.completions]
    grades = rewards if graded == "" else [dict(c.components)[graded] for c in row.completions] if graded else []
    return Answers(
        np.asarray(rewards),
        np.asarray([len(c.tokens) for c in row.completions]),
        np.asarray([c.finished for c in row.completions]),
        log_ratio_S,
        token_k3_S,
        np.asarray(grades, np.float64),
        np.asarray(row.reference_rewards, np.float64),
    )


def answers_by_seed(
    rows: Mapping[int, Sequence[Row]], ratios: Mapping[int, Sequence[LogRatios]], graded: str | None = None
) -> dict[int, dict[str, Answers]]:
    """The answers of a policy for each seed, by the id of their row.

    Args:
      ratios: of the rows of each seed; it may have none.
      graded: of `graded_by`.
    """
    found: dict[int, dict[str, Answers]] = {}
    for seed, of_seed in rows.items():
        of_rows = ratios.get(seed, [None] * len(of_seed))
        found[seed] = {row.id: answers(row, one, graded) for row, one in zip(of_seed, of_rows, strict=True)}
    return found
