"""Figures of the points of a sweep: read from their folders, averaged over seeds, and chosen by the selection half."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qrpo_jax.data import row_files
from qrpo_jax.evaluation.best_of import best_of
from qrpo_jax.evaluation.halves import HALVES, REPORTING, SELECTION, half_of
from qrpo_jax.stages import RESULTS
from qrpo_jax.sweep import drawn
from qrpo_jax.sweep.points import SEED

# The name of a figure in tables, and where results.json has it.
FIGURES = {
    "reward": ("policy", "mean_reward"),
    "reference": ("reference", "mean_reward"),
    "gain": ("gain", "mean_reward"),
    "quantile": ("policy", "mean_quantile"),
    "kl": ("policy", "kl_to_reference_k1"),
    "tokens": ("policy", "mean_tokens"),
    "length_rho": ("policy", "length_correlation"),
}
REWARD, KL = "reward", "kl"
Figures = dict[str, float]
NOTHING: Mapping[str, Any] = {"figures": {}, "ci95": None, "reporting_ci95": None, "halves": None, "best_of": {}}
UNDRAWN: Mapping[str, Any] = {"samples": None, "curve": None}  # of a point that is not complete, see `drawn`


def read_figures(results: Mapping[str, Any]) -> Figures:
    """The figures of a results.json, or of one half of it, without those that were not estimated or have no prompt."""
    found = {name: results.get(side, {}).get(key) for name, (side, key) in FIGURES.items()}
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def read_point(folder: Path, counts: Sequence[int]) -> dict[str, Any]:
    """What a complete point says.

    Args:
      folder: of the point.
      counts: N of Best-of-N.

    Returns:
      figures; ci95 of the policy's reward, and reporting_ci95 on the reporting half; `halves`, the figures of each, or
      None if results.json has none; and best_of, for each N the mean over all held-out prompts and over those of each
      half.
    """
    path = folder / "evaluate" / RESULTS
    if not path.exists():
        return dict(NOTHING)
    results = json.loads(path.read_text())
    # Folders of the reference policy's completions; those of the first seed have its name alone.
    others = [f"reference-seed-{seed}" for seed in list(results.get("seeds", ()))[1:]]
    references = [folder / "evaluate" / name for name in ("reference", *others)]
    halves = results.get("halves")
    return {
        "figures": read_figures(results),
        "ci95": results["policy"]["ci95"],
        "reporting_ci95": (halves or {}).get(REPORTING, {}).get("policy", {}).get("ci95"),
        "halves": None if halves is None else {half: read_figures(halves[half]) for half in HALVES},
        "best_of": best_of_reference(references, counts) if counts and references[0].exists() else {},
    }


def best_of_reference(folders: Sequence[Path], counts: Sequence[int]) -> dict[str, dict[str, float]]:
    """Best-of-N of the reference policy's held-out completions.

    Args:
      folders: scored rows, of each of `evaluate.seeds`.
      counts: each N.

    Returns:
      By N: the mean over `all` prompts and over those of each half, the number of prompts, and of those left out
      because they have fewer completions with a reward.
    """
    values: dict[str, dict[str, list[float]]] = {str(n): {"all": [], **{half: [] for half in HALVES}} for n in counts}
    rewards: dict[str, list[float]] = {}
    for row in (row for folder in folders for row in row_files.read(folder)):
        rewards.setdefault(row.id, []).extend(completion.reward for completion in row.completions)
    for row_id, of_row in rewards.items():
        for n in counts:
            if len(of_row) >= n:
                value = best_of(np.asarray(of_row), n)
                values[str(n)]["all"].append(value)
                values[str(n)][half_of(row_id)].append(value)
    found: dict[str, dict[str, float]] = {}
    for name, parts in values.items():
        prompts = len(parts["all"])
        found[name] = {part: mean(of_part) for part, of_part in parts.items() if of_part}
        found[name] |= {"prompts": prompts, "left_out": len(rewards) - prompts}
    return found


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds, with n - 1; None for one value, which has none."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def averaged(points: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each figure that all points have: its mean, spread and values over them."""
    names = [name for name in FIGURES if points and all(name in point for point in points)]
    values = {name: [point[name] for point in points] for name in names}
    return {name: {"mean": mean(of), "spread": spread(of), "values": of} for name, of in values.items()}


def without_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != SEED}


def over_seeds(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for each setting: its points averaged over seeds.

    Args:
      points: entries of sweep.json, complete or not.

    Returns:
      In the order of the sweep: settings without the seed, seeds that are complete, how many there are, figures as in
      `averaged`, ci95 and reporting_ci95 over prompts where there is one seed, and halves: figures of each, or None if
      one of the points has no halves; drawn, see `drawn.over_seeds`.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        groups.setdefault(json.dumps(without_seed(point["settings"]), sort_keys=True), []).append(point)
    lines = []
    for group in groups.values():
        done = [point for point in group if point["figures"]]
        halved = bool(done) and all(point["halves"] for point in done)
        lines.append(
            {
                "settings": without_seed(group[0]["settings"]),
                "seeds": [point["settings"].get(SEED) for point in done],
                "points": len(group),
                "figures": averaged([point["figures"] for point in done]),
                "ci95": done[0]["ci95"] if len(done) == 1 else None,
                "reporting_ci95": done[0]["reporting_ci95"] if len(done) == 1 else None,
                "halves": {half: averaged([point["halves"][half] for point in done]) for half in HALVES}
                if halved
                else None,
                "drawn": drawn.over_seeds([point["drawn"] for point in done]) if done else dict(UNDRAWN),
            }
        )
    return lines


def choose(
    lines: Sequence[Mapping[str, Any]], method: Sequence[str], max_kl: float = 0.0
) -> tuple[list[dict[str, Any]], list[str]]:
    """For each method its setting with the highest reward on the selection half, with figures of the reporting half.

    The mean over seeds decides, and the earlier setting among equal ones. Settings of which a seed is missing are left
    out: fewer seeds vary more, and the highest of several is the luckiest too.

    Args:
      lines: as from `over_seeds`, each with halves.
      method: keys that make a method.
      max_kl: nats a completion on the selection half; settings that move further are not chosen. 0: any.

    Returns:
      For each method with a setting to choose: the method and the other settings, how many settings it was chosen
      from, how many were left out because a seed is missing and how many moved further than `max_kl`, the reward on
      the selection half, and figures of the reporting half. And a line for each method that all its settings leave.
    """
    methods: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        named = {key: line["settings"][key] for key in method if key in line["settings"]}
        methods.setdefault(json.dumps(named, sort_keys=True), []).append(line)
    chosen, missing = [], []
    for key, candidates in methods.items():
        method_settings = json.loads(key)
        whole = [line for line in candidates if is_whole(line)]
        near = [line for line in whole if not max_kl or selection_kl(line) <= max_kl]
        if not near:
            name = ", ".join(map(str, method_settings.values())) or "all settings"
            too_far = f"all {len(whole)} go beyond collect.max_kl = {max_kl:g} nats"
            missing.append(
                f"no choice among the settings of {name}: {too_far if whole else 'each lacks a seed or a reward'}"
            )
            continue
        best = max(near, key=lambda line: line["halves"][SELECTION][REWARD]["mean"])
        chosen.append(
            {
                "method": method_settings,
                "settings": {key: value for key, value in best["settings"].items() if key not in method},
                "seeds": best["seeds"],
                "candidates": len(near),
                "left_out": len(candidates) - len(whole),
                "too_far": len(whole) - len(near),
                "selection": best["halves"][SELECTION][REWARD],
                "reporting": best["halves"][REPORTING],
                "reporting_ci95": best["reporting_ci95"],
            }
        )
    return chosen, missing


def selection_kl(line: Mapping[str, Any]) -> float:
    """Mean KL over seeds on the selection half; infinite where it was not estimated."""
    return float(line["halves"][SELECTION].get(KL, {"mean": math.inf})["mean"])


def is_whole(line: Mapping[str, Any]) -> bool:
    """Whether all seeds of a setting are complete, with a reward on both halves."""
    return (
        len(line["seeds"]) == line["points"]
        and line["halves"] is not None
        and all(REWARD in line["halves"][half] for half in HALVES)
    )


def best_of_lines(points: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Best-of-N averaged over seeds, and why there is none ("" if there is).

    Points of one seed share the reference policy and its held-out samples, unless the sweep changes these; then there
    is no one Best-of-N to compare with.
    """
    by_seed: dict[Any, dict[str, dict[str, float]]] = {}
    for point in points:
        if not point["best_of"]:
            continue
        seed = point["settings"].get(SEED)
        if by_seed.setdefault(seed, point["best_of"]) != point["best_of"]:
            return [], f"no Best-of-N: the sweep changes the reference policy or how it is sampled (seed {seed})"
    lines = []
    for n in next(iter(by_seed.values()), {}):
        parts = {}
        for part in ("all", *HALVES):
            values = [of_seed[n][part] for of_seed in by_seed.values() if part in of_seed[n]]
            if len(values) == len(by_seed):
                parts[part] = {"mean": mean(values), "spread": spread(values), "values": values}
        if "all" in parts:
            lines.append({"n": int(n), "seeds": list(by_seed), **parts})
    return lines, "" if lines else "no Best-of-N: no complete point has completions of the reference policy"
