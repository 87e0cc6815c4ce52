"""Lists of uneven lengths as two flat arrays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Ragged:
    """R lists: list r is `values[first_R1[r] : first_R1[r + 1]]`.

    Attributes:
      values: of all lists, one list after the other.
      first_R1: int64 [R + 1].
    """

    values: np.ndarray
    first_R1: np.ndarray

    def __len__(self) -> int:
        return len(self.first_R1) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.first_R1[index] : self.first_R1[index + 1]]

    @property
    def counts_R(self) -> np.ndarray:
        """The length of each list, int64 [R]."""
        return np.diff(self.first_R1)

    @property
    def row_V(self) -> np.ndarray:
        """The list of each value, int32 [V]."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.counts_R)


def ragged(lists: Iterable[Sequence[Any] | np.ndarray], dtype: Any) -> Ragged:
    """Lists as flat arrays.

    >>> ragged([[1, 2], [], [3]], np.int32)[0].tolist()
    [1, 2]
    """
    arrays = [np.asarray(values, dtype) for values in lists]
    return Ragged(np.concatenate([np.zeros(0, dtype), *arrays]), starts(list(map(len, arrays))))


def starts(counts_R: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where lists of these lengths begin, and where the last one ends, int64 [R + 1].

    >>> starts([2, 0, 3]).tolist()
    [0, 2, 2, 5]
    """
    first_R1 = np.zeros(len(counts_R) + 1, np.int64)
    np.cumsum(counts_R, out=first_R1[1:])
    return first_R1


def true_before(true_V: np.ndarray) -> np.ndarray:
    """How many are true before each place, and in all, int32 [V + 1].

    >>> true_before(np.asarray([True, False, True])).tolist()
    [0, 1, 1, 2]
    """
    before_V1 = np.zeros(len(true_V) + 1, np.int32)
    np.cumsum(true_V, out=before_V1[1:], dtype=np.int32)
    return before_V1


def concatenate(parts: Sequence[Ragged]) -> Ragged:
    """The lists of all parts, one part after the other."""
    counts = np.concatenate([part.counts_R for part in parts])
    return Ragged(np.concatenate([part.values for part in parts]), starts(counts))
