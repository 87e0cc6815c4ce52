"""What the points of a sweep drew: completions that training used, and rewards of those that a policy drew itself."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.on_policy import iterations

CURVE = {"reward": "reward", "kl": "kl_to_reference"}  # figures of a curve, and what an iteration calls them


def read_drawn(folder: Path) -> dict[str, Any]:
    """What a complete point drew.

    Args:
      folder: of the point.

    Returns:
      samples: completions that training used; None where they were not all sampled by the run. curve: of an on-policy
      point for each iteration samples, reward, reward_ci95 and, as far as it is known, kl; None of others.
    """
    trained = read_manifest(folder / "train")
    sampled = (read_manifest(folder / "sample") or {}).get("counts", {}).get("completions")
    if trained is None:
        return {"samples": None, "curve": None}
    path = folder / "train" / iterations.NAME
    if not path.exists():
        return {"samples": sampled, "curve": None}
    before = sampled if trained.get("stored_references") else 0
    several = [one for one in json.loads(path.read_text()) if "reward" in one["figures"]]
    if before is None or not several:
        return {"samples": None, "curve": None}
    curve: dict[str, Any] = {"samples": [before + one["samples"] for one in several]}
    for name, figure in CURVE.items():
        if all(figure in one["figures"] for one in several):
            curve[name] = [one["figures"][figure] for one in several]
    curve["reward_ci95"] = [one["intervals"].get("reward") for one in several]
    return {"samples": curve["samples"][-1], "curve": curve}


def over_seeds(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What points of one setting drew, averaged over seeds.

    Args:
      points: as from `read_drawn`, at least one.

    Returns:
      As `read_drawn`, with means of samples; reward_low and reward_high in place of reward_ci95, a standard deviation
      around the mean, or the interval over prompts of one seed. No curve if the points' have other lengths.
    """
    samples, curves = [point["samples"] for point in points], [point["curve"] for point in points]
    total = None if any(count is None for count in samples) else float(np.mean(samples))
    if any(curve is None for curve in curves) or len({len(curve["samples"]) for curve in curves}) > 1:
        return {"samples": total, "curve": None}
    names = [name for name in ("samples", *CURVE) if all(name in curve for curve in curves)]
    table = {name: np.asarray([curve[name] for curve in curves], float) for name in names}
    found = {name: values.mean(0).tolist() for name, values in table.items()}
    if len(points) > 1:
        mean, spread = table["reward"].mean(0), table["reward"].std(0, ddof=1)
        ends = np.stack([mean - spread, mean + spread])
    else:
        reward = found["reward"]
        ends = np.asarray([ci95 or [mean] * 2 for ci95, mean in zip(curves[0]["reward_ci95"], reward, strict=True)]).T
    return {"samples": total, "curve": found | {"reward_low": ends[0].tolist(), "reward_high": ends[1].tolist()}}
