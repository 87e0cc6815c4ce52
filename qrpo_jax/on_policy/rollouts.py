"""Rollouts on disk: each iteration's is made once, and read by every later start.

A rollout is written before the first step that uses it. A run that was killed goes on with the completions and rewards
that it had, whatever the reward would say now.

With `rollout.ahead` a rollout is drawn one iteration early, before the steps of the iteration before, and is scored on
the CPU while these steps run on the devices. Its policy is then older by these steps.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qrpo_jax.data.rows import Row
from qrpo_jax.devices.processes import everywhere, is_first, made_by_first, wait
from qrpo_jax.job.units import Counts, add_counts
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.on_policy.background import Background
from qrpo_jax.on_policy.roller import Roller
from qrpo_jax.on_policy.rollout import Rollout, aligned, is_whole, read_facts, read_rollout, write_rollout

DRAWN = "drawn"  # folder of rollouts that wait for their scores, in that of rollouts


class Pending(NamedTuple):
    """A rollout without scores; its scores are under way where this process computes them."""

    drawn: Rollout
    scores: Background[tuple[list[Row], Counts]] | None


class Rollouts:
    """The rollouts of a run.

    Args:
      folder: where they are.
      count: iterations of the run.
      next_beta: strength of a KL term in the reward, from the facts of the rollout before; None for the first.
    """

    def __init__(
        self, roller: Roller, folder: Path, count: int, next_beta: Callable[[Mapping[str, Any] | None], float]
    ) -> None:
        self._roller, self._folder, self.count, self._next_beta = roller, folder, count, next_beta
        self._pending: dict[int, Pending] = {}

    def read(self, iteration: int) -> Rollout:
        """One that was made."""
        return read_rollout(self._folder, iteration, self.count)

    def at(self, iteration: int, parameters: Callable[[], Parameters], made: int) -> Rollout:
        """The rollout of an iteration, made if it is not there; those before it are.

        Args:
          parameters: that are trained, on the mesh of training.
          made: number of updates made so far.
        """
        if not everywhere(is_whole(self._folder, iteration, self.count)):
            rollout = self._finished_ahead(iteration)
            if rollout is None:
                rollout = self._roller.roll(parameters(), self._first_place(iteration), self._facts(iteration, made))
            self._write(self._folder, iteration, rollout)
        return self.read(iteration)

    def draw_ahead(self, iteration: int, parameters: Parameters, made: int) -> None:
        """Draws a rollout and starts to score it, unless it is there; arguments as in `at`."""
        if everywhere(is_whole(self._folder, iteration, self.count)):
            return
        folder = self._folder / DRAWN
        if not everywhere(is_whole(folder, iteration, self.count)):
            drawn = self._roller.draw(parameters, self._first_place(iteration), self._roller.prompts)
            rows, tokens = self._roller.with_log_probs(parameters, drawn.rows)
            facts = self._facts(iteration, made)
            self._write(folder, iteration, self._roller.rollout(rows, tokens, drawn.counts, drawn.next_place, facts))
        self._pending[iteration] = self._begin(iteration)

    def _begin(self, iteration: int) -> Pending:
        drawn = read_rollout(self._folder / DRAWN, iteration, self.count)
        alone = is_first() and not self._roller.scores_together
        return Pending(drawn, Background(lambda: self._roller.score_here(drawn.rows)) if alone else None)

    def _finished_ahead(self, iteration: int) -> Rollout | None:
        """The rollout of an iteration that was drawn ahead, with its scores; None if it was not."""
        if iteration not in self._pending:
            if not everywhere(is_whole(self._folder / DRAWN, iteration, self.count)):
                return None
            self._pending[iteration] = self._begin(iteration)
        drawn, scores = self._pending.pop(iteration)

        def with_scores() -> Rollout:
            scored, counts = self._roller.score_here(drawn.rows) if scores is None else scores.result()
            facts = drawn.facts
            return self._roller.rollout(
                scored,
                aligned(drawn.rows, drawn.tokens, scored),
                add_counts([facts["counts"], counts]),
                facts["next_place"],
                self._facts(iteration, facts["step"]),
            )

        return with_scores() if self._roller.scores_together else made_by_first(with_scores)

    def _write(self, folder: Path, iteration: int, rollout: Rollout) -> None:
        if is_first():
            drawn = int(rollout.facts["counts"].get("completions", 0))
            facts = rollout.facts | {"samples": rollout.facts["samples"] + drawn}
            write_rollout(folder, iteration, self.count, rollout._replace(facts=facts))
        wait(f"{folder.name} {iteration}")

    def _before(self, iteration: int) -> dict[str, Any] | None:
        """The facts of the rollout before; None for the first."""
        return read_facts(self._folder, iteration - 1) if iteration else None

    def _first_place(self, iteration: int) -> int:
        """Where an iteration begins in the order of prompts."""
        before = self._before(iteration)
        return before["next_place"] if before else 0

    def _facts(self, iteration: int, made: int) -> dict[str, Any]:
        """Facts that are known before sampling; `samples` are completions drawn before."""
        before = self._before(iteration)
        return {"step": made, "samples": before["samples"] if before else 0, "beta": self._next_beta(before)}
