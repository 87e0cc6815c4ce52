"""Mean reward of held-out prompts while a policy trains, in the lines of metrics.jsonl as held_out_NAME.

The prompts are of the selection half, so that a run which is stopped or chosen by this curve is still reported on
prompts that had no part in it. All processes sample together on the mesh of training; then the first one scores.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from qrpo_jax.config.keys import refuse
from qrpo_jax.data.rows import Row
from qrpo_jax.data.sources import kind_of
from qrpo_jax.devices.processes import is_first
from qrpo_jax.evaluation.halves import SELECTION, half_of
from qrpo_jax.job.completions import check_sampling, make_completer
from qrpo_jax.job.job import Job
from qrpo_jax.job.memory import Room
from qrpo_jax.job.prompts import check_held_out, open_sources
from qrpo_jax.job.reward_checks import check_reward
from qrpo_jax.job.scoring import describe, open_reward, score_rows
from qrpo_jax.job.training_room import training_room
from qrpo_jax.model import lora
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.rewards.failures import Failures
from qrpo_jax.rewards.reward import Reward
from qrpo_jax.training.fit import Visitor

SECTION = "watch"
BLOCK = 256  # rows of a source that are read at a time


class Watch(NamedTuple):
    """Prompts and their reward, which is open.

    Attributes:
      rows: without completions.
      indices: of the rows in their split; they seed the draws, which are the same at each step.
      room: where they are sampled.
      failures: of completions without a reward so far.
    """

    rows: list[Row]
    indices: list[int]
    room: Room
    reward: Reward
    failures: Failures


@contextmanager
def open_watch(job: Job) -> Iterator[Callable[[int, Parameters | None], Visitor] | None]:
    """Makes the visitor of `config.watch`, as `Training.watch`; None if the config asks for none. The reward is open.

    Raises:
      UserError: no held-out prompt is in the selection half.
    """
    if not job.config.watch.every:
        yield None
        return
    indices, rows = selected(job, job.config.watch.prompts)
    failures = Failures(job.config.reward.failures)
    with open_reward(job, failures) as reward:
        job.say(f"train: samples {len(rows)} prompts of the selection half as it goes; {describe(reward)}")
        yield functools.partial(reward_visitor, job, Watch(rows, indices, training_room(job), reward, failures))


def selected(job: Job, most: int) -> tuple[list[int], list[Row]]:
    """The first held-out prompts of the selection half, and their indices.

    Raises:
      UserError: there is none.
    """
    sampled = kind_of(job.config.prompts.source).sampled
    source = open_sources(job, job.unit_reference() if sampled else None)["eval"]
    found: list[tuple[int, Row]] = []
    for start in range(0, source.count, BLOCK):
        block = range(start, min(start + BLOCK, source.count))
        found += [
            (i, dataclasses.replace(row, completions=()))
            for i, row in zip(block, source.rows(block), strict=True)
            if half_of(row.id) == SELECTION
        ]
        if len(found) >= most:
            break
    if not found:
        raise refuse(
            "prompts.held_out", f"{job.config.prompts.held_out!r}, none in the selection half; or set watch.every=0"
        )
    indices, rows = zip(*found[:most], strict=True)
    return list(indices), list(rows)


def reward_visitor(job: Job, watch: Watch, steps: int, frozen: Parameters | None) -> Visitor:
    """Samples after the first step, every `watch.every` steps and the last one.

    Args:
      steps: of the whole run.
      frozen: with LoRA the base of the adapters.
    """
    every = job.config.watch.every

    def visit(step: int, parameters: Parameters) -> dict[str, float]:
        return figures(job, watch, parameters if frozen is None else lora.join(frozen, parameters))

    return Visitor(lambda step: step in (1, steps) or step % every == 0, visit, "evaluate")


def figures(job: Job, watch: Watch, parameters: Parameters) -> dict[str, float]:
    """Means over prompts, and of what the policy wrote.

    Args:
      parameters: of the policy, on the mesh of training.
    """
    complete = make_completer(
        job,
        job.config.watch,
        parameters,
        side="policy",
        purpose=SECTION,
        most=len(watch.rows),
        room=watch.room,
    )
    rows, _ = complete(watch.rows, watch.indices)
    scored: list[Row] = []
    if is_first() or watch.reward.collective:
        scored, _ = score_rows(watch.reward, rows, failures=watch.failures)
    drawn, kept = ([c for row in of for c in row.completions] for of in (rows, scored))
    rewards = [np.mean([c.reward for c in row.completions]) for row in scored]
    return {
        # Other processes have no number, but the same line.
        "held_out_reward": float(np.mean(rewards)) if rewards else float("nan"),
        "held_out_without_reward": float(len(drawn) - len(kept)),
        "held_out_tokens": float(np.mean([len(c.tokens) for c in drawn])) if drawn else float("nan"),
        "held_out_share_finished": float(np.mean([c.finished for c in drawn])) if drawn else float("nan"),
    }


def check_watch(job: Job) -> None:
    """Refuses settings with which held-out prompts cannot be sampled or scored.

    Raises:
      UserError: naming the key.
    """
    if job.config.watch.every:
        check_held_out(job, 1)
        check_sampling(job, SECTION)
        check_reward(job)
