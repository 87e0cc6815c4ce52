"""Batches of a packing plan, streamed by Grain: the same order on every process, and exact resumption."""

from collections.abc import Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np

from qrpo_jax.data.batch import Batch
from qrpo_jax.data.examples import Examples
from qrpo_jax.data.packing import Plan
from qrpo_jax.data.per_completion import NEUTRAL
from qrpo_jax.model.layout import Layout


class Batches(Protocol):
    """Batches of a run, one after the other, from a position that a checkpoint can hold."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> Any:
        """The position: JSON, or bytes of text."""

    def set_state(self, state: Any) -> None:
        """Moves to a position of `get_state`."""


READERS = 2  # threads: one puts a batch together while another waits for a disk


def assemble(examples: Examples, plan: Plan, index: int, rows: Sequence[int] | np.ndarray | None = None) -> Batch:
    """Batch `index` of the plan as NumPy arrays; empty slots hold the numbers of `NEUTRAL`.

    Args:
      rows: those of its B rows that the result has, in this order; no tokens of others are read. By default all.
    """
    rows = range(plan.rows) if rows is None else rows
    at_B = np.full(plan.rows, -1)
    at_B[rows] = np.arange(len(rows))
    shape = len(rows), plan.row_tokens
    tokens_BxL, groups_BxL, segments_BxL, positions_BxL = np.zeros((4, *shape), np.int32)
    targets_BxL = np.full(shape, -1, np.int32)
    example_BxS = np.full((len(rows), plan.slots), -1, np.int32)
    steps = np.arange(plan.row_tokens, dtype=np.int32)
    for r, row in enumerate(plan.batch(index)):
        b, column, slot = int(at_B[plan.place_of(r)]), 0, 0
        if b < 0:
            continue
        for g, group in enumerate(row):
            prompt = examples.prompt(group[0])
            first, shared = column, len(prompt) - 1
            tokens_BxL[b, column : column + shared] = prompt[:-1]
            positions_BxL[b, column : column + shared] = steps[:shared]
            column += shared
            for c in group:
                # From the prompt's last token on; nothing follows the completion's last token, so it is not read.
                completion = examples.completion(c)
                length = len(completion)
                own = slice(column, column + length)
                tokens_BxL[b, column] = prompt[-1]
                tokens_BxL[b, column + 1 : column + length] = completion[:-1]
                targets_BxL[b, own] = completion
                positions_BxL[b, own] = shared + steps[:length]
                segments_BxL[b, own] = slot + 1
                example_BxS[b, slot] = c
                column, slot = column + length, slot + 1
            groups_BxL[b, first:column] = g + 1
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

    def __init__(self, examples: Examples, plan: Plan, rows: Sequence[int] | np.ndarray | None) -> None:
        self._examples, self._plan, self._rows = examples, plan, rows

    def __len__(self) -> int:
        return self._plan.steps

    def __getitem__(self, index: Any) -> Batch:
        return assemble(self._examples, self._plan, int(index), self._rows)

    def __repr__(self) -> str:
        # Grain compares this when it restores an iterator. It says nothing of rows, which other processes may share
        # differently.
        plan = self._plan
        return f"batches({plan.steps} of {plan.rows} x {plan.row_tokens} tokens, {plan.tokens} in all)"


def batches(
    examples: Examples, plan: Plan, rows: Sequence[int] | np.ndarray | None = None, prefetch: int = 4
) -> grain.DatasetIterator:
    """An iterator over all batches whose state Orbax can save and restore.

    The state counts batches. It is the same on every process and for any number of them.

    Args:
      rows: as in `assemble`; each process of a job asks for those of its own devices.
    """
    options = grain.ReadOptions(num_threads=READERS, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(_Batches(examples, plan, rows)).to_iter_dataset(options))
