"""Means with 95 % intervals, by resampling prompts (the percentile bootstrap).

Completions of one prompt are not independent, so prompts are drawn, each with all of its completions. All figures of as
many prompts share the same resamples, so that equal runs have equal intervals.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

RESAMPLES = 2000
SEED = 0
ENDS = 0.025, 0.975
BLOCK = 1 << 24  # counts that are multiplied at a time

Statistic = Callable[[np.ndarray], np.ndarray]


@functools.lru_cache(maxsize=4)
def resamples(prompts: int) -> np.ndarray:
    """How often each of P prompts is in each of R samples of P prompts drawn with replacement: [R, P] uint16."""
    generator = np.random.default_rng(SEED)
    step = max(1, BLOCK // prompts)
    chance_P = np.full(prompts, 1 / prompts)
    parts = [min(step, RESAMPLES - start) for start in range(0, RESAMPLES, step)]
    counts_RxP = np.concatenate([generator.multinomial(prompts, chance_P, size).astype(np.uint16) for size in parts])
    counts_RxP.flags.writeable = False
    return counts_RxP


def bootstrap(statistic: Statistic, *columns_P: np.ndarray) -> tuple[float, list[float]]:
    """A figure that depends on sums over prompts, and its interval.

    Args:
      statistic: from the sums of K columns, [K, R] for R samples of prompts, to the figure of each sample [R]; NaN
        where a sample has none.
      columns_P: [P] finite values each, with prompts in the same order.

    Returns:
      The figure and [low, high]; both ends are NaN for a single prompt.

    >>> figure, (low, high) = bootstrap(lambda sums: sums[0] / sums[1], np.array([0.0, 1.0, 2.0]), np.ones(3))
    >>> figure, low, high
    (1.0, 0.0, 2.0)
    """
    columns_KxP = np.asarray(columns_P, np.float64)
    prompts = columns_KxP.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        figure = float(statistic(columns_KxP.sum(1)[:, None])[0]) if prompts else math.nan
        if prompts < 2:
            return figure, [math.nan, math.nan]
        counts_RxP, step = resamples(prompts), max(1, BLOCK // prompts)
        parts = [columns_KxP @ counts_RxP[at : at + step].T.astype(np.float64) for at in range(0, RESAMPLES, step)]
        figures_R = statistic(np.concatenate(parts, axis=1))
    figures_R = figures_R[np.isfinite(figures_R)]
    if not len(figures_R):
        return figure, [math.nan, math.nan]
    return figure, [float(end) for end in np.quantile(figures_R, ENDS)]


def ratio_with_interval(numerator_P: np.ndarray, denominator_P: np.ndarray) -> tuple[float, list[float]]:
    """Σ numerator / Σ denominator over prompts, such as tokens a completion, and its interval.

    Args:
      numerator_P, denominator_P: [P]; prompts with a denominator of 0 count nothing. NaN if all are 0.
    """
    return bootstrap(lambda sums: sums[0] / sums[1], np.where(denominator_P > 0, numerator_P, 0.0), denominator_P)


def mean_with_interval(values_P: np.ndarray) -> tuple[float, list[float]]:
    """The mean over prompts and its interval.

    Args:
      values_P: [P] one value a prompt, such as the mean reward of its completions; prompts with NaN are left out.
    """
    known_P = np.isfinite(values_P)
    return ratio_with_interval(np.where(known_P, values_P, 0.0), known_P.astype(np.float64))
