"""Length bias of a policy: Spearman's correlation of its log-ratios with the length of completions.

The implicit reward of a policy is β (log π − log π_ref), see Rafailov et al. (2023, arXiv 2305.18290). β changes no
rank, so log-ratios have the same correlation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from qrpo_jax.evaluation.answers import Answers
from qrpo_jax.evaluation.intervals import bootstrap

SIGN = {"policy": -1.0, "reference": 1.0}  # of `Answers.log_ratio_S`, to make it log π − log π_ref
MOST = 4000  # completions of a side that are kept for a plot


def policy_log_ratios(answers: Sequence[Answers], side: str) -> list[np.ndarray]:
    """log π − log π_ref, nats, of the completions [S] of each prompt; NaN where it is not known."""
    missing = [np.full(len(a.reward_S), np.nan) for a in answers]
    return [
        SIGN[side] * a.log_ratio_S if len(a.log_ratio_S) else none for a, none in zip(answers, missing, strict=True)
    ]


def figures(answers: Sequence[Answers], side: str) -> dict[str, tuple[float, list[float]]]:
    """`length_correlation`: ρ of log π − log π_ref and length over a side's completions, with its interval.

    Resamples of prompts keep the ranks of the whole sample. None where log-ratios are unknown, or where one of the two
    is the same for all completions.

    Args:
      answers: one for each prompt.
      side: which side they are of.
    """
    ratio_S = policy_log_ratios(answers, side)
    known = [np.isfinite(one) for one in ratio_S]
    x_C = np.concatenate([one[k] for one, k in zip(ratio_S, known, strict=True)]) if ratio_S else np.zeros(0)
    y_C = np.concatenate([a.length_S[k] for a, k in zip(answers, known, strict=True)]) if ratio_S else np.zeros(0)
    if len(np.unique(x_C)) < 2 or len(np.unique(y_C)) < 2:
        return {}
    x_C, y_C = (rankdata(values) - (len(values) + 1) / 2 for values in (x_C, y_C))
    prompt_C = np.repeat(np.arange(len(answers)), [k.sum() for k in known])

    def by_prompt(values_C: np.ndarray) -> np.ndarray:
        return np.bincount(prompt_C, values_C, minlength=len(answers))

    columns = (np.ones(len(x_C)), x_C, y_C, x_C * x_C, y_C * y_C, x_C * y_C)
    return {"length_correlation": bootstrap(correlation, *map(by_prompt, columns))}


def correlation(sums: np.ndarray) -> np.ndarray:
    """Pearson's correlation from the sums of 1, x, y, x², y² and x y; [6, R] -> [R]."""
    n, x, y, xx, yy, xy = sums
    return (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))


def points(answers: Sequence[Answers], side: str) -> dict[str, Any]:
    """Length and log π − log π_ref of completions for a plot, at most MOST, spread evenly; of how many in all.

    Returns:
      length, log_ratio: lists of as many numbers; completions: with a known log-ratio.
    """
    every = np.concatenate(policy_log_ratios(answers, side)) if answers else np.zeros(0)
    length_C = np.concatenate([a.length_S for a in answers]) if answers else np.zeros(0)
    known_C = np.flatnonzero(np.isfinite(every))
    chosen = known_C[np.linspace(0, len(known_C) - 1, min(len(known_C), MOST)).astype(int)] if len(known_C) else known_C
    ratios = [round(float(value), 4) for value in every[chosen]]
    return {"length": length_C[chosen].astype(int).tolist(), "log_ratio": ratios, "completions": len(known_C)}
