"""Makes rollouts: prompts → completions of the policy → scores → log-probs of policy and reference."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.data.rows import Row
from qrpo_jax.devices.processes import made_by_first
from qrpo_jax.job.completions import make_completer
from qrpo_jax.job.job import Job
from qrpo_jax.job.scoring import score_rows
from qrpo_jax.job.training_room import training_room
from qrpo_jax.job.units import Counts, add_counts
from qrpo_jax.model import lora, value_head
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.on_policy.batches import ranks_by_group
from qrpo_jax.on_policy.prompt_order import PromptOrder
from qrpo_jax.on_policy.rollout import Rollout
from qrpo_jax.on_policy.rollout_figures import figures_of, has_signal
from qrpo_jax.on_policy.token_log_probs import make_token_log_probs
from qrpo_jax.rewards.failures import Failures
from qrpo_jax.rewards.reward import Reward

SECTION = "rollout"


class Drawn(NamedTuple):
    """Completions before they are scored.

    Attributes:
      rows: without those whose prompts were dropped.
      counts: of what was drawn and dropped.
      next_place: in the order of prompts, behind the last one that was asked for.
    """

    rows: list[Row]
    counts: Counts
    next_place: int


class Roller:
    """The policy's completions of the next prompts, with all that a step needs to know of them.

    Args:
      reward: open.
      failures: that it counts.
      frozen: with LoRA the base of the adapters, which is the reference policy.
      reference: parameters of the reference policy on the mesh of training; None where its log-probs have no use.
    """

    def __init__(
        self,
        job: Job,
        order: PromptOrder,
        reward: Reward,
        failures: Failures,
        *,
        frozen: Parameters | None,
        reference: Parameters | None,
    ) -> None:
        self._job, self._order, self._reward, self._failures = job, order, reward, failures
        self._frozen, self._reference, self._room = frozen, reference, training_room(job)
        self._old = make_token_log_probs(job, "policy")
        self._of_reference = None if reference is None else make_token_log_probs(job, "reference")

    def draw(self, parameters: Parameters, place: int, prompts: int) -> Drawn:
        """Completions of the prompts from `place` on.

        What is drawn depends on the parameters, the job's seed and the places alone.

        Args:
          parameters: that are trained, on the mesh of training.
        """
        section = self._job.config.rollout
        places = range(place, place + prompts)
        complete = make_completer(
            self._job,
            section,
            self.policy(value_head.split(parameters)[0]),
            side="policy",
            purpose=SECTION,
            most=section.prompts,
            room=self._room,
            keep_token_log_probs=True,
        )
        rows, counts = complete(self._order.rows(places), places)
        return Drawn(rows, counts, place + prompts)

    @property
    def prompts(self) -> int:
        """Of an iteration."""
        return int(self._job.config.rollout.prompts)

    @property
    def scores_together(self) -> bool:
        """Whether all processes must score together, on the devices: with a reward model."""
        return self._reward.collective

    def score_here(self, rows: list[Row]) -> tuple[list[Row], Counts]:
        """Rows with rewards, and counts; completions and rows without one are dropped and counted."""
        return score_rows(self._reward, rows, failures=self._failures)

    def score(self, drawn: Drawn) -> tuple[list[Row], Counts]:
        """As `score_here`, the same on all processes, with the counts of what was drawn."""
        score = functools.partial(self.score_here, drawn.rows)
        # Answers of a judge or a function may differ from call to call, so one process asks for all.
        scored, counts = score() if self.scores_together else made_by_first(score)
        return scored, add_counts([drawn.counts, counts])

    def with_log_probs(self, parameters: Parameters, rows: list[Row]) -> tuple[list[Row], dict[str, np.ndarray]]:
        """Rows with log π_ref, and numbers of their tokens as in `Rollout.tokens`.

        Args:
          parameters: with which the completions were drawn.
        """
        sampler = [np.zeros(0, np.float32), *(c.token_log_probs for row in rows for c in row.completions)]
        old = self._old(self.policy(parameters), rows)
        tokens = {"sampler": np.concatenate(sampler), "old": old.tokens}
        if value_head.split(parameters)[1] is not None:
            tokens["value"] = old.values
        log_probs_K = np.full_like(old.completions_K, np.nan)
        if self._of_reference is not None and self._reference is not None:
            found = self._of_reference(self._reference, rows)
            tokens["reference"], log_probs_K = found.tokens, found.completions_K
        return with_reference(rows, old.completions_K if ranks_by_group(self._job) else log_probs_K), tokens

    def roll(self, parameters: Parameters, place: int, facts: dict[str, Any]) -> Rollout:
        """The rollout of an iteration from `place` on; groups without signal make room for others, if asked to."""
        section = self._job.config.rollout
        drawn = self.draw(parameters, place, self.prompts)
        rows, counts = self.score(drawn)
        if section.refill:
            rows, counts, drawn = self._refilled(parameters, rows, counts, drawn)
        return self.rollout(*self.with_log_probs(parameters, rows), counts, drawn.next_place, facts)

    def rollout(
        self, rows: list[Row], tokens: dict[str, np.ndarray], counts: Counts, next_place: int, facts: dict[str, Any]
    ) -> Rollout:
        """With its facts.

        Args:
          facts: further ones.
        """
        figures, intervals = figures_of(rows, tokens, counts)
        own = {"next_place": next_place, "counts": counts, "figures": figures, "intervals": intervals}
        return Rollout(rows, tokens, own | facts)

    def _refilled(
        self, parameters: Parameters, rows: list[Row], counts: Counts, drawn: Drawn
    ) -> tuple[list[Row], Counts, Drawn]:
        """Rows of which as many as can be have a signal: dynamic sampling (arXiv 2503.14476, section 3.2)."""
        section = self._job.config.rollout
        useful, others = split(rows, has_signal)
        for _ in range(section.refill):
            missing = self.prompts - len(useful)
            if missing <= 0:
                break
            drawn = self.draw(parameters, drawn.next_place, missing)
            more, more_counts = self.score(drawn)
            found, without = split(more, has_signal)
            useful, others, counts = useful + found, others + without, add_counts([counts, more_counts])
        left = max(0, self.prompts - len(useful))
        return useful + others[:left], counts | {"groups replaced: no signal": len(others) - len(others[:left])}, drawn

    def policy(self, parameters: Parameters) -> Parameters:
        """The parameters of `trained_graph`, and the value head if there is one."""
        return parameters if self._frozen is None else lora.join(self._frozen, parameters)


def with_reference(rows: list[Row], log_probs_K: np.ndarray) -> list[Row]:
    """Rows whose completions have these log π_ref, one after the other."""
    values = iter(log_probs_K.tolist())
    return [
        dataclasses.replace(
            row, completions=tuple(dataclasses.replace(c, reference_log_prob=next(values)) for c in row.completions)
        )
        for row in rows
    ]


def split(rows: list[Row], true: Callable[[Row], bool]) -> tuple[list[Row], list[Row]]:
    """The rows for which something is true, and the others."""
    return [row for row in rows if true(row)], [row for row in rows if not true(row)]
