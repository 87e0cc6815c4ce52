"""Batches of a packing plan, streamed by Grain: the same order on every process, and exact resumption."""

from typing import Any

import grain
import jax
import numpy as np

from qrpo_jax.data.batch import Batch
from qrpo_jax.data.examples import Examples
from qrpo_jax.data.packing import Plan
from qrpo_jax.data.per_completion import NEUTRAL
from qrpo_jax.model.layout import Layout


def assemble(examples: Examples, plan: Plan, index: int) -> Batch:
    """Batch `index` of the plan as NumPy arrays; empty slots hold the numbers of `NEUTRAL`."""
    example_BxS = np.full((plan.rows, plan.slots), -1, np.int32)
    shape = plan.rows, plan.row_tokens
    tokens_BxL, groups_BxL, segments_BxL, positions_BxL = np.zeros((4, *shape), np.int32)
    targets_BxL = np.full(shape, -1, np.int32)
    for b, row in enumerate(plan.batches[index]):
        column = 0
        for s, c in enumerate(c for unit in row for c in examples.units[unit]):
            prompt, length = int(examples.prompt_lengths_C[c]), int(examples.completions_C.length[c])
            start, read = int(examples.starts_C[c]), prompt - 1 + length  # nothing follows the last token
            span, own = slice(column, column + read), slice(column + prompt - 1, column + read)
            tokens_BxL[b, span] = examples.tokens[start : start + read]
            groups_BxL[b, span] = s + 1
            segments_BxL[b, own] = s + 1
            positions_BxL[b, span] = np.arange(read)
            targets_BxL[b, own] = examples.tokens[start + prompt : start + prompt + length]
            example_BxS[b, s] = c
            column += read
    present_BxS = example_BxS >= 0

    def in_slots(values_C: np.ndarray, neutral: np.generic) -> np.ndarray:
        values_BxS = np.full(present_BxS.shape, neutral)
        values_BxS[present_BxS] = values_C[example_BxS[present_BxS]]
        return values_BxS

    completions_BxS = jax.tree.map(in_slots, examples.completions_C, NEUTRAL)
    layout = Layout(groups_BxL, segments_BxL, positions_BxL)
    return Batch(tokens_BxL, layout, targets_BxL, present_BxS, example_BxS, completions_BxS)


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
