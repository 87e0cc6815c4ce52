"""Rows held out of training: their loss is computed while a policy trains, and no step sees them."""

import hashlib
from typing import NamedTuple

import numpy as np

from qrpo_jax.data.examples import Examples, compact
from qrpo_jax.data.per_completion import PerCompletion

SALT = b"qrpo-jax held out of training 1: "  # never changes, so that a run that goes on holds out the same rows
HELD_OUT = "rows held out"  # a count


class Parted(NamedTuple):
    """Examples of the rows that are trained on, and of those that are held out."""

    trained: Examples
    held_out: Examples


def part(examples: Examples, count: int) -> Parted:
    """Holds out so many of the rows that have completions, chosen by a hash of their ids, or all if there are fewer.

    Args:
      count: number of rows.
    """
    corpus = examples.corpus
    row_C = corpus.row_K[examples.entries_C]
    rows = np.unique(row_C)
    digests = {row: hashlib.sha256(SALT + corpus.ids[row].tobytes()).digest() for row in rows.tolist()}
    chosen = sorted(digests, key=digests.__getitem__)[:count]
    first_U = np.cumsum(examples.sizes_U, dtype=np.int64) - examples.sizes_U
    held_U = np.isin(row_C[first_U], chosen)
    return Parted(of_units(examples, ~held_U, len(chosen)), of_units(examples, held_U, len(chosen)))


def of_units(examples: Examples, kept_U: np.ndarray, held_rows: int) -> Examples:
    """The examples of some units.

    Args:
      held_rows: for the counts.
    """
    kept_C = np.repeat(kept_U, examples.sizes_U)
    _, prompts_C = np.unique(examples.prompts_C[kept_C], return_inverse=True)
    counts = examples.counts | {"completions": int(kept_C.sum()), HELD_OUT: held_rows}
    return examples._replace(
        entries_C=examples.entries_C[kept_C],
        prompts_C=prompts_C.astype(np.int32),
        cuts_C=compact(examples.cuts_C[kept_C]),
        completions_C=PerCompletion(*(compact(values_C[kept_C]) for values_C in examples.completions_C)),
        sizes_U=examples.sizes_U[kept_U],
        counts=counts,
    )
