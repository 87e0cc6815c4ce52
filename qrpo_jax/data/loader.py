"""Batches of a packing plan, streamed by Grain: same order on every process, restored exactly."""

from typing import Any

import grain
import numpy as np

from qrpo_jax.data.batch import Batch
from qrpo_jax.data.examples import Examples
from qrpo_jax.data.packing import Plan


def assemble(examples: Examples, plan: Plan, index: int) -> Batch:
    """Batch `index` of the plan as NumPy arrays."""
    wide, narrow = (plan.rows, plan.row_tokens), (plan.rows, plan.slots)
    batch = Batch(
        tokens_BxL=np.zeros(wide, np.int32),
        segments_BxL=np.zeros(wide, np.int32),
        positions_BxL=np.zeros(wide, np.int32),
        targets_BxL=np.zeros(wide, bool),
        present_BxS=np.zeros(narrow, bool),
        weight_BxS=np.zeros(narrow, np.float32),
        reward_BxS=np.zeros(narrow, np.float32),
        # Empty slots get a harmless quantile, so that no transform is evaluated where it is infinite.
        quantile_BxS=np.full(narrow, 0.5, np.float32),
        log_z_BxS=np.zeros(narrow, np.float32),
        reward_scale_BxS=np.ones(narrow, np.float32),
        reference_log_prob_BxS=np.zeros(narrow, np.float32),
        length_BxS=np.zeros(narrow, np.int32),
        high_BxS=np.zeros(narrow, bool),
        ties_BxS=np.zeros(narrow, np.float32),
        example_BxS=np.full(narrow, -1, np.int32),
    )
    for b, row in enumerate(plan.batches[index]):
        column = 0
        for s, c in enumerate(c for unit in row for c in examples.units[unit]):
            prompt, length = int(examples.prompt_lengths_C[c]), int(examples.lengths_C[c])
            start, total = int(examples.starts_C[c]), prompt + length
            span = slice(column, column + total)
            batch.tokens_BxL[b, span] = examples.tokens[start : start + total]
            batch.segments_BxL[b, span] = s + 1
            batch.positions_BxL[b, span] = np.arange(total)
            batch.targets_BxL[b, column + prompt : column + total] = True
            batch.example_BxS[b, s] = c
            column += total
    present = batch.example_BxS >= 0
    which = batch.example_BxS[present]
    batch.present_BxS[...] = present
    for slots, column_C in (
        (batch.weight_BxS, examples.weight_C),
        (batch.reward_BxS, examples.reward_C),
        (batch.quantile_BxS, examples.quantile_C),
        (batch.log_z_BxS, examples.log_z_C),
        (batch.reward_scale_BxS, examples.reward_scale_C),
        (batch.reference_log_prob_BxS, examples.reference_log_prob_C),
        (batch.length_BxS, examples.lengths_C),
        (batch.high_BxS, examples.high_C),
        (batch.ties_BxS, examples.ties_C),
    ):
        slots[present] = column_C[which]
    return batch


class _Batches:
    """A random-access Grain source over the batches of a plan."""

    def __init__(self, examples: Examples, plan: Plan) -> None:
        self._examples, self._plan = examples, plan

    def __len__(self) -> int:
        return self._plan.steps

    def __getitem__(self, index: Any) -> Batch:
        return assemble(self._examples, self._plan, int(index))

    def __repr__(self) -> str:
        return f"batches({self._plan.steps})"


def batches(examples: Examples, plan: Plan, prefetch: int = 2) -> grain.DatasetIterator:
    """An iterator over all batches whose state Orbax can save and restore.

    Every process assembles the global batch and uploads its own devices' part, so the number of hosts
    changes neither the batches nor the iterator's state.
    """
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(_Batches(examples, plan)).to_iter_dataset(options))
