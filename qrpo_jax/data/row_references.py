"""The references of one row, as all rows of a run get theirs in `ranking`."""

from typing import NamedTuple

import numpy as np

from qrpo_jax.data import ragged
from qrpo_jax.data.ranking import find_references
from qrpo_jax.data.rows import COMPLETION_SOURCES, Row


class RowReferences(NamedTuple):
    """What a row's completions are ranked among.

    Attributes:
      rewards_N: float32; those of the row's own completions come first, in their order.
      own_S: bool, whether each completion's own reward is among them.
    """

    rewards_N: np.ndarray
    own_S: np.ndarray

    def others(self, completion: int) -> np.ndarray:
        """The references of a completion, without itself, float32 [N] or [N - 1]."""
        if not self.own_S[completion]:
            return self.rewards_N
        return np.delete(self.rewards_N, int(self.own_S[:completion].sum()))


def references_of(row: Row) -> RowReferences:
    """The references of a row: sampled ones, those known by their rewards, or its own completions."""
    rewards = ragged.ragged([[completion.reward for completion in row.completions]], np.float32)
    sources_K = np.asarray([COMPLETION_SOURCES.index(c.source) for c in row.completions], np.int8)
    found = find_references(rewards, sources_K, ragged.ragged([row.reference_rewards], np.float32), 0)
    return RowReferences(found.rewards.values, found.own_K)
