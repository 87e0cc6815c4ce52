"""Means with confidence intervals."""

import math

import numpy as np

Z95 = 1.959964  # the normal distribution lies within ± Z95 standard deviations with probability 95 %


def mean_with_interval(values_P: np.ndarray) -> tuple[float, list[float]]:
    """Mean and 95 % normal interval, mean ± 1.96 s / √P.

    Args:
      values_P: [P] independent values. Completions of one prompt are not independent: average them first and pass
        one value per prompt.

    Returns:
      The mean and [low, high]; both ends are NaN for a single value.

    >>> mean, (low, high) = mean_with_interval(np.array([0.0, 1.0, 2.0]))
    >>> mean, round(low, 3), round(high, 3)
    (1.0, -0.132, 2.132)
    """
    mean = float(values_P.mean())
    half = Z95 * float(values_P.std(ddof=1)) / math.sqrt(len(values_P)) if len(values_P) > 1 else math.nan
    return mean, [mean - half, mean + half]
