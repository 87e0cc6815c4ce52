"""The batches of a rollout: ranked, packed, and with the numbers of tokens that objectives of tokens need."""

import dataclasses
from typing import NamedTuple

import numpy as np

from qrpo_jax import transforms
from qrpo_jax.data.batch import Batch
from qrpo_jax.data.batch_order import batch_order
from qrpo_jax.data.corpus import tokenize
from qrpo_jax.data.examples import Examples, select
from qrpo_jax.data.loader import assemble
from qrpo_jax.data.packing import Plan, plan_batches
from qrpo_jax.data.per_token import PerToken
from qrpo_jax.devices.mesh import own_rows
from qrpo_jax.errors import UserError, located
from qrpo_jax.job.chosen_objective import chosen_objective
from qrpo_jax.job.job import Job
from qrpo_jax.job.packing import shares_prompts
from qrpo_jax.job.training_options import KEYS, make_length, make_view
from qrpo_jax.on_policy.credit import token_numbers
from qrpo_jax.on_policy.rollout import Rollout
from qrpo_jax.on_policy.row_shape import RowShape, steps_per_pass
from qrpo_jax.on_policy.token_numbers import in_positions

GROUP, REFERENCE = "group", "reference"


class RolloutBatches(NamedTuple):
    """All batches of one iteration.

    Attributes:
      own: rows of this process's devices.
      numbers: of the tokens of all completions, one after the other.
    """

    examples: Examples
    plan: Plan
    own: np.ndarray
    numbers: PerToken

    def batch(self, index: int) -> Batch:
        """A host batch."""
        batch = assemble(self.examples, self.plan, index, self.own)
        entries_C, lengths_K = self.examples.entries_C, self.examples.corpus.lengths_K
        placed = (in_positions(values, batch, entries_C, lengths_K) for values in self.numbers)
        return batch._replace(per_token_BxL=PerToken(*placed))


def make_batches(job: Job, rollout: Rollout, iteration: int, shape: RowShape) -> RolloutBatches:
    """Packs what an iteration learns from."""
    config = job.config.train
    examples = rank(job, rollout)
    units, passes = examples.packing_units(), steps_per_pass(job)
    seed = int(np.random.SeedSequence([job.config.seed, iteration]).generate_state(1)[0])
    size = -(-len(units) // passes)
    orders = []
    for turn in range(config.epochs):
        dealt = batch_order(units, size, 1, seed + turn, config.shuffle)
        orders += dealt + [np.zeros(0, np.int32)] * (passes - len(dealt))
    plan = plan_batches(
        units,
        batch_units=size,
        row_tokens=shape.row_tokens,
        slots=shape.slots,
        epochs=config.epochs,
        share=shares_prompts(job),
        row_multiple=shape.part_rows,
        microbatches=shape.microbatches,
        orders=orders,
    )
    assert plan.rows == shape.rows, f"{plan.rows} rows of {shape.rows}"
    numbers = token_numbers(rollout, chosen_objective(job), config, beta=rollout.facts["beta"])
    return RolloutBatches(examples, plan, own_rows(job.mesh, plan.rows), numbers)


def rank(job: Job, rollout: Rollout) -> Examples:
    """The completions of a rollout, ranked if the objective wants that.

    Raises:
      UserError: nothing of it can be trained on.
    """
    config, ranked, rows = job.config.train, chosen_objective(job).ranked, rollout.rows
    by_group = ranks_by_group(job)
    if by_group:
        rows = [
            dataclasses.replace(
                row, completions=tuple(dataclasses.replace(c, source=REFERENCE) for c in row.completions)
            )
            for row in rows
        ]
    transform = transforms.parse(config.transform) if ranked else transforms.identity
    with located(**KEYS, references="rollout.completions" if by_group else "sample.completions"):
        examples = select(
            tokenize(rows, job.text, vocab_size=job.shape.settings.vocab_size),
            make_view(job),
            transform,
            beta=(lambda length_C: make_length(job).beta(config.beta, length_C)) if ranked else None,
            need_references=ranked,
        )
    if not len(examples.sizes_U):
        counts = ", ".join(f"{count} {name}" for name, count in examples.counts.items() if count)
        raise UserError(f"an iteration has nothing to train on: {counts} (config.rollout, config.pack, config.select)")
    return without_cut(examples) if config.mask_cut else examples


def without_cut(examples: Examples) -> Examples:
    """Completions that the length limit cut have no weight."""
    weight_C = np.where(examples.corpus.finished_K[examples.entries_C], examples.completions_C.weight, np.float32(0))
    return examples._replace(completions_C=examples.completions_C._replace(weight=weight_C))


def ranks_by_group(job: Job) -> bool:
    """Whether completions are ranked among those of their own prompt.

    Such quantiles are uniform under the policy that sampled. That policy is then the reference of the iteration, also
    in log-ratios.
    """
    return chosen_objective(job).ranked and job.config.rollout.quantiles == GROUP
