"""The shape of all batches of an on-policy run, fixed before the first completion is sampled.

A step compiles once, so every batch has the same rows, however long its completions turn out to be. Parts of a batch
that stay empty cost nothing (`make_step`), so there are rows enough for the longest ones.
"""

from typing import NamedTuple

import numpy as np

from qrpo_jax.config.keys import refuse
from qrpo_jax.data.batch_order import batch_order
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
    return {None: taken, "extremes": 1, "disjoint": taken // 2, "all": taken * (taken - 1) // 2}[pairing]


def steps_per_pass(job: Job) -> int:
    """Steps of one pass over an iteration's completions."""
    return -(-job.config.rollout.prompts * units_per_prompt(job) // job.config.train.batch_size)


def longest_completion(job: Job) -> int:
    """Tokens of the longest prompt and completion together that training takes."""
    prompts, rollout = job.config.prompts, job.config.rollout
    return min(job.config.pack.max_tokens, prompts.max_tokens + rollout.max_new_tokens)


def choose_shape(job: Job, prompt_lengths: np.ndarray) -> RowShape:
    """The shape of the run's batches; what is chosen is kept in the stage's folder, as in `packing.make_plan`.

    Rows are chosen for completions whose lengths are spread evenly up to the limit.

    Args:
      prompt_lengths: tokens of some prompts.

    Raises:
      UserError: rows of `pack.row_tokens` cannot hold the longest unit.
    """
    config = job.config
    pack, microbatches = config.pack, config.train.microbatches
    size = 1 if VIEWS[config.select.units].pairing is None else 2
    least = size * longest_completion(job)
    if pack.row_tokens and pack.row_tokens < least:
        raise refuse("pack.row_tokens", f"{pack.row_tokens}; completions of up to {least} tokens need as many")
    chosen = read_choice(job, STAGE)
    if chosen is None:
        planner = _planner(job, prompt_lengths, size)
        chosen = planner.evaluate(pack.row_tokens) if pack.row_tokens else planner.choose()
        keep_choice(job, STAGE, chosen)
    batch_completions = size * min(config.train.batch_size, config.rollout.prompts * units_per_prompt(job))
    slots = pack.slots or round_up(min(batch_completions, max(LEAST_SLOTS, chosen.row_tokens // SLOT_TOKENS)), 2)
    # First fit leaves at most one row half empty, by tokens or by slots, and a row can hold any unit.
    needed = 2 * -(-batch_completions * longest_completion(job) // chosen.row_tokens) + -(-batch_completions // slots)
    needed = min(batch_completions // size, needed + 1)
    devices = axis_size(job.mesh, "rows")
    if microbatches:
        return RowShape(chosen.row_tokens, slots, round_up(needed, devices * microbatches), microbatches)
    part = devices * chosen.part_rows
    return RowShape(chosen.row_tokens, slots, round_up(needed, part), round_up(needed, part) // part)


def _planner(job: Job, prompt_lengths: np.ndarray, size: int) -> Planner:
    """A planner of the first iteration, as far as it is known."""
    config = job.config
    prompts = min(len(prompt_lengths), config.rollout.prompts)
    each = units_per_prompt(job)
    lengths_U = np.linspace(1, config.rollout.max_new_tokens, prompts * each).round().astype(np.int32)
    lengths_U = np.random.default_rng(config.seed).permutation(lengths_U)
    longest = longest_completion(job)
    shared_U = np.repeat(prompt_lengths[:prompts] - 1, each).clip(0, longest - 1)
    lengths_U = np.minimum(lengths_U, longest - shared_U)
    # Behind them the longest unit that may occur: rows must hold it.
    shared_U, lengths_U = np.append(shared_U, 0), np.append(lengths_U, longest)
    prompt_U = np.append(np.repeat(np.arange(prompts), each), prompts)
    known = Units(np.full(len(shared_U), size, np.int8), *(np.repeat(x, size) for x in (prompt_U, shared_U, lengths_U)))
    whole = Units(known.sizes_U[:-1], *(x[:-size] for x in (known.prompts_C, known.shared_C, known.length_C)))
    orders = batch_order(whole, config.train.batch_size, 1, config.seed, config.train.shuffle)
    return make_planner(job, job.mesh, known, orders, microbatches=config.train.microbatches, stage=STAGE)
