"""Ties: how many comparisons of a completion with its prompt's references decide nothing."""

from typing import NamedTuple

import numpy as np

from qrpo_jax.data.corpus import Corpus
from qrpo_jax.data.ranking import find_references

PART_COMPARISONS = 1 << 22  # made at a time


class Comparisons(NamedTuple):
    """Comparisons of C completions with the references of their prompts.

    Attributes:
      tied_C: [C] references whose reward equals the completion's.
      compared_C: [C] references that the completion is compared with.
    """

    tied_C: np.ndarray
    compared_C: np.ndarray


def compare_with_references(reward_S: np.ndarray, is_reference_S: np.ndarray, reward_N: np.ndarray) -> Comparisons:
    """Compares the S completions of one prompt with its N references.

    Args:
      reward_S: [S] rewards of the completions.
      is_reference_S: [S] bool; true for completions that are themselves among the references, whose comparison with
        themselves does not count.
      reward_N: [N] rewards of the references.

    >>> compare_with_references(np.array([1.0, 2.0]), np.array([True, False]), np.array([1.0, 1.0, 2.0]))
    Comparisons(tied_C=array([1, 1]), compared_C=array([2, 3]))
    """
    equal_S = (reward_N[None, :] == reward_S[:, None]).sum(1)
    return Comparisons(equal_S - is_reference_S, len(reward_N) - is_reference_S.astype(int))


def tied_share(comparisons: Comparisons) -> float:
    """Share of all comparisons that are ties; 0 where there are no comparisons.

    Completions with an unknown (NaN) number of ties count as compared and not as tied.

    >>> tied_share(Comparisons(np.array([1, 1]), np.array([2, 3])))
    0.4
    """
    return float(np.nansum(comparisons.tied_C) / max(int(comparisons.compared_C.sum()), 1))


def is_flat(reward_N: np.ndarray) -> bool:
    """Whether several references all have the same reward, so that none ranks above another.

    >>> is_flat(np.array([0.5, 0.5])), is_flat(np.array([0.5, 0.7])), is_flat(np.array([0.5]))
    (True, False, False)
    """
    return len(reward_N) > 1 and bool((reward_N == reward_N[0]).all())


def tied_shares(corpus: Corpus) -> dict[str, float]:
    """Ties between completions and the other references of their prompt.

    Returns:
      compared (number of comparisons), tied (share of them), prompts (number of those with several references), flat
      (share of those whose references all have the same reward).
    """
    references = find_references(corpus.rewards, corpus.sources_K, corpus.reference_rewards, 0)
    reward_K, counts_R = corpus.rewards.values, references.rewards.counts_R
    compared = int(counts_R[corpus.row_K].sum() - references.own_K.sum())
    tied, size = 0, max(1, PART_COMPARISONS // max(int(counts_R.max(initial=0)), 1))
    for start in range(0, len(reward_K), size):
        part = slice(start, start + size)
        rewards_KxN, mask_KxN = references.sets(corpus.row_K[part])
        tied += int(((rewards_KxN == reward_K[part, None]) & mask_KxN).sum())
    tied -= int((references.own_K & np.isfinite(reward_K)).sum())  # each equals itself
    several_R = counts_R > 1
    firsts = references.rewards.first_R1[:-1][several_R]
    # Each set from its first reward to its last; every other result is of what lies between two sets.
    ends = np.stack([firsts, firsts + counts_R[several_R]], 1).reshape(-1)
    values, prompts, flat = np.append(references.rewards.values, np.float32(0)), len(firsts), 0
    if prompts:
        flat = int((np.maximum.reduceat(values, ends)[::2] == np.minimum.reduceat(values, ends)[::2]).sum())
    return {"compared": compared, "tied": tied / max(compared, 1), "prompts": prompts, "flat": flat / max(prompts, 1)}
