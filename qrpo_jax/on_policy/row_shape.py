"""The shape of all batches of an on-policy run, fixed before the first completion is sampled.

A step compiles once, so every batch has the same rows, however long its completions turn out to be. Parts of a batch
that stay empty cost nothing (`make_step`), so there are rows enough for the longest ones.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from qrpo_jax.config.keys import refuse
from qrpo_jax.data.batch_order import batch_order
from qrpo_jax.data.examples import Examples
from qrpo_jax.data.packing_units import Units
from qrpo_jax.data.row_planner import Planner
from qrpo_jax.data.views import VIEWS
from qrpo_jax.devices.mesh import axis_size, round_up
from qrpo_jax.job.job import Job
from qrpo_jax.job.packing import keep_choice, make_planner, read_choice

STAGE = "train"
LEAST_SLOTS, SLOT_TOKENS = 8, 16  # slots of a row: one for each so many tokens


class RowShape(NamedTuple):
    """Shape of a batch.

    Attributes:
      row_tokens: L.
      slots: S.
      rows: B, in `microbatches` equal parts.
    """

    row_tokens: int
    slots: int
    rows: int
    microbatches: int

    @property
    def part_rows(self) -> int:
        """Rows of a microbatch, on all devices together."""
        return self.rows // self.microbatches


def units_per_prompt(job: Job) -> int:
    """Completions, or pairs, of one prompt that an iteration trains on if none is dropped."""
    select, completions = job.config.select, job.config.rollout.completions
    taken = min(select.first or completions, completions)
    pairing = VIEWS[select.units].pairing
    return {None: taken, "extremes": min(1, taken // 2), "disjoint": taken // 2, "all": taken * (taken - 1) // 2}[
        pairing
    ]


def steps_per_pass(job: Job) -> int:
    """Steps of one pass over an iteration's completions."""
    return -(-job.config.rollout.prompts * units_per_prompt(job) // job.config.train.batch_size)


def longest_completion(job: Job) -> int:
    """Tokens of the longest prompt and completion together that training takes."""
    prompts, rollout = job.config.prompts, job.config.rollout
    return min(job.config.pack.max_tokens, prompts.max_tokens + rollout.max_new_tokens)


def choose_shape(job: Job, first: Callable[[], Examples]) -> RowShape:
    """The shape of the run's batches; what is chosen is kept in the stage's folder, as in `packing.make_plan`.

    Args:
      first: makes the completions of the first iteration, for whose lengths rows are chosen.

    Raises:
      UserError: rows of `pack.row_tokens` cannot hold the longest unit.
    """
    config = job.config
    pack, microbatches = config.pack, config.train.microbatches
    size = 1 if VIEWS[config.select.units].pairing is None else 2
    least = size * longest_completion(job)
    if 0 < pack.row_tokens < least:
        raise refuse("pack.row_tokens", f"{pack.row_tokens}; a row must hold the longest unit, {least} tokens")
    chosen = read_choice(job, STAGE)
    if chosen is None:
        planner = _planner(job, first().packing_units(), size)
        chosen = planner.evaluate(pack.row_tokens) if pack.row_tokens else planner.choose()
        keep_choice(job, STAGE, chosen)
    completions = size * min(config.train.batch_size, config.rollout.prompts * units_per_prompt(job))
    slots = pack.slots or round_up(min(completions, max(LEAST_SLOTS, chosen.row_tokens // SLOT_TOKENS)), 2)
    # First fit leaves at most one row half empty, by tokens or by slots, and each row can hold any unit.
    needed = 2 * -(-completions * longest_completion(job) // chosen.row_tokens) + -(-completions // slots) + 1
    devices = axis_size(job.mesh, "rows")
    part = devices * (-(-needed // (devices * microbatches)) if microbatches else chosen.part_rows)
    rows = round_up(needed, part * microbatches if microbatches else part)
    return RowShape(chosen.row_tokens, slots, rows, microbatches or rows // part)


def _planner(job: Job, units: Units, size: int) -> Planner:
    """A planner of the first iteration. Behind its units it knows the longest one that may occur: rows must hold it."""
    config, longest = job.config, longest_completion(job)
    orders = batch_order(units, config.train.batch_size, 1, config.seed, config.train.shuffle)
    known = Units(
        np.append(units.sizes_U, np.int8(size)),
        np.append(units.prompts_C, np.full(size, units.prompts_C.max() + 1)),
        np.append(units.shared_C, np.zeros(size, int)),
        np.append(units.length_C, np.full(size, longest)),
    )
    return make_planner(job, job.mesh, known, orders, microbatches=config.train.microbatches, stage=STAGE)
