"""The table of held-out figures on the page of a run: a row for each figure, a column for each side."""

import math
from typing import Any

import numpy as np

from qrpo_jax.evaluation.compare import SIDES
from qrpo_jax.report.page import number

# Figures by name in results.json, in the order of the page; those that a run does not have are left out.
LABELS = {
    "mean_quantile": "Mean quantile among reference completions",
    "stored_quantile": "Mean quantile among stored references",
    "win_rate": "Win rate against the reference, ties half",
    "share_tied": "Pairs that are ties",
    "pass_rate": "Pass rate",
    "length_controlled_reward": "Length-controlled reward, slopes of the references",
    "length_controlled_reward_own_slope": "Length-controlled reward, one slope of these completions",
    "mean_tokens": "Mean tokens per completion",
    "share_finished": "Finished within the length limit",
    "share_full_reward": "With full reward (1)",
}
SHARES = ("win_rate", "share_", "pass_")
KL = {"k1": "k1 estimate (nats)", "k3": "k3 estimate (nats)", "k3_per_token": "k3 estimate a token (nats)"}


def sides_of(results: dict[str, Any]) -> list[str]:
    """The sides that were evaluated: both, or the policy alone."""
    return [side for side in SIDES if side in results]


def headline(results: dict[str, Any], rewards: dict[str, list[np.ndarray]]) -> list[tuple[str, ...]]:
    """Rows of the table of results: a label, and a cell for each side."""
    sides = sides_of(results)
    table: list[tuple[str, ...]] = [
        ("Mean reward", *(number(results[side]["mean_reward"]) for side in sides)),
        ("95 % interval", *(" to ".join(map(number, results[side]["ci95"])) for side in sides)),
    ]
    if "gain" in results:
        low, high = (number(end, sign=True) for end in results["gain"]["ci95"])
        gain = f"{number(results['gain']['mean_reward'], sign=True)} ({low} to {high})"
        table.append(("Gain, with 95 % interval", "", gain))
    # The reference's completions have mean mid-rank quantile 1/2 by definition.
    half = {"mean_quantile": 0.5} if "reference" in results else {}
    figures = [half | results[side] for side in sides]
    for name, label in labels(results).items():
        if name == "share_full_reward" and ("pass_rate" in results["policy"] or not in_unit_interval(rewards)):
            continue  # said by the pass rate; and 1 is no special value of an unbounded reward
        if any(name in of_side for of_side in figures):
            table.append((label, *(cell(of_side, name) for of_side in figures)))
    for estimator, label in KL.items() if len(sides) == len(SIDES) else ():
        names = {"reference": f"kl_to_policy_{estimator}", "policy": f"kl_to_reference_{estimator}"}
        estimates = [results[side].get(names[side], math.nan) for side in sides]
        table.append((f"KL to the other side, {label}", *map(number, estimates)))
    sizes = [(results[side]["prompts"], results[side]["completions"]) for side in sides]
    table.append(("Prompts × completions per prompt", *(f"{p} × {round(c / p, 2):g}" for p, c in sizes)))
    return table


def labels(results: dict[str, Any]) -> dict[str, str]:
    """LABELS, and behind the pass rate those of pass@k for the k above 1 that there are."""
    names = [name for name in results["policy"] if name.startswith("pass_at_") and name != "pass_at_1"]
    at_k = {name: f"Pass@{name.rpartition('_')[2]}" for name in names}
    found: dict[str, str] = {}
    for name, label in LABELS.items():
        found |= {name: label} | (at_k if name == "pass_rate" else {})
    return found


def cell(figures: dict[str, Any], name: str) -> str:
    """A figure with its interval, as far as they are there."""
    if name not in figures:
        return "–"
    written = "{:.1%}".format if name.startswith(SHARES) else number
    low, high = figures.get("intervals", {}).get(name, (math.nan, math.nan))
    interval = f" ({written(low)} to {written(high)})" if math.isfinite(low) else ""
    return f"{written(figures[name])}{interval}"


def in_unit_interval(rewards: dict[str, list[np.ndarray]]) -> bool:
    """Whether all rewards lie from 0 to 1."""
    every = np.concatenate([reward_S for of_side in rewards.values() for reward_S in of_side])
    return bool(every.min() >= 0 and every.max() <= 1)
