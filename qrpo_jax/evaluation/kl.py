"""Estimators of KL(p ‖ q) from samples of p (John Schulman, "Approximating KL Divergence", 2020).

For a sample x of p let r = log q(x) − log p(x). The means of both terms are KL(p ‖ q) if q covers p. A completion is a
sequence of tokens, so there are two ways to k3: of r of the whole completion, and of r of each token given those before
it, summed over the completion. The sums have the same mean, and vary much less where completions are long.
"""

from typing import NamedTuple

import numpy as np


class LogRatios(NamedTuple):
    """What completions of one side say about its KL to the other side.

    Attributes:
      log_ratio_C: [C] r = log q − log p of each completion, in nats; NaN where it is not known.
      token_k3_C: [C] k3 of each token, summed over the completion, in nats.
    """

    log_ratio_C: np.ndarray
    token_k3_C: np.ndarray


def k1(log_ratio_C: np.ndarray) -> np.ndarray:
    """−r of each sample, in nats; of high variance, may be negative.

    >>> k1(np.array([-0.5, 0.25])).tolist()
    [0.5, -0.25]
    """
    return -log_ratio_C


def k3(log_ratio_C: np.ndarray) -> np.ndarray:
    """e^r − 1 − r of each sample, in nats; never negative.

    >>> k3(np.array([-0.5, 0.0])).round(4).tolist()
    [0.1065, 0.0]
    """
    return np.expm1(log_ratio_C) - log_ratio_C
