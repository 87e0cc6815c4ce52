"""Estimators of KL(p ‖ q) from samples of p (John Schulman, "Approximating KL Divergence", 2020).

For a sample x of p let r = log q(x) − log p(x). Both estimators have mean KL(p ‖ q) if q covers p.
"""

import numpy as np


def k1(log_ratio_C: np.ndarray) -> float:
    """KL in nats as the mean of −r; unbiased, of high variance, may be negative.

    Args:
      log_ratio_C: [C] r = log q − log p of samples of p; values that are not finite are left out.

    >>> k1(np.array([-0.5, 0.25, np.nan]))
    0.125
    """
    log_ratio_C = log_ratio_C[np.isfinite(log_ratio_C)]
    return float(np.mean(-log_ratio_C))


def k3(log_ratio_C: np.ndarray) -> float:
    """KL in nats as the mean of e^r − 1 − r; unbiased and never negative, because each term is at least 0.

    Args:
      log_ratio_C: [C] r = log q − log p of samples of p; values that are not finite are left out.

    >>> round(k3(np.array([-0.5, 0.25, np.nan])), 6)
    0.070278
    """
    log_ratio_C = log_ratio_C[np.isfinite(log_ratio_C)]
    return float(np.mean(np.expm1(log_ratio_C) - log_ratio_C))
