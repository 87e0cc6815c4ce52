"""Held-out figures of the reference and the policy, and of the gain from one to the other."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.evaluation.intervals import mean_with_interval
from qrpo_jax.evaluation.ranks import mid_rank_quantile

SIDES = ("reference", "policy")


class Answers(NamedTuple):
    """The S completions with which one side answers one prompt.

    Attributes:
      reward_S: [S].
      length_S: [S] tokens.
      finished_S: [S] bool; false for completions cut by the length limit.
    """

    reward_S: np.ndarray
    length_S: np.ndarray
    finished_S: np.ndarray


def compare(answers: Mapping[str, Sequence[Answers]]) -> dict[str, Any]:
    """Held-out figures of both sides, and of their difference prompt by prompt.

    Args:
      answers: for each of SIDES one `Answers` per prompt; both sides have the same prompts in the same order.

    Returns:
      For each side mean_reward, ci95 (95 % interval over prompts), prompts, completions, mean_tokens, share_finished
      and share_full_reward (a reward of 1 or more); for the policy also mean_quantile, the mean mid-rank quantile
      among the reference's completions of the same prompt; and gain, with mean_reward and ci95.
    """
    results: dict[str, Any] = {side: side_figures(answers[side]) for side in SIDES}
    gain, ci95 = mean_with_interval(prompt_means(answers["policy"]) - prompt_means(answers["reference"]))
    results["gain"] = {"mean_reward": gain, "ci95": ci95}
    pairs = zip(answers["reference"], answers["policy"], strict=True)
    quantiles = [mid_rank_quantile(policy.reward_S, reference.reward_S).mean() for reference, policy in pairs]
    results["policy"]["mean_quantile"] = float(np.mean(quantiles))
    return results


def side_figures(answers: Sequence[Answers]) -> dict[str, Any]:
    """Figures of one side alone, see `compare`."""
    mean, ci95 = mean_with_interval(prompt_means(answers))
    reward_C, length_C, finished_C = map(np.concatenate, zip(*answers, strict=True))
    return {
        "mean_reward": mean,
        "ci95": ci95,
        "prompts": len(answers),
        "completions": len(reward_C),
        "mean_tokens": float(np.mean(length_C)),
        "share_finished": float(np.mean(finished_C)),
        "share_full_reward": float(np.mean(reward_C >= 1.0)),
    }


def prompt_means(answers: Sequence[Answers]) -> np.ndarray:
    """Mean reward of each prompt, [P]."""
    return np.asarray([a.reward_S.mean() for a in answers])
