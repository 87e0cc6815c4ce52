"""Length-controlled rewards: what rewards would be if completions were as long as the references of their prompt.

Rewards and lengths of a prompt are standardised by its references, z = (x − mean) / standard deviation, and a slope k
of z of the reward on z of the length says what length is worth. A prompt whose references all have the same reward or
the same length says nothing about that, and its rewards stay as they are.

    controlled = reward − k · (length − mean length) · (deviation of reward / deviation of length)
"""

from typing import NamedTuple

import numpy as np


class Scale(NamedTuple):
    """Rewards and lengths of the references of a prompt; deviations divide by their number."""

    mean_reward: float
    mean_length: float
    reward_deviation: float
    length_deviation: float

    @property
    def flat(self) -> bool:
        """Whether rewards or lengths do not differ, up to rounding of float32."""
        small = 1e-6
        flat_reward = self.reward_deviation <= small * max(abs(self.mean_reward), small)
        return bool(flat_reward or self.length_deviation <= small * max(self.mean_length, small))


def scale_of(reward_N: np.ndarray, length_N: np.ndarray) -> Scale:
    """The scale of a prompt, from rewards and lengths [N] of its references."""
    numbers = reward_N.mean(), length_N.mean(), reward_N.std(), length_N.std()
    return Scale(*(float(number) for number in numbers))


def reference_slope(reward_N: np.ndarray, length_N: np.ndarray) -> float:
    """The slope of a prompt's references, without intercept; 0 where rewards or lengths do not differ.

    >>> reference_slope(np.array([1.0, 2.0, 3.0]), np.array([10, 20, 30]))
    1.0
    """
    scale = scale_of(reward_N, length_N)
    if scale.flat:
        return 0.0
    z_reward_N = (reward_N - scale.mean_reward) / scale.reward_deviation
    z_length_N = (length_N - scale.mean_length) / scale.length_deviation
    return float((z_reward_N * z_length_N).sum() / (z_length_N**2).sum())


def excess(length_S: np.ndarray, scale: Scale) -> np.ndarray:
    """What a slope of 1 takes from each reward [S], in units of the reward; 0 for a flat scale."""
    if scale.flat:
        return np.zeros(len(length_S))
    return (length_S - scale.mean_length) * scale.reward_deviation / scale.length_deviation


def controlled(reward_S: np.ndarray, length_S: np.ndarray, reward_N: np.ndarray, length_N: np.ndarray) -> np.ndarray:
    """Rewards [S] controlled by the slope of the prompt's own references (the first variant).

    >>> controlled(np.array([4.0]), np.array([40]), np.array([1.0, 2.0, 3.0]), np.array([10, 20, 30])).round(9).tolist()
    [2.0]
    """
    scale = scale_of(reward_N, length_N)
    return reward_S - reference_slope(reward_N, length_N) * excess(length_S, scale)


class SlopeSums(NamedTuple):
    """What a prompt adds to the one slope over all prompts that a side's own completions have (the second variant).

    Attributes:
      product, square: means over its completions of z_reward · z_length and of z_length².
      reward: mean reward of its completions.
      excess: mean of `excess`.
    """

    product: float
    square: float
    reward: float
    excess: float


def slope_sums(reward_S: np.ndarray, length_S: np.ndarray, reward_N: np.ndarray, length_N: np.ndarray) -> SlopeSums:
    """The part of one prompt; flat references add nothing to the slope."""
    scale, reward = scale_of(reward_N, length_N), float(reward_S.mean())
    if scale.flat:
        return SlopeSums(0.0, 0.0, reward, 0.0)
    z_reward_S = (reward_S - scale.mean_reward) / scale.reward_deviation
    z_length_S = (length_S - scale.mean_length) / scale.length_deviation
    sums = (z_reward_S * z_length_S).mean(), (z_length_S**2).mean(), reward, excess(length_S, scale).mean()
    return SlopeSums(*(float(number) for number in sums))


def own_slope_reward(sums: np.ndarray) -> np.ndarray:
    """The mean controlled reward, with the slope of all prompts together.

    Args:
      sums: [5, R] sums over prompts of the four numbers of `SlopeSums`, and the number of prompts.
    """
    product, square, reward, excess_, prompts = sums
    slope = np.where(square > 0, product / np.where(square > 0, square, 1.0), 0.0)
    return (reward - slope * excess_) / prompts
