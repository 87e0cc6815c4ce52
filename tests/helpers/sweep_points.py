"""Points of a sweep with figures that are made up, as their stages leave them."""

from pathlib import Path
from typing import Any

import numpy as np

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.files import write_json
from qrpo_jax.job import manifest
from qrpo_jax.sweep.plan import Plan
from qrpo_jax.sweep.points import points_of

SWEEP = [
    {"train.objective": ["qrpo"], "train.beta": [0.1, 0.3], "seed": [0, 1, 2]},
    {"train.objective": ["dpo"], "train.beta": [0.1, 0.3], "seed": [0, 1, 2]},
]
NO_PLAN = Plan({}, ())


def side(reward: float) -> dict[str, Any]:
    return {"mean_reward": reward, "ci95": [reward - 0.1, reward + 0.1], "mean_tokens": 7.5}


def results(reward: float, reference: float = 0.25) -> dict[str, Any]:
    policy = side(reward) | {
        "mean_quantile": reward,
        "kl_to_reference_k1": 2 * reward,
        "length_correlation": reward - 1,
    }
    gain = {"mean_reward": reward - reference, "ci95": [0, 1]}
    return {"policy": policy, "reference": side(reference), "gain": gain}


def rewards_of(settings: dict[str, Any]) -> tuple[float, float]:
    """On the selection and the reporting half: β 0.3 looks better on one, and is worse on the other."""
    base = {"qrpo": 0.5, "dpo": 0.4}[settings["train.objective"]] + 0.01 * settings["seed"]
    return (base, base + 0.05) if settings["train.beta"] == 0.1 else (base + 0.02, base - 0.02)


def write_points(workdir: Path, config: Any, *, halves: bool = True, references: Any = None) -> list[Any]:
    """Complete points with results of these rewards."""
    points = points_of(config)
    for point in points:
        selection, reporting = rewards_of(point.settings)
        found: dict[str, Any] = results((selection + reporting) / 2)
        if halves:
            found["halves"] = {"selection": results(selection), "reporting": results(reporting)}
        folder = workdir / "points" / point.name
        for stage in point.config.stages:
            manifest.complete(folder / stage, {})
        write_json(folder / "evaluate" / "results.json", found)
        if references is not None:
            rows = folder / "evaluate" / "reference"
            row_files.write_unit(rows, 0, 1, references(point.settings["seed"]))
            row_files.finish(rows, 1)
    return list(points)


def references(seed: int) -> list[Row]:
    """Rows with 4 rewards each."""
    rng = np.random.default_rng(seed)
    return [
        Row(
            id=f"eval-{i}",
            messages=(Message("user", "?"),),
            completions=tuple(
                Completion("x", np.zeros(1, np.int32), True, "reference", reward=float(reward))
                for reward in rng.uniform(size=4)
            ),
        )
        for i in range(12)
    ]
