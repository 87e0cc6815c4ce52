"""Histograms: counts of values between edges, where one far value does not hide all others."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BINS = 10
FAR = 2.0  # times the 99th percentile: from there on the largest values share the last bin


class Histogram(NamedTuple):
    """Counts of known values.

    Attributes:
      edges: of the bins, one more than there are; each bin is from its edge to before the next one.
      counts: of the values in each bin.
      whole: all values are whole numbers, and so are the edges.
    """

    edges: list[float]
    counts: list[int]
    whole: bool


def histogram(values: Sequence[float] | np.ndarray, bins: int = BINS) -> Histogram:
    """Counts the finite values in equal bins, of whole numbers if all are; the last one also has those far above.

    >>> histogram([1, 1, 2, 9], bins=3)
    Histogram(edges=[1.0, 4.0, 7.0, 10.0], counts=[3, 0, 1], whole=True)
    >>> histogram([0.5, float("nan")])
    Histogram(edges=[0.5, 0.5], counts=[1], whole=False)
    """
    known = np.asarray(values, np.float64).reshape(-1)
    known = known[np.isfinite(known)]
    if not len(known):
        return Histogram([], [], True)
    low, high = float(known.min()), float(known.max())
    whole = bool((known == np.round(known)).all()) and high < 2**53
    if low == high:
        return Histogram([low, low + whole], [len(known)], whole)
    usual = float(np.quantile(known, 0.99))
    top = usual if high > low + FAR * (usual - low) > low else high
    if whole:
        step = max(int(-(-(top - low + 1) // bins)), 1)
        edges = np.arange(low, top + step + 1, step)
    else:
        edges = np.linspace(low, top, bins + 1)
    edges[-1] = max(edges[-1], high + whole)
    return Histogram(edges.tolist(), np.histogram(known, edges)[0].tolist(), whole)
