"""Wins: how often a completion of one side has a higher reward than one of the other side for the same prompt."""

from typing import NamedTuple

import numpy as np


class Outcomes(NamedTuple):
    """Shares of all pairs of a completion with one of the other side; what is neither won nor tied is lost."""

    won: float
    tied: float

    @property
    def rate(self) -> float:
        """The win rate: ties count as half."""
        return self.won + 0.5 * self.tied


def outcomes(reward_S: np.ndarray, other_N: np.ndarray) -> Outcomes:
    """Compares each of the S completions of a prompt with each of the N of the other side.

    >>> found = outcomes(np.array([2.0, 1.0]), np.array([1.0, 1.0, 0.0, 3.0]))
    >>> found, found.rate
    (Outcomes(won=0.5, tied=0.25), 0.625)
    """
    won = float(np.mean(reward_S[:, None] > other_N[None, :]))
    return Outcomes(won, float(np.mean(reward_S[:, None] == other_N[None, :])))
