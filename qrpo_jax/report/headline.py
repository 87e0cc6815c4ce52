"""The tables of held-out figures of a run: of both sides, of optimum and policy, and of checkpoints."""

import math
from typing import Any

import numpy as np

from qrpo_jax.evaluation.compare import POLICY, REFERENCE, SIDES
from qrpo_jax.report.tables import Cell, Interval, Table

# Figures by name in results.json, in the order of the page; those that a run does not have are left out.
LABELS = {
    "mean_reward": "Mean reward",
    "mean_quantile": "Mean quantile among reference completions",
    "stored_quantile": "Mean quantile among stored references",
    "win_rate": "Win rate against the reference, ties half",
    "share_tied": "Pairs that are ties",
    "pass_rate": "Pass rate",
    "length_controlled_reward": "Length-controlled reward, slopes of the references",
    "length_controlled_reward_own_slope": "Length-controlled reward, one slope of these completions",
    "length_correlation": "Spearman’s ρ of log-ratio and length",
    "mean_tokens": "Mean tokens per completion",
    "share_finished": "Finished within the length limit",
    "share_full_reward": "With full reward (1)",
}
SHARES = ("win_rate", "share_", "pass_")
KL = {"k1": "k1 (nats)", "k3": "k3 (nats)", "k3_per_token": "k3 a token (nats)"}
CURVE = {"mean_reward": "reward", "mean_quantile": "quantile", "kl_to_reference_k1": "kl", "mean_tokens": "tokens"}


def sides_of(results: dict[str, Any]) -> list[str]:
    """The sides that were evaluated: both, or the policy alone."""
    return [side for side in SIDES if side in results]


def headline(results: dict[str, Any], rewards: dict[str, list[np.ndarray]]) -> Table:
    """A row for each figure, a column for each side."""
    sides, rows = sides_of(results), list[list[Cell]]()
    # The reference's completions have mean mid-rank quantile 1/2 by definition.
    half = {"mean_quantile": 0.5} if REFERENCE in results else {}
    figures = [half | results[side] for side in sides]
    for name, label in labels(results).items():
        if name == "share_full_reward" and (results[POLICY].get("pass_rate") is not None or not in_unit(rewards)):
            continue  # said by the pass rate; and 1 is no special value of an unbounded reward
        if any(name in of_side for of_side in figures):
            rows.append([label, *(cell(of_side, name) for of_side in figures)])
        if name == "mean_reward" and "gain" in results:
            low, high = results["gain"]["ci95"]
            gain = Interval(results["gain"]["mean_reward"], low, high, sign=True)
            rows.append(["Gain, prompt by prompt", None, gain])
    for estimator, label in KL.items() if len(sides) == len(SIDES) else ():
        names = {REFERENCE: f"kl_to_policy_{estimator}", POLICY: f"kl_to_reference_{estimator}"}
        cells = [cell(results[side], names[side]) for side in sides]
        if any(one is not None for one in cells):
            rows.append([f"KL to the other side, {label}", *cells])
    sizes = [(results[side]["prompts"], results[side]["completions"]) for side in sides]
    rows.append(["Prompts × completions per prompt", *(f"{p} × {round(c / p, 2):g}" for p, c in sizes)])
    return Table(["held-out prompts", *sides], rows)


def labels(results: dict[str, Any]) -> dict[str, str]:
    """LABELS, and behind the pass rate those of pass@k for the k above 1 that there are."""
    names = [name for name in results[POLICY] if name.startswith("pass_at_") and name != "pass_at_1"]
    at_k = {name: f"Pass@{name.rpartition('_')[2]}" for name in names}
    found: dict[str, str] = {}
    for name, label in LABELS.items():
        found |= {name: label} | (at_k if name == "pass_rate" else {})
    return found


def cell(figures: dict[str, Any], name: str) -> Interval | None:
    """A figure with its interval, as far as they are there."""
    if figures.get(name) is None:
        return None
    low, high = figures.get("intervals", {}).get(name, (math.nan, math.nan))
    return Interval(figures[name], low, high, share=name.startswith(SHARES), sign=name == "length_correlation")


def in_unit(rewards: dict[str, list[np.ndarray]]) -> bool:
    """Whether all rewards lie from 0 to 1."""
    every = np.concatenate([reward_S for of_side in rewards.values() for reward_S in of_side])
    return bool(every.min() >= 0 and every.max() <= 1)


def optimum_table(results: dict[str, Any]) -> Table | None:
    """Optimum, and policy; None for objectives without a known optimum, and without a policy that was evaluated."""
    if POLICY not in results or results["optimum"].get("kl") is None:
        return None
    optimum, policy = results["optimum"], results[POLICY]
    settings, quantile = results["settings"], policy["mean_quantile"]
    low, high = policy.get("intervals", {}).get("mean_quantile", (math.nan, math.nan))
    effective = Interval(effective_n(quantile), effective_n(low), effective_n(high))
    rows: list[list[Cell]] = [
        ["Expected quantile", optimum["expected_quantile"], cell(policy, "mean_quantile")],
        ["KL(policy ‖ reference), k1 (nats)", optimum["kl"], cell(policy, "kl_to_reference_k1")],
        ["KL(policy ‖ reference), k3 (nats)", optimum["kl"], cell(policy, "kl_to_reference_k3")],
        ["Effective N of Best-of-N", optimum["effective_best_of_n"], effective],
    ]
    return Table([f"{settings['transform']}, β = {settings['beta']:g}", "asked for", "achieved"], rows)


def effective_n(quantile: float) -> float:
    """The N for which Best-of-N of the reference has this expected quantile."""
    return quantile / (1 - quantile) if quantile < 1 else math.inf


def curve_table(results: dict[str, Any]) -> Table | None:
    """Figures of checkpoints; None without a curve."""
    curve = results.get("curve")
    if not curve:
        return None
    names = [name for name in CURVE if all(name in point for point in curve)]
    rows: list[list[Cell]] = [[point["step"], *(cell(point, name) for name in names)] for point in curve]
    return Table(["step", *(CURVE[name] for name in names)], rows)
