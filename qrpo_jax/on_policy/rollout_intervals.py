"""95 % intervals of the figures of a rollout, over its prompts."""

from collections.abc import Mapping

import numpy as np

from qrpo_jax.data.rows import Row
from qrpo_jax.evaluation.intervals import ratio_with_interval
from qrpo_jax.on_policy.rollout_figures import PREFIX, has_signal


def intervals_of(rows: list[Row], tokens: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """[low, high] of the figures of `figures_of` that are means, by the same names; none of a single prompt.

    Args:
      tokens: as in `Rollout`.
    """
    found = {name: ratio_with_interval(*of_name)[1] for name, of_name in sums(rows, tokens).items()}
    return {f"{PREFIX}{name}": ends for name, ends in found.items() if np.isfinite(ends).all()}


def sums(rows: list[Row], tokens: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Numerators and denominators of each figure, [P] each: the figure is the ratio of their sums over prompts."""
    sizes_P = np.asarray([len(row.completions) for row in rows], int)
    completions = [c for row in rows for c in row.completions]
    lengths_K = np.asarray([len(c.tokens) for c in completions], int)
    prompt_K = np.repeat(np.arange(len(rows)), sizes_P)
    prompt_T = np.repeat(prompt_K, lengths_K)
    of_completions = {
        "reward": np.asarray([c.reward for c in completions], float),
        "tokens": lengths_K.astype(float),
        "share_finished": np.asarray([c.finished for c in completions], float),
    }
    found = {
        name: (np.bincount(prompt_K, values_K, len(rows)), sizes_P.astype(float))
        for name, values_K in of_completions.items()
    }
    found["groups_with_signal"] = np.asarray([has_signal(row) for row in rows], float), np.ones(len(rows))
    old = tokens["old"].astype(np.float64)
    known = np.isfinite(old)  # of completions that fit a packed row
    tokens_P = np.bincount(prompt_T[known], minlength=len(rows)).astype(float)

    def over_tokens(values: np.ndarray) -> np.ndarray:
        return np.bincount(prompt_T[known], values, len(rows))

    found["entropy"] = over_tokens(-old[known]), tokens_P
    found["sampler_gap"] = over_tokens(np.abs(old - tokens["sampler"])[known]), tokens_P
    if "reference" in tokens:
        log_ratio = (old - tokens["reference"])[known]
        completion_T = np.repeat(np.arange(len(lengths_K)), lengths_K)
        known_K = np.unique(completion_T[known])
        found["kl_to_reference"] = (
            over_tokens(log_ratio),
            np.bincount(prompt_K[known_K], minlength=len(rows)).astype(float),
        )
        found["kl_to_reference_k3"] = over_tokens(np.expm1(-log_ratio) + log_ratio), tokens_P
    return found
