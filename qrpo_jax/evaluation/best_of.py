"""Best-of-N: the reward of the best of N samples of a prompt, estimated from M samples that are there."""

import numpy as np
from scipy.special import gammaln


def best_of(reward_M: np.ndarray, n: int) -> float:
    """The mean of the largest of n rewards over all ways to draw n of the M without replacement.

    It is an unbiased estimate for every n up to M. The largest of n draws is the i-th smallest reward in
    C(i - 1, n - 1) of C(M, n) ways; equal rewards count each on their own.

    Args:
      reward_M: [M], of one prompt.
      n: from 1 to M.

    >>> [round(best_of(np.array([0.0, 1.0, 0.0, 0.0]), n), 3) for n in (1, 2, 4)]
    [0.25, 0.5, 1.0]
    """
    count = len(reward_M)
    if not 1 <= n <= count:
        raise ValueError(f"n is {n}; it must be from 1 to {count}")
    rank_K = np.arange(n, count + 1)  # smaller ranks are never the largest of n

    def log_choose(total: np.ndarray | int, chosen: int) -> np.ndarray:
        return gammaln(np.asarray(total) + 1.0) - gammaln(chosen + 1.0) - gammaln(np.asarray(total) - chosen + 1.0)

    weight_K = np.exp(log_choose(rank_K - 1, n - 1) - log_choose(count, n))
    return float(np.sort(reward_M.astype(np.float64))[n - 1 :] @ weight_K)
