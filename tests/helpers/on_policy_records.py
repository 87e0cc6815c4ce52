"""A work directory as an on-policy run leaves it, with figures that are made up."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Message, Row
from qrpo_jax.files import write_json
from qrpo_jax.job import manifest
from qrpo_jax.job.job import Job
from qrpo_jax.stages import STAGES
from qrpo_jax.training.time_sheet import CAUSES
from tests.helpers.report_jobs import completion, forecast_of, make_job

ITERATIONS, PROMPTS, COMPLETIONS, STEPS_EACH = 17, 11, 3, 5
STAGES_OF_RUN = ("score", "reference", "train", "report")
SAMPLES = PROMPTS * COMPLETIONS  # of an iteration


def iteration(index: int) -> dict[str, Any]:
    """Reward and KL rise, entropy falls."""
    t = index / ITERATIONS
    figures = {
        "reward": 0.4 + 0.2 * t,
        "tokens": 30 + 10 * t,
        "share_finished": 0.9 - 0.3 * t,
        "groups_with_signal": 1 - 0.5 * t,
        "completions": float(SAMPLES),
        "drawn": float(SAMPLES),
        "entropy": 2.5 - t,
        "sampler_gap": 1e-4 * math.exp(t),
        "largest_sampler_gap": 0.1 * math.exp(t),
        "kl_to_reference": 1.5 * t,
        "kl_to_reference_k3": 1.5 * t,
    }
    widths = {"reward": 0.03, "kl_to_reference": 0.2, "entropy": 0.1, "tokens": 2.0}
    intervals = {name: [figures[name] - width, figures[name] + width] for name, width in widths.items()}
    own = {"iteration": index + 1, "step": index * STEPS_EACH + 1, "staleness": STEPS_EACH if index else 0}
    return own | {"samples": (index + 1) * SAMPLES, "beta": 0.3, "figures": figures, "intervals": intervals}


def step_metrics(step: int, objective: str) -> dict[str, float]:
    """What objectives of tokens add to the line of a step."""
    within = step % STEPS_EACH / STEPS_EACH
    found = {"ratio_mean": 1 + 0.01 * within, "kl_to_old": 0.02 * within, "kl_to_reference": 0.001 * step}
    found |= {"clip_share": 0.3 * within} if objective != "qrpo" else {}
    return found | ({"value_error": 1 / step} if objective == "ppo" else {})


def rollout_rows(index: int) -> list[Row]:
    rng = np.random.default_rng(index)
    rows = []
    for prompt in range(PROMPTS):
        drawn = tuple(completion(f"{prompt}\n" * (i + 2), float(rng.uniform()), "policy") for i in range(COMPLETIONS))
        stored = np.sort(rng.uniform(0.2, 0.6, 5)).astype(np.float32)
        rows.append(Row(f"train-{prompt}@{index}", (Message("user", "?"),), "", drawn, stored))
    return rows


def make_on_policy_job(workdir: Path, objective: str = "qrpo") -> Job:
    """The job of an on-policy run without held-out figures; with QRPO its completions were ranked among stored ones."""
    stored = make_job(workdir, STAGES_OF_RUN, objective)
    config = ConfigDict(stored.config.to_dict())
    config.train.data = "on_policy"
    job = Job(FrozenConfigDict(config), workdir, stored.shard, STAGES)
    folder = job.folder("train")
    write_json(folder / "iterations.json", [iteration(index) for index in range(ITERATIONS)])
    row_files.write_unit(folder / "rollouts", 0, 1, rollout_rows(0))
    row_files.finish(folder / "rollouts", 1)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line | step_metrics(line["step"], objective) | {"tokens": 100.0, "padding": 0.2} for line in lines]
    if objective != "qrpo":  # nothing is ranked, so no completion is on the high side
        unknown = ("log_ratio_high", "quantile")
        lines = [{name: value for name, value in line.items() if name not in unknown} for line in lines]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    seconds = dict.fromkeys(CAUSES, 1.0) | {"compile": 8.0, "rollout": 50.0, "steps": 38.0}
    write_json(folder / "time.json", [{"started": 0.0, "seconds": seconds, "first": 0, "step": 100}])
    counts = {"completions": ITERATIONS * SAMPLES, "groups replaced: no signal": 23}
    facts = {"counts": counts, "forecast": forecast_of(job), "stored_references": objective == "qrpo"}
    manifest.complete(folder, facts | {"protections": {}, "isolation": ""})
    return job
