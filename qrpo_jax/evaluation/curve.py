"""The held-out curve over training: figures of the policy at several steps, and the step that is best."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qrpo_jax.evaluation.answers import Answers
from qrpo_jax.evaluation.compare import POLICY, REFERENCE, compare
from qrpo_jax.evaluation.halves import HALVES, REPORTING, SELECTION, half_of

SHOWN = ("mean_reward", "mean_quantile", "mean_tokens")
KL = tuple(f"kl_to_reference_{name}" for name in ("k1", "k3", "k1_per_token", "k3_per_token"))


def same_policy(reference: Sequence[Answers]) -> list[Answers]:
    """The reference's answers as those of a policy that is still the reference."""
    return [a._replace(log_ratio_S=np.zeros(len(a.reward_S)), token_k3_S=np.zeros(len(a.reward_S))) for a in reference]


def point(step: int, ids: Sequence[str], policy: Sequence[Answers], reference: Sequence[Answers]) -> dict[str, Any]:
    """One point of the curve.

    Args:
      step: number of updates that made the policy.
      ids: of the rows of the prompts.
      policy, reference: their answers, with prompts in the same order.

    Returns:
      step, the figures of SHOWN and KL with their intervals, gain, and of each half its mean_reward and gain; a half
      without prompts is empty.
    """
    figures = compare({REFERENCE: reference, POLICY: policy})
    names = [name for name in (*SHOWN, *KL) if name in figures[POLICY]]
    found: dict[str, Any] = {"step": step} | {name: figures[POLICY][name] for name in names}
    found["gain"] = figures["gain"]
    found["intervals"] = {name: figures[POLICY]["intervals"][name] for name in names}
    found["halves"] = {}
    for half in HALVES:
        chosen = [index for index, row_id in enumerate(ids) if half_of(row_id) == half]
        if not chosen:
            found["halves"][half] = {}
            continue
        of_half = compare({REFERENCE: [reference[i] for i in chosen], POLICY: [policy[i] for i in chosen]})
        found["halves"][half] = {name: of_half[POLICY][name] for name in (*SHOWN, "ci95")} | {"gain": of_half["gain"]}
    return found


def curve(
    ids: Sequence[str], reference: Sequence[Answers], policies: Mapping[int, Sequence[Answers]]
) -> list[dict[str, Any]]:
    """A point for each step in order; step 0 is the reference itself.

    Args:
      ids, reference: as in `point`.
      policies: answers of the policy by step.
    """
    every = {0: same_policy(reference)} | dict(policies)
    return [point(step, ids, every[step], reference) for step in sorted(every)]


def best(points: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The step with the highest mean reward on the selection half, the earliest of equal ones, and its figures.

    Returns:
      step; selection, the mean reward that it was chosen for; reporting, its figures on the other half. None if a half
      has no prompts.
    """
    if not all(one["halves"][half] for one in points for half in HALVES):
        return None
    chosen = max(points, key=lambda one: (one["halves"][SELECTION]["mean_reward"], -one["step"]))
    halves = chosen["halves"]
    return {"step": chosen["step"], SELECTION: halves[SELECTION]["mean_reward"], REPORTING: halves[REPORTING]}


def results_of(results: Mapping[str, Any], step: int, half: str = "") -> dict[str, Any] | None:
    """What results.json would say of the policy after a step of its curve; None if the curve lacks it.

    Args:
      half: of the prompts, such as the reporting one for a step that the other half chose; "": all.
    """
    found = next((one for one in results.get("curve", ()) if one["step"] == step), None)
    if found is None:
        return None
    whole = results["halves"][half] if half else results
    policy = found["halves"][half] if half else found | {"ci95": found["intervals"]["mean_reward"]}
    return {REFERENCE: whole[REFERENCE], POLICY: policy, "gain": policy["gain"]}
