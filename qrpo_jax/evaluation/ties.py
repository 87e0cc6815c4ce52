"""Ties: how many comparisons of a completion with its prompt's references decide nothing."""

from typing import NamedTuple

import numpy as np


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
