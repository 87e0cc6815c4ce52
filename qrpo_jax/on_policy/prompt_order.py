"""The prompts of an on-policy run, as one endless sequence of which each iteration takes the next ones."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from qrpo_jax.data.rows import Row, check_scored
from qrpo_jax.data.sources import kind_of
from qrpo_jax.errors import located
from qrpo_jax.job.job import Job
from qrpo_jax.job.prompts import open_prompts
from qrpo_jax.job.stage_rows import reads_source, rows_of

STAGE = "train"


class PromptOrder:
    """Prompts by place: all of them in one order, then all in the next, and so on.

    Args:
      rows: without completions; held in memory.
      seed: shuffles each round; None keeps the order of the source, for a curriculum.
    """

    def __init__(self, rows: Sequence[Row], seed: int | None) -> None:
        self._rows, self._seed = rows, seed

    def __len__(self) -> int:
        """Prompts in one round."""
        return len(self._rows)

    def rows(self, places: Sequence[int]) -> list[Row]:
        """The prompts at these places of the sequence; those of a later round have an id of their own."""
        return [self._row(place) for place in places]

    def _row(self, place: int) -> Row:
        turn, within = divmod(place, len(self._rows))
        row = self._rows[int(self._order(turn)[within])]
        return row if turn == 0 else dataclasses.replace(row, id=f"{row.id}@{turn}")

    def _order(self, turn: int) -> np.ndarray:
        return _shuffled(len(self._rows), self._seed, turn)


@functools.lru_cache(maxsize=4)
def _shuffled(count: int, seed: int | None, turn: int) -> np.ndarray:
    if seed is None:
        return np.arange(count)
    return np.random.default_rng([seed, turn]).permutation(count)


def open_prompt_order(job: Job, *, with_references: bool) -> PromptOrder:
    """The prompts to train on: those of the stage before that writes rows, or else of the source.

    Args:
      with_references: rows keep the rewards of the reference policy's completions, to rank among.

    Raises:
      UserError: naming a row whose completions have no reward.
    """
    if reads_source(job, STAGE):
        sampled = kind_of(job.config.prompts.source).sampled
        prompts = open_prompts(job, STAGE, job.unit_reference() if sampled else None)
        rows = [row for unit in range(prompts.units) for row in prompts.rows(unit)]
    else:
        stored = rows_of(job, STAGE)
        rows = [row for unit in range(stored.units) for row in stored.read(unit)[0]]
    seed = job.config.seed if job.config.rollout.order == "shuffled" else None
    with located(row="prompts.source"):
        return PromptOrder([bare(row, with_references) for row in rows], seed)


def bare(row: Row, with_references: bool) -> Row:
    """The row without completions; the rewards of those that the reference policy wrote are reference rewards."""
    rewards = np.asarray(row.reference_rewards, np.float32)
    if with_references:
        check_scored(row)
        own = [c.reward for c in row.completions if c.source == "reference"]
        rewards = np.concatenate([np.asarray(own, np.float32), rewards])
    return dataclasses.replace(row, completions=(), preferences=(), reference_rewards=rewards)
