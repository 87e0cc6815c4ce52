"""Figures of a rollout, for the line of metrics of the step before which it was made."""

from collections.abc import Mapping

import numpy as np

from qrpo_jax.data.rows import Row

PREFIX = "rollout_"
KL = f"{PREFIX}kl_to_reference"


def has_signal(row: Row) -> bool:
    """Whether the rewards of a prompt's completions differ, so that they say what is better."""
    rewards = [c.reward for c in row.completions]
    return bool(rewards) and max(rewards) > min(rewards)


def figures_of(rows: list[Row], tokens: Mapping[str, np.ndarray], counts: Mapping[str, int]) -> dict[str, float]:
    """Means over completions and tokens; KL in nats, by completion and by token.

    Args:
      tokens: as in `Rollout`.
      counts: of what was drawn.
    """
    completions = [c for row in rows for c in row.completions]
    if not completions:
        return {}
    lengths_K = np.asarray([len(c.tokens) for c in completions])
    found = {
        "reward": float(np.mean([c.reward for c in completions])),
        "tokens": float(lengths_K.mean()),
        "share_finished": float(np.mean([c.finished for c in completions])),
        "groups_with_signal": float(np.mean([has_signal(row) for row in rows])),
        "completions": float(len(completions)),
        "drawn": float(counts.get("completions", len(completions))),
    }
    old = tokens["old"].astype(np.float64)
    known = np.isfinite(old)  # of completions that fit a packed row
    if known.any():
        gap = np.abs(old - tokens["sampler"])[known]
        # Of the distribution that is sampled from, −log π is an unbiased estimate of the entropy.
        found |= {
            "entropy": float(-old[known].mean()),
            "sampler_gap": float(gap.mean()),
            "largest_sampler_gap": float(gap.max()),
        }
    if "reference" in tokens and known.any():
        log_ratio = (old - tokens["reference"])[known]
        of_completion = np.repeat(np.arange(len(lengths_K)), lengths_K)[known]
        sums_K = np.bincount(of_completion, weights=log_ratio, minlength=len(lengths_K))
        found["kl_to_reference"] = float(sums_K[np.unique(of_completion)].mean())
        found["kl_to_reference_k3"] = float(np.mean(np.expm1(-log_ratio) + log_ratio))
    return {f"{PREFIX}{name}": value for name, value in found.items()}
