"""Passes: completions that solve their problem, for rewards that are shares of tests. A share of 1 has passed."""

import numpy as np

FULL = 1.0


def passed(share_S: np.ndarray) -> np.ndarray:
    """Which completions passed all tests, [S] bool."""
    return share_S >= FULL


def pass_at_k(passes: int, samples: int, k: int) -> float:
    """Probability that one of k samples passes, estimated without bias from those that are there.

    1 − C(n − c, k) / C(n, k) for c passes of n samples, computed as a product, which does not overflow (Chen et al.,
    "Evaluating Large Language Models Trained on Code", 2021, equation 1).

    Args:
      passes: c.
      samples: n, at least k.

    >>> pass_at_k(1, 4, 1), pass_at_k(1, 4, 2), pass_at_k(3, 4, 2), pass_at_k(0, 4, 4)
    (0.25, 0.5, 1.0, 0.0)
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}; allowed: 1 to {samples}, the number of samples")
    if samples - passes < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - passes + 1, samples + 1)))


def ks(samples: int) -> list[int]:
    """The k to report for so many samples of a prompt: powers of two.

    >>> ks(1), ks(8), ks(11)
    ([1], [1, 2, 4, 8], [1, 2, 4, 8])
    """
    return [1 << power for power in range(samples.bit_length())]
