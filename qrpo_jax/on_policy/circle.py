"""The circle: steps ask for batches, and before the first step of an iteration the policy samples what they hold.

A rollout is written before the first step that uses it, and every later start reads it from there: a run that was
killed goes on with the completions and rewards that it had, whatever the reward would say now.

With `rollout.ahead` a rollout is drawn one iteration early, before the steps of the iteration before, and is scored on
the CPU while these steps run on the devices. Its policy is then older by these steps.
"""

from pathlib import Path
from typing import Any, NamedTuple

from qrpo_jax.data.batch import Batch
from qrpo_jax.data.rows import Row
from qrpo_jax.devices.processes import everywhere, is_first, made_by_first, wait
from qrpo_jax.job.job import Job
from qrpo_jax.job.units import Counts, add_counts
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.on_policy.background import Background
from qrpo_jax.on_policy.batches import RolloutBatches, make_batches
from qrpo_jax.on_policy.roller import Roller
from qrpo_jax.on_policy.rollout import Rollout, aligned, is_whole, read_facts, read_rollout, write_rollout
from qrpo_jax.on_policy.row_shape import RowShape, steps_per_pass
from qrpo_jax.training.fit import Visitor

DRAWN = "drawn"  # folder of rollouts that wait for their scores, in that of rollouts


class Pending(NamedTuple):
    """A rollout without scores; its scores are under way where this process computes them."""

    drawn: Rollout
    scores: Background[tuple[list[Row], Counts]] | None


class Circle:
    """The batches of a run, see `Batches`, and what makes them.

    Args:
      folder: of the rollouts.
    """

    def __init__(self, job: Job, roller: Roller, shape: RowShape, folder: Path) -> None:
        self._job, self._roller, self._shape, self._folder = job, roller, shape, folder
        self.iterations = job.config.rollout.iterations
        self.steps_each = steps_per_pass(job) * job.config.train.epochs
        self._position = 0  # batches handed out
        self._open: tuple[int, RolloutBatches] | None = None
        self._pending: dict[int, Pending] = {}

    @property
    def producer(self) -> Visitor:
        """Makes the rollout of an iteration before its first step, and with `ahead` draws the next one."""
        return Visitor(lambda step: (step - 1) % self.steps_each == 0, self._visit, "rollout")

    def _visit(self, step: int, parameters: Parameters) -> dict[str, float]:
        iteration, made = (step - 1) // self.steps_each, step - 1
        rollout = self._rollout(iteration, parameters, made)
        self._open = iteration, make_batches(self._job, rollout, iteration, self._shape)
        if self._job.config.rollout.ahead and iteration + 1 < self.iterations:
            self._draw_ahead(iteration + 1, parameters, made)
        facts = rollout.facts
        return facts["figures"] | {
            "rollout_samples": float(facts["samples"]),
            "rollout_staleness": float(made - facts["step"]),  # updates since the policy that sampled
        }

    def __next__(self) -> Batch:
        iteration, index = divmod(self._position, self.steps_each)
        if self._open is None or self._open[0] != iteration:  # a run goes on within an iteration
            rollout = read_rollout(self._folder, iteration, self.iterations)
            self._open = iteration, make_batches(self._job, rollout, iteration, self._shape)
        self._position += 1
        return self._open[1].batch(index)

    def get_state(self) -> Any:
        return {"batches": self._position}

    def set_state(self, state: Any) -> None:
        self._position = state["batches"]

    def name(self, example: int) -> str:
        """ "ROW ID/completion INDEX" of an example of the batch at hand."""
        assert self._open is not None, "a batch is at hand"
        return self._open[1].examples.name(example)

    def _rollout(self, iteration: int, parameters: Parameters, made: int) -> Rollout:
        """That of an iteration, from its files, which are written first if they are not there.

        Args:
          made: number of updates made so far.
        """
        if not everywhere(is_whole(self._folder, iteration, self.iterations)):
            ahead = self._finished_ahead(iteration)
            rollout = ahead or self._roller.roll(
                parameters, self._first_place(iteration), {"step": made, "samples": self._samples(iteration)}
            )
            self._write(self._folder, iteration, rollout)
        return read_rollout(self._folder, iteration, self.iterations)

    def _write(self, folder: Path, iteration: int, rollout: Rollout) -> None:
        if is_first():
            drawn = int(rollout.facts["counts"].get("completions", 0))
            facts = rollout.facts | {"samples": rollout.facts["samples"] + drawn}
            write_rollout(folder, iteration, self.iterations, rollout._replace(facts=facts))
        wait(f"{folder.name} {iteration}")

    def _first_place(self, iteration: int) -> int:
        """Where an iteration begins in the order of prompts."""
        return int(read_facts(self._folder, iteration - 1)["next_place"]) if iteration else 0

    def _samples(self, iteration: int) -> int:
        """Completions drawn before an iteration."""
        return int(read_facts(self._folder, iteration - 1)["samples"]) if iteration else 0

    def _draw_ahead(self, iteration: int, parameters: Parameters, made: int) -> None:
        """Draws a rollout and starts to score it, unless it is there."""
        if everywhere(is_whole(self._folder, iteration, self.iterations)):
            return
        folder = self._folder / DRAWN
        if not everywhere(is_whole(folder, iteration, self.iterations)):
            drawn = self._roller.draw(parameters, self._first_place(iteration), self._job.config.rollout.prompts)
            rows, tokens = self._roller.with_log_probs(parameters, drawn.rows)
            facts = {"step": made, "samples": self._samples(iteration)}
            self._write(folder, iteration, self._roller.rollout(rows, tokens, drawn.counts, drawn.next_place, facts))
        self._pending[iteration] = self._begin(iteration)

    def _begin(self, iteration: int) -> Pending:
        drawn = read_rollout(self._folder / DRAWN, iteration, self.iterations)
        alone = is_first() and not self._roller.scores_together
        return Pending(drawn, Background(lambda: self._roller.score_here(drawn.rows)) if alone else None)

    def _finished_ahead(self, iteration: int) -> Rollout | None:
        """The rollout of an iteration that was drawn ahead, with its scores; None if it was not."""
        if iteration not in self._pending:
            if not everywhere(is_whole(self._folder / DRAWN, iteration, self.iterations)):
                return None
            self._pending[iteration] = self._begin(iteration)
        drawn, scores = self._pending.pop(iteration)
        if self._roller.scores_together:
            scored, counts = self._roller.score_here(drawn.rows)
        else:
            scored, counts = made_by_first(lambda: scores.result() if scores else ([], {}))
        if not is_first():  # which writes the files that all read
            return drawn
        facts = drawn.facts
        tokens = aligned(drawn.rows, drawn.tokens, scored)
        return self._roller.rollout(
            scored,
            tokens,
            add_counts([facts["counts"], counts]),
            facts["next_place"],
            {"step": facts["step"], "samples": self._samples(iteration)},
        )
