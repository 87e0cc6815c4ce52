"""Where sampled rewards rank among the rewards of reference completions of the same prompt."""

from collections.abc import Sequence

import numpy as np

MOST_BINS = 21  # of `rank_density`


def mid_rank_quantile(reward_S: np.ndarray, reward_N: np.ndarray) -> np.ndarray:
    """Share of the references below each reward, counting ties as half.

    Unlike the quantiles that training uses, its mean is 1/2 for samples of the reference policy, with and without ties.

    Args:
      reward_S: [S] rewards of completions.
      reward_N: [N] rewards of the references of the same prompt.

    Returns:
      [S] in [0, 1].

    >>> mid_rank_quantile(np.array([2.0, 9.0]), np.array([1.0, 2.0, 2.0, 3.0])).tolist()
    [0.5, 1.0]
    """
    below_S = np.mean(reward_N[None, :] < reward_S[:, None], axis=1)
    tied_S = np.mean(reward_N[None, :] == reward_S[:, None], axis=1)
    return below_S + 0.5 * tied_S


def rank_density(references: Sequence[np.ndarray], samples: Sequence[np.ndarray]) -> np.ndarray:
    """Density of the samples' quantiles in equal bins of (0, 1), one bin a rank where prompts have few references.

    A sample that exceeds `below` of its prompt's n references and ties with `tied` of them takes one of tied + 1 of
    the n + 1 ranks. Its mass is spread over them evenly, so that the reference policy has density 1 everywhere.

    Args:
      references: for each prompt the rewards [N] of its references.
      samples: for each prompt the rewards [S] of the samples to rank.

    Returns:
      [bins] with mean 1; n + 1 bins for the largest n, at most MOST_BINS.

    >>> rank_density([np.array([1.0, 2.0])], [np.array([3.0, 3.0, 2.0])]).round(3).tolist()
    [0.0, 0.5, 2.5]
    """
    low, high = [], []
    for reward_N, reward_S in zip(references, samples, strict=True):
        below_S = (reward_N[None, :] < reward_S[:, None]).sum(1)
        tied_S = (reward_N[None, :] == reward_S[:, None]).sum(1)
        low.append(below_S / (len(reward_N) + 1))
        high.append((below_S + tied_S + 1) / (len(reward_N) + 1))
    starts, ends = np.concatenate(low)[:, None], np.concatenate(high)[:, None]
    bins = min(max(map(len, references)) + 1, MOST_BINS)
    edges = np.linspace(0, 1, bins + 1)
    return np.diff(np.clip((edges - starts) / (ends - starts), 0, 1).mean(0)) * bins
