"""Figures of a rollout, with 95 % intervals over its prompts: for the metrics of the step before which it was made."""

from collections.abc import Mapping

import numpy as np

from qrpo_jax import advantages
from qrpo_jax.data.rows import Row
from qrpo_jax.evaluation import kl
from qrpo_jax.evaluation.intervals import ratio_with_interval

PREFIX = "rollout_"
KL = f"{PREFIX}kl_to_reference"

Figures = dict[str, float]
Intervals = dict[str, list[float]]  # [low, high]
Sums = tuple[np.ndarray, np.ndarray]  # numerators and denominators, [P] each: a figure is the ratio of their sums


def has_signal(row: Row) -> bool:
    """Whether the rewards of a prompt's completions differ, so that they say what is better."""
    return bool(row.completions) and bool(advantages.has_signal([[c.reward for c in row.completions]])[0])


def figures_of(
    rows: list[Row], tokens: Mapping[str, np.ndarray], counts: Mapping[str, int]
) -> tuple[Figures, Intervals]:
    """Means over completions and tokens, KL in nats; and the intervals of those that have one, by the same names.

    Args:
      tokens: as in `Rollout`.
      counts: of what was drawn.
    """
    completions = sum(len(row.completions) for row in rows)
    if not completions:
        return {}, {}
    found = {name: ratio_with_interval(*of_name) for name, of_name in sums(rows, tokens).items()}
    means = {name: float(mean) for name, (mean, _) in found.items() if np.isfinite(mean)}
    means |= {"completions": float(completions), "drawn": float(counts.get("completions", completions))}
    gap = np.abs(tokens["old"] - tokens["sampler"])
    if np.isfinite(gap).any():
        means["largest_sampler_gap"] = float(np.nanmax(gap))
    intervals = {name: ends for name, (_, ends) in found.items() if np.isfinite(ends).all()}  # none of a single prompt
    return _named(means), _named(intervals)


def _named(figures: Mapping[str, object]) -> dict:
    return {f"{PREFIX}{name}": value for name, value in figures.items()}


def sums(rows: list[Row], tokens: Mapping[str, np.ndarray]) -> dict[str, Sums]:
    """The sums of each figure over the completions, or the tokens, of each prompt."""
    sizes_P = np.asarray([len(row.completions) for row in rows], int)
    completions = [c for row in rows for c in row.completions]
    lengths_K = np.asarray([len(c.tokens) for c in completions], int)
    prompt_K = np.repeat(np.arange(len(rows)), sizes_P)
    old = tokens["old"].astype(np.float64)
    known = np.isfinite(old)  # of completions that fit a packed row
    completion_T = np.repeat(np.arange(len(completions)), lengths_K)[known]
    prompt_T = prompt_K[completion_T]

    def over_completions(values_K: np.ndarray) -> Sums:
        return np.bincount(prompt_K, values_K, len(rows)), sizes_P.astype(float)

    def over_tokens(values_T: np.ndarray) -> Sums:
        return np.bincount(prompt_T, values_T, len(rows)), np.bincount(prompt_T, minlength=len(rows)).astype(float)

    found = {
        "reward": over_completions(np.asarray([c.reward for c in completions], float)),
        "tokens": over_completions(lengths_K.astype(float)),
        "share_finished": over_completions(np.asarray([c.finished for c in completions], float)),
        "groups_with_signal": (np.asarray([has_signal(row) for row in rows], float), np.ones(len(rows))),
        # Of the distribution that is sampled from, −log π is an unbiased estimate of the entropy.
        "entropy": over_tokens(-old[known]),
        "sampler_gap": over_tokens(np.abs(old - tokens["sampler"])[known]),
    }
    if "reference" in tokens:
        log_ratio_T = (tokens["reference"] - old)[known]  # log q − log p, of the reference and the policy
        known_P = np.bincount(prompt_K[np.unique(completion_T)], minlength=len(rows)).astype(float)
        found["kl_to_reference"] = over_tokens(kl.k1(log_ratio_T))[0], known_P
        found["kl_to_reference_k3"] = over_tokens(kl.k3(log_ratio_T))
    return found
