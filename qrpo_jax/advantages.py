"""Advantages of completions and of their tokens, computed on the host in float64 before a step.

Rewards are [P, n], n completions of each of P prompts. A completion without a reward is NaN: it has no advantage (NaN
in the result), and the others have what they would have if it had never been sampled. Numbers of tokens are [K, T], K
completions of at most T tokens, with their lengths [K]; what stands beyond a length is ignored, and is 0 in results.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
SCALES = ("std", "none")


def has_signal(rewards: ArrayLike) -> NDArray[np.bool_]:
    """Whether the rewards of a prompt differ. Otherwise all its group advantages are 0, and it teaches nothing.

    Args:
      rewards: [P, n].

    Returns:
      [P], False where fewer than two completions have a reward.

    >>> has_signal([[1, 0, np.nan], [1, 1, np.nan], [1, np.nan, np.nan]]).tolist()
    [True, False, False]
    """
    rewards = np.asarray(rewards, np.float64)
    known = ~np.isnan(rewards)
    return np.where(known, rewards, -np.inf).max(-1) > np.where(known, rewards, np.inf).min(-1)


def group_normalised(rewards: ArrayLike, *, scale: str = "std") -> Array:
    """GRPO's advantage (R_i - mean) / std over the completions of a prompt (arXiv 2402.03300, section 4.1.2).

    Dr. GRPO leaves out the division, which gives prompts of nearly equal rewards the weight of all others (arXiv
    2503.20783). The std is that of the group, divided by n and not n - 1: the squares of a group's
    advantages have the mean 1. Nothing is added to it; a group of equal rewards has advantages of 0.

    Args:
      rewards: [P, n].
      scale: "std", or "none" for R_i - mean.

    Returns:
      [P, n], in units of the std, or of the reward.

    Raises:
      ValueError: unknown scale.

    >>> group_normalised([[1, 0, 0, 1, np.nan]]).tolist()
    [[1.0, -1.0, -1.0, 1.0, nan]]
    >>> group_normalised([[3, 0, 0]], scale="none").tolist()
    [[2.0, -1.0, -1.0]]
    """
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}; allowed: {', '.join(SCALES)}")
    rewards, signal = np.asarray(rewards, np.float64), has_signal(rewards)[:, None]
    count, mean = _group_mean(rewards)
    centred = np.where(signal, rewards - mean, 0 * rewards)  # 0 or NaN: a mean of equal numbers may be rounded
    if scale == "none":
        return centred
    variance = np.nansum(centred**2, -1, keepdims=True) / count
    return centred / np.sqrt(np.where(signal, variance, 1.0))


def leave_one_out(rewards: ArrayLike) -> Array:
    """RLOO's advantage: R_i minus the mean reward of the prompt's other completions (arXiv 2402.14740).

    The baseline is independent of completion i, so it changes the variance of the gradient and not its expectation. It
    is n / (n - 1) times the advantage of `group_normalised` without a scale.

    Args:
      rewards: [P, n]; with the KL in them, R_i - beta log(pi_old / pi_ref) of the completion.

    Returns:
      [P, n], in units of the reward; 0 for a completion alone in its group, which has no baseline.

    >>> leave_one_out([[1, 0, 0.5, np.nan]]).tolist()
    [[0.75, -0.75, 0.0, nan]]
    """
    rewards = np.asarray(rewards, np.float64)
    count, _ = _group_mean(rewards)
    return group_normalised(rewards, scale="none") * count / np.maximum(count - 1, 1)


def _group_mean(rewards: Array) -> tuple[Array, Array]:
    """Number (1 if there is none) and mean of the known rewards of each prompt, [P, 1] each."""
    count = np.maximum((~np.isnan(rewards)).sum(-1, keepdims=True), 1).astype(np.float64)
    return count, np.nansum(rewards, -1, keepdims=True) / count


def inside(lengths: ArrayLike, width: int) -> NDArray[np.bool_]:
    """Which of `width` tokens are before the end of each completion, [K, T].

    >>> inside([1, 2], 3).tolist()
    [[True, False, False], [True, True, False]]
    """
    return np.arange(width) < np.asarray(lengths)[:, None]


def token_rewards(
    rewards: ArrayLike, old_log_prob: ArrayLike, reference_log_prob: ArrayLike, lengths: ArrayLike, *, beta: float
) -> Array:
    """Reward of each token: -beta (log pi_old - log pi_ref), and at the last token the completion's reward as well.

    Their sum over a completion is R - beta log(pi_old / pi_ref), whose mean is the KL-regularised objective.

    Args:
      rewards: [K].
      old_log_prob, reference_log_prob: [K, T], nats.
      lengths: [K].
      beta: >= 0, KL strength in units of the reward.

    Returns:
      [K, T], in units of the reward; NaN in the whole of a completion without a reward.

    >>> token_rewards([1, np.nan], [[-1, -2]] * 2, [[-1, -3]] * 2, [2, 1], beta=0.5).tolist()
    [[0.0, 0.5], [nan, 0.0]]
    """
    rewards, old = np.asarray(rewards, np.float64), np.asarray(old_log_prob, np.float64)
    lengths = np.asarray(lengths)
    each = -beta * (old - np.asarray(reference_log_prob, np.float64))
    each += np.where(np.arange(old.shape[1]) == lengths[:, None] - 1, rewards[:, None], 0 * rewards[:, None])
    return np.where(inside(lengths, old.shape[1]), each, 0.0)


def returns(token_rewards: ArrayLike, lengths: ArrayLike, *, discount: float = 1.0) -> Array:
    """Discounted sum of the rewards from each token to the end, G_t = r_t + discount G_{t+1}.

    REINFORCE++ takes it, whitened over the batch, as its advantage (arXiv 2501.03262).

    Args:
      token_rewards: [K, T], see `token_rewards`.
      lengths: [K].
      discount: gamma, in [0, 1].

    Returns:
      [K, T], in units of the reward.

    >>> returns([[0.5, 0, 2, 9]], [3], discount=0.5).tolist()
    [[1.0, 1.0, 2.0, 0.0]]
    """
    return _backwards(np.asarray(token_rewards, np.float64), lengths, discount)


def gae(
    token_rewards: ArrayLike, values: ArrayLike, lengths: ArrayLike, *, discount: float = 1.0, gae_lambda: float = 0.95
) -> tuple[Array, Array]:
    """Generalised advantage estimation: A_t = delta_t + discount lambda A_{t+1} (arXiv 1506.02438, equation 16).

    delta_t = r_t + discount V_{t+1} - V_t, and V is 0 after a completion's end, also of one that was cut there.

    Args:
      token_rewards: [K, T], see `token_rewards`.
      values: [K, T], V_t, what the value head expects before token t, in units of the reward.
      lengths: [K].
      discount: gamma, in [0, 1].
      gae_lambda: in [0, 1]; 1 has no bias (A_t = G_t - V_t), 0 the least variance (A_t = delta_t).

    Returns:
      The advantages, and the returns A_t + V_t that the value head is to expect, [K, T] each, in units of the reward.

    >>> advantage, target = gae([[0, 1]], [[0.5, 0.25]], [2], discount=1.0, gae_lambda=0.5)
    >>> advantage.tolist(), target.tolist()
    ([[0.125, 0.75]], [[0.625, 1.0]])
    """
    rewards = np.asarray(token_rewards, np.float64)
    here = inside(lengths, rewards.shape[1])
    values = np.where(here, np.asarray(values, np.float64), 0.0)
    after = np.pad(values[:, 1:], ((0, 0), (0, 1)))
    advantages = _backwards(rewards + discount * after - values, lengths, discount * gae_lambda)
    return advantages, advantages + values


def _backwards(values: Array, lengths: ArrayLike, decay: float) -> Array:
    """x_t + decay x_{t+1} + decay² x_{t+2} + ... up to the end of each completion, [K, T]."""
    values = np.where(inside(lengths, values.shape[1]), values, 0.0)
    total, sums = np.zeros(len(values)), np.empty_like(values)
    for t in reversed(range(values.shape[1])):
        total = values[:, t] + decay * total
        sums[:, t] = total
    return sums


def whiten(values: ArrayLike, lengths: ArrayLike, *, shift_mean: bool = True) -> Array:
    """Values divided by their std over all tokens of all completions, after their mean is taken off.

    Args:
      values: [K, T]; a completion with NaN has no part in mean and std.
      lengths: [K].
      shift_mean: the result has the mean 0; otherwise the mean of `values`, as PPO for language models whitens rewards.

    Returns:
      [K, T], in units of the std. Where all values are equal nothing is divided.

    >>> whiten([[1, 3], [5, 99]], [2, 1]).round(3).tolist()
    [[-1.225, 0.0], [1.225, 0.0]]
    """
    values = np.asarray(values, np.float64)
    here = inside(lengths, values.shape[1])
    known = values[here & ~np.isnan(values)]
    if not known.size:
        return np.where(here, values, 0.0)
    mean = known.mean()
    # Of equal numbers mean and std may be rounded.
    std = known.std() if known.max() > known.min() else 1.0
    return np.where(here, (values - mean) / std + (0.0 if shift_mean else mean), 0.0)


def adapted_beta(beta: float, kl: float, target: float, *, rate: float = 0.1, most: float = 0.2) -> float:
    """The KL strength for the next iteration: beta (1 + rate clip(KL / target - 1, -most, most)).

    A proportional controller in log space (Ziegler et al., arXiv 1909.08593, section 2.2).

    Args:
      beta: > 0, of this iteration.
      kl: KL(pi_old || pi_ref) that it measured, nats a completion.
      target: > 0, nats a completion.
      rate: K_beta of the paper.
      most: bound of the relative error.

    >>> [round(adapted_beta(0.1, kl, 5.0), 4) for kl in (5.0, 5.5, 50.0, 0.0)]
    [0.1, 0.101, 0.102, 0.098]
    """
    return beta * (1 + rate * float(np.clip(kl / target - 1, -most, most)))
