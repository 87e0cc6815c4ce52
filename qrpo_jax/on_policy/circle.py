"""The circle: steps ask for batches, and before the first step of an iteration the policy samples what they hold."""

from typing import Any

from qrpo_jax.data.batch import Batch
from qrpo_jax.job.job import Job
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.on_policy.batches import RolloutBatches, make_batches
from qrpo_jax.on_policy.rollouts import Rollouts
from qrpo_jax.on_policy.row_shape import RowShape, steps_per_pass
from qrpo_jax.training.fit import Visitor


class Circle:
    """The batches of a run, see `Batches`, and what makes them."""

    def __init__(self, job: Job, rollouts: Rollouts, shape: RowShape) -> None:
        self._job, self._rollouts, self._shape = job, rollouts, shape
        self.steps_each = steps_per_pass(job) * job.config.train.epochs  # of an iteration
        self._position = 0  # batches handed out
        self._open: tuple[int, RolloutBatches] | None = None

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self._rollouts.count * self.steps_each

    @property
    def producer(self) -> Visitor:
        """Makes the rollout of an iteration before its first step, and with `rollout.ahead` draws the next one."""
        return Visitor(lambda step: (step - 1) % self.steps_each == 0, self._visit, "rollout")

    def _visit(self, step: int, parameters: Parameters) -> dict[str, float]:
        iteration, made = (step - 1) // self.steps_each, step - 1
        rollout = self._rollouts.at(iteration, lambda: parameters, made)
        self._open = iteration, make_batches(self._job, rollout, iteration, self._shape)
        if self._job.config.rollout.ahead and iteration + 1 < self._rollouts.count:
            self._rollouts.draw_ahead(iteration + 1, parameters, made)
        facts = rollout.facts
        return facts["figures"] | {
            "rollout_samples": float(facts["samples"]),
            "rollout_beta": float(facts["beta"]),
            "rollout_staleness": float(made - facts["step"]),  # updates since the policy that sampled
        }

    def __next__(self) -> Batch:
        iteration, index = divmod(self._position, self.steps_each)
        if self._open is None or self._open[0] != iteration:  # a run goes on within an iteration
            batches = make_batches(self._job, self._rollouts.read(iteration), iteration, self._shape)
            self._open = iteration, batches
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
