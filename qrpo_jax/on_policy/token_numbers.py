"""Numbers of tokens between two layouts: completions one after the other, and the positions of a packed batch."""

import numpy as np

from qrpo_jax.data.batch import Batch
from qrpo_jax.data.ragged import starts


def places_of(entries: np.ndarray, lengths_K: np.ndarray) -> np.ndarray:
    """Where the tokens of some completions are among those of all, one completion after the other.

    Args:
      entries: indices of completions.
      lengths_K: tokens of each of all completions.
    """
    first_K = starts(lengths_K)[:-1]
    sizes = lengths_K[entries].astype(np.int64)
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(first_K[entries], sizes) + within


def in_positions(values: np.ndarray, batch: Batch, entries_C: np.ndarray, lengths_K: np.ndarray) -> np.ndarray:
    """Numbers of tokens at the positions of a host batch that predict them, [B, L]; 0 elsewhere.

    Args:
      values: of the tokens of all completions, one after the other.
      entries_C: index of the completion that each example of the batch's table is.
      lengths_K: tokens of each completion.
    """
    # Completions of a row stand in the order of their slots.
    placed_BxL = np.zeros(batch.tokens_BxL.shape, values.dtype)
    present = batch.example_BxS[batch.example_BxS >= 0]
    placed_BxL[batch.layout.segments_BxL > 0] = values[places_of(entries_C[present], lengths_K)]
    return placed_BxL


def from_positions(
    values_BxL: np.ndarray,
    segments_BxL: np.ndarray,
    example_BxS: np.ndarray,
    entries_C: np.ndarray,
    lengths_K: np.ndarray,
    out: np.ndarray,
) -> None:
    """The inverse of `in_positions`: writes the numbers of a batch into those of all completions, `out`."""
    present = example_BxS[example_BxS >= 0]
    out[places_of(entries_C[present], lengths_K)] = values_BxL[segments_BxL > 0]
