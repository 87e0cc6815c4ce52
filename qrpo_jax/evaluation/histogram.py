"""Histograms: counts of values between edges, where one far value does not hide all others."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

BINS = 10
FEW = 12  # distinct values that have a bin each in a `Spread`
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


class Spread(NamedTuple):
    """How rewards are spread.

    Attributes:
      completions: that have one.
      mean: of the rewards, after rounding.
      bins: (lowest, highest, completions) of each bin, ascending; lowest and highest are equal where each of a few
        rewards has its own. Where not all rewards are whole numbers, the highest is the lowest of the next bin.
    """

    completions: int
    mean: float
    bins: Sequence[tuple[float, float, int]]


def histogram(
    values: Sequence[float] | np.ndarray, bins: int = BINS, numbers: Sequence[int] | np.ndarray | None = None
) -> Histogram:
    """Counts the finite values in equal bins, of whole numbers if all are; the last one also has those far above.

    Args:
      numbers: how often each value occurs; by default once.

    >>> histogram([1, 1, 2, 9], bins=3)
    Histogram(edges=[1.0, 4.0, 7.0, 10.0], counts=[3, 0, 1], whole=True)
    >>> histogram([0.5, float("nan")])
    Histogram(edges=[0.5, 0.5], counts=[1], whole=False)
    >>> histogram([1, 2, 9], bins=3, numbers=[2, 1, 1]).counts
    [3, 0, 1]
    """
    known = np.asarray(values, np.float64).reshape(-1)
    often = np.ones(len(known), np.int64) if numbers is None else np.asarray(numbers, np.int64).reshape(-1)
    often, known = often[np.isfinite(known)], known[np.isfinite(known)]
    if not len(known):
        return Histogram([], [], True)
    low, high = float(known.min()), float(known.max())
    whole = bool((known == np.round(known)).all()) and high < 2**53
    if low == high:
        return Histogram([low, low + whole], [int(often.sum())], whole)
    usual = float(np.quantile(known, 0.99)) if numbers is None else _quantile(known, often, 0.99)
    top = usual if high > low + FAR * (usual - low) > low else high
    if whole:
        step = max(int(-(-(top - low + 1) // bins)), 1)
        edges = np.arange(low, top + step + 1, step)
    else:
        edges = np.linspace(low, top, bins + 1)
    edges[-1] = max(edges[-1], high + whole)
    return Histogram(edges.tolist(), np.histogram(known, edges, weights=often)[0].tolist(), whole)


def spread(numbers: Mapping[float, int]) -> Spread:
    """The spread of rewards, from the number of completions with each.

    >>> spread({0.5: 1, 0.0: 3})
    Spread(completions=4, mean=0.125, bins=[(0.0, 0.0, 3), (0.5, 0.5, 1)])
    """
    values, weights = np.asarray(sorted(numbers)), np.asarray([numbers[value] for value in sorted(numbers)])
    mean, total = float(np.average(values, weights=weights)), int(weights.sum())
    if len(values) <= FEW:
        return Spread(total, mean, [(v, v, n) for v, n in zip(values.tolist(), weights.tolist(), strict=True)])
    edges, counts, whole = histogram(values, numbers=weights)
    return Spread(total, mean, [(low, edge - whole, n) for low, edge, n in zip(edges, edges[1:], counts, strict=False)])


def _quantile(values: np.ndarray, numbers: np.ndarray, share: float) -> float:
    """The least value that is not below this share of all."""
    order = np.argsort(values)
    reached = np.cumsum(numbers[order])
    return float(values[order][np.searchsorted(reached, share * reached[-1])])
