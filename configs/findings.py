"""The figures of docs/findings.md from the work directories of sweeps: one line a setting, over its seeds.

    python -m configs.findings runs/compare runs/finding_beta ...

Columns, each a mean with the standard deviation over seeds where there are several:

    reward, gain, quantile, KL   of the policy on held-out prompts, as in docs/evaluation.md
    Best-of-N                    N with which the reference's Best-of-N has this reward; inf beyond its M completions,
                                 nan below one of them
    by quantile                  N with which Best-of-N has this quantile: q / (1 - q)
    rho                          Spearman's correlation of log π/π_ref with length, over the policy's completions
    high, low                    mean log-ratio of held-out training completions of high and low reward; of the optimum
"""

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from qrpo_jax.data import row_files
from qrpo_jax.evaluation.best_of import best_of

SEED = "seed"
Figures = dict[str, float]


def figures(folder: Path) -> Figures:
    """The columns of one point; those that it has no number for are left out."""
    found: dict[str, float | None] = {}
    if (folder / "evaluate").exists():
        results = json.loads((folder / "evaluate" / "results.json").read_text())
        policy = results["policy"]
        found |= {
            "reward": policy["mean_reward"],
            "gain": results["gain"]["mean_reward"],
            "quantile": policy["mean_quantile"],
            "KL": policy.get("kl_to_reference_k1"),
            "Best-of-N": effective_n(folder / "evaluate" / "reference", policy["mean_reward"]),
            "by quantile": policy["mean_quantile"] / (1 - policy["mean_quantile"]),
            "rho": policy.get("length_correlation"),
        }
    last = json.loads((folder / "train" / "metrics.jsonl").read_text().splitlines()[-1])
    for side in ("high", "low"):
        found[side] = last.get(f"held_out_log_ratio_{side}")
        found[f"{side}, asked"] = last.get(f"held_out_predicted_log_ratio_{side}")
    return {name: float(value) for name, value in found.items() if value is not None}


def effective_n(reference: Path, reward: float) -> float:
    """N, between whole numbers by interpolation; below 1 where the policy is worse than one sample; inf beyond M."""
    rewards = [np.asarray([c.reward for c in row.completions]) for row in row_files.read(reference)]
    most = min(map(len, rewards))
    curve = [float(np.mean([best_of(one, n) for one in rewards])) for n in range(1, most + 1)]
    if reward < curve[0]:
        return float("nan")
    return float("inf") if reward > curve[-1] else float(np.interp(reward, curve, np.arange(1, most + 1)))


def settings(points: Sequence[Mapping[str, Any]]) -> dict[str, list[Path]]:
    """Folders of points by what they set beside the seed."""
    found = defaultdict(list)
    for point in points:
        named = {key.rpartition(".")[2]: value for key, value in point["settings"].items() if key != SEED}
        found[", ".join(f"{key} {shown(value)}" for key, value in named.items())].append(Path(point["folder"]))
    return found


def shown(value: Any) -> str:
    """A value; of the address of a file its name."""
    return PurePosixPath(str(value)).name


def cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{np.mean(values):.3g}" if np.isfinite(values).all() else "; ".join(f"{value:.3g}" for value in values)
    return mean if len(values) == 1 or not np.isfinite(values).all() else f"{mean} ± {np.std(values, ddof=1):.2g}"


def table(workdir: Path) -> str:
    """Markdown."""
    points = [
        point for point in json.loads((workdir / "sweep.json").read_text())["points"] if point["state"] == "complete"
    ]
    lines = {name: [figures(workdir / path) for path in paths] for name, paths in settings(points).items()}
    columns = list(dict.fromkeys(name for of in lines.values() for one in of for name in one))
    head = ["setting", "seeds", *columns]
    rows = [
        [name, str(len(of)), *(cell([one[column] for one in of if column in one]) for column in columns)]
        for name, of in lines.items()
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(f"\n## {argument}\n\n{table(Path(argument))}")
