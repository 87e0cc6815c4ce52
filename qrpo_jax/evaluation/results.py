"""What results.json says of held-out answers: of all prompts, of both halves, of each seed, and over training."""

from collections.abc import Mapping
from typing import Any

from qrpo_jax.evaluation import curve
from qrpo_jax.evaluation.answers import Answers, joined
from qrpo_jax.evaluation.compare import REFERENCE, SIDES, compare, compare_halves

BySeed = Mapping[int, Mapping[str, Answers]]  # for each seed the answers by the id of their row


def held_out_results(sides: Mapping[str, BySeed], steps: Mapping[int, BySeed]) -> dict[str, Any]:
    """All figures of a held-out evaluation.

    Figures are of prompts that all sides answered; those of the curve, of prompts that all steps answered too.

    Args:
      sides: answers of "reference" and "policy", or of "policy" alone.
      steps: answers of the policy after some updates, for a curve over training; it may have none.

    Returns:
      What `compare` returns, over all prompts and seeds, with `halves`; `seeds`, by seed, if there are several; with
      steps also `curve` and `best`, see `curve`.
    """
    ids = shared_ids(list(sides.values()))
    answers = {side: together(of_side, ids) for side, of_side in sides.items()}
    results = compare(answers) | {"halves": compare_halves(ids, answers)}
    seeds = list(next(iter(sides.values())))
    if len(seeds) > 1:
        results["seeds"] = {str(seed): headline(sides, seed, ids) for seed in seeds}
    if steps:
        ids = shared_ids([*sides.values(), *steps.values()])
        policies = {step: together(of_step, ids) for step, of_step in steps.items()}
        results["curve"] = curve.curve(ids, together(sides[REFERENCE], ids), policies)
        results["best"] = curve.best(results["curve"])
    return results


def shared_ids(several: list[BySeed]) -> list[str]:
    """Ids of the prompts that all answered, for all seeds, in order."""
    parts = [answers for of_one in several for answers in of_one.values()]
    return [row_id for row_id in parts[0] if all(row_id in part for part in parts)]


def together(by_seed: BySeed, ids: list[str]) -> list[Answers]:
    """The answers of all seeds to each prompt, as one."""
    return [joined([answers[row_id] for answers in by_seed.values()]) for row_id in ids]


def headline(sides: Mapping[str, BySeed], seed: int, ids: list[str]) -> dict[str, Any]:
    """Mean reward of each side with one seed, and the gain."""
    figures = compare({side: [of_side[seed][row_id] for row_id in ids] for side, of_side in sides.items()})
    short = {side: {name: figures[side][name] for name in ("mean_reward", "ci95")} for side in SIDES if side in figures}
    return short | ({"gain": figures["gain"]} if "gain" in figures else {})
