"""Held-out figures of the reference and the policy, and of the gain from one to the other, as results.json has them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qrpo_jax.evaluation import length_bias
from qrpo_jax.evaluation.answers import Answers
from qrpo_jax.evaluation.halves import HALVES, half_of
from qrpo_jax.evaluation.intervals import mean_with_interval
from qrpo_jax.evaluation.side_figures import Figures, figures_against, kl_figures, own_figures, prompt_means

SIDES = REFERENCE, POLICY = "reference", "policy"


def compare(answers: Mapping[str, Sequence[Answers]]) -> dict[str, Any]:
    """Held-out figures of both sides, and of their difference prompt by prompt; or of the policy alone.

    Args:
      answers: for each of SIDES, or for "policy" alone, one `Answers` per prompt; both sides have the same prompts in
        the same order.

    Returns:
      For each side the figures of `own_figures`, `kl_figures` and `length_bias`, for the policy also those of
      `figures_against`; with ci95, the interval of mean_reward, intervals, that of each figure by name, prompts,
      completions, and stored_prompts, those with stored references; and gain, with mean_reward and ci95, if there are
      two sides.
    """
    results: dict[str, Any] = {}
    for side, other in (SIDES, SIDES[::-1]):
        if side in answers:
            figures = own_figures(answers[side]) | kl_figures(answers[side], other)
            figures |= length_bias.figures(answers[side], side)
            if side == POLICY and other in answers:
                figures |= figures_against(answers[side], answers[other])
            results[side] = written(figures) | sizes(answers[side])
    if len(results) == len(SIDES):
        difference_P = prompt_means(answers[POLICY]) - prompt_means(answers[REFERENCE])
        gain, ci95 = mean_with_interval(difference_P)
        results["gain"] = {"mean_reward": gain, "ci95": ci95}
    return results


def compare_halves(ids: Sequence[str], answers: Mapping[str, Sequence[Answers]]) -> dict[str, dict[str, Any]]:
    """The figures of `compare` on each half of the prompts; those of a half without prompts are empty.

    Args:
      ids: of the rows of the prompts.
      answers: as in `compare`.
    """
    found = {}
    for half in HALVES:
        chosen = [index for index, row_id in enumerate(ids) if half_of(row_id) == half]
        of_half = {side: [of_side[index] for index in chosen] for side, of_side in answers.items()}
        found[half] = compare(of_half) if chosen else {}
    return found


def written(figures: Figures) -> dict[str, Any]:
    """A table of figures as results.json has it."""
    intervals = {name: interval for name, (_, interval) in figures.items()}
    plain = {name: figure for name, (figure, _) in figures.items()}
    return plain | {"ci95": intervals["mean_reward"], "intervals": intervals}


def sizes(answers: Sequence[Answers]) -> dict[str, int]:
    """How many prompts and completions figures are of."""
    stored = sum(len(a.stored_N) > 0 for a in answers)
    completions = int(np.sum([len(a.reward_S) for a in answers]))
    return {"prompts": len(answers), "completions": completions} | ({"stored_prompts": stored} if stored else {})
