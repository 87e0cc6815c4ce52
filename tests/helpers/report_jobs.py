"""Work directories as the stages before `report` leave them, with figures that are made up."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from configs import default
from qrpo_jax import transforms
from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.evaluation import length_bias
from qrpo_jax.evaluation.achieved import achieved
from qrpo_jax.evaluation.compare import compare
from qrpo_jax.evaluation.histogram import spread
from qrpo_jax.evaluation.kl import LogRatios
from qrpo_jax.faults.records import write_record
from qrpo_jax.files import write_json
from qrpo_jax.job import manifest, pace, provenance
from qrpo_jax.job.held_out import answers
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.report import forecast
from qrpo_jax.stages import STAGES, evaluate
from tests.helpers import tiny

HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e</pre><img src=x onerror=alert(2)>"
WITH_SFT = ("sft", "sample", "score", "reference", "train", "evaluate", "report")
PROMPTS, COMPLETIONS, STEPS = 53, 7, 101
START = {
    "started": 1795854840.0,
    "seconds": 79.25,
    "peak_bytes": 3 << 29,
    "command": ["python", "-m", "qrpo_jax.main", "--config=a b"],
    "version": "0.1.0",
    "commit": "abcdef123456",
    "libraries": {"jax": "0.10.2"},
    "hardware": "a processor, 2 cores",
    "processes": 1,
}
VERDICTS = {"completions: passed": 45, "completions: wrong": 228, "completions: error": 300, "completions: time": 27}


def completion(text: str, reward: float, source: str) -> Completion:
    tokens = np.arange(len(text) % 11 + 1, dtype=np.int32)
    return Completion(text, tokens, bool(len(text) % 7), source, reward=reward, log_prob=-5.0, reference_log_prob=-5.0)


def held_out(side: str, skill: float, scale: float = 1.0, shift: float = 0.0) -> list[Row]:
    """Rows with rewards in tenths, higher for a higher skill; the first text attacks the page."""
    rng = np.random.default_rng(3)
    rows = []
    for prompt in range(PROMPTS):
        ease = rng.beta(1.2, 1.2)
        share = np.clip(ease + skill, 0, 1)
        passed = np.round(rng.beta(0.2 + 3 * share, 0.2 + 3 * (1 - share), COMPLETIONS) * 10) / 10
        texts = [HOSTILE if prompt == 0 and i == 0 else f"a * {i} + b\n" for i in range(COMPLETIONS)]
        completions = [completion(t, float(r * scale + shift), side) for t, r in zip(texts, passed, strict=True)]
        message = Message("user", f"Write f(a, b):\nf(2,5)={prompt} & <b>")
        rows.append(Row(f"eval-{prompt}", (message,), "", tuple(completions), np.zeros(0, np.float32)))
    return rows


def ratios(row: Row) -> LogRatios:
    """Log-ratios that fall with length, for each completion of a row."""
    length_C = np.asarray([len(c.tokens) for c in row.completions], float)
    return LogRatios(0.25 * length_C - 1.0, np.full(len(length_C), 0.125))


def metrics(calibrated: bool) -> list[dict[str, float]]:
    rng = np.random.default_rng(5)
    lines = []
    for step in range(1, STEPS):
        t = step / STEPS
        line = {
            "loss": 0.1 * math.exp(-2 * t) + 0.01 * rng.normal(),
            "gradient_norm": math.exp(-3 * t + 0.2 * rng.normal()),
            "quantile": 0.5 + 0.02 * rng.normal(),
            "log_ratio_high": 0.8 * t + 0.1 * rng.normal(),
            "log_ratio_low": -2.5 * t + 0.1 * rng.normal(),
            "learning_rate": 1e-3 * min(step / 10, (1 + math.cos(math.pi * t)) / 2),
            "tokens_per_second": math.nan if step == 1 else 12345.0,
        }
        if calibrated:
            line["calibrated_target"] = -0.27 + 0.02 * rng.normal()
            line |= {"predicted_log_ratio_high": 0.875, "predicted_log_ratio_low": -3.125}
            if step % 20 == 0:
                line |= {"held_out_loss": 0.1, "held_out_log_ratio_high": 0.5 * t, "held_out_log_ratio_low": -2 * t}
                line["held_out_reward"] = 0.25 + 0.25 * t
        lines.append({"step": step, **line})
    return lines


def forecast_of(job: Job) -> dict[str, Any] | None:
    """The forecast that stage train puts on record."""
    config = job.config.train
    if config.objective != "qrpo":
        return None
    transform, table = transforms.parse(config.transform), tiny.examples(10)
    beta_C = np.full(10, config.beta)
    return forecast.figures(table, transform, beta_C, partition_name=config.partition, estimator="ecdf")


def make_job(workdir: Path, stages: tuple[str, ...] = WITH_SFT, objective: str = "qrpo", **of_rewards: float) -> Job:
    """A work directory as the stages before the report leave it, and its job."""
    config: ConfigDict = default.get_config()
    config.stages, config.train.objective = stages, objective
    config.evaluate.completions = COMPLETIONS
    job = Job(FrozenConfigDict(config), workdir, Shard(0, 1), STAGES)
    sides = {side: held_out(side, skill, **of_rewards) for side, skill in (("reference", 0.0), ("policy", 0.35))}
    for side, rows in sides.items():
        row_files.write_unit(job.folder("evaluate") / side, 0, 1, rows)
        row_files.finish(job.folder("evaluate") / side, 1)
    answered = {side: [answers(row, ratios(row)) for row in rows] for side, rows in sides.items()}
    results = compare(answered)
    lengths = {side: length_bias.points(of_side, side) for side, of_side in answered.items()}
    write_json(job.folder("evaluate") / "lengths.json", lengths)
    results["reference"] |= {"kl_to_policy_k1": 1.75, "kl_to_policy_k3": 1.5}
    results["policy"] |= {"kl_to_reference_k1": 1.25, "kl_to_reference_k3": 1.125}
    results["policy"]["intervals"]["kl_to_reference_k1"] = [1.0, 1.5]
    row_files.write_unit(job.folder("reference"), 0, 1, sides["reference"])
    row_files.finish(job.folder("reference"), 1)
    counts = {"rows": PROMPTS, "dropped: too long": 4321}
    for stage in ("sft", "train"):
        if stage in stages:
            job.folder(stage).mkdir()
            lines = [json.dumps(line) + "\n" for line in metrics(stage == "train" and objective == "qrpo")]
            (job.folder(stage) / "metrics.jsonl").write_text("".join(lines))
            manifest.complete(job.folder(stage), {"counts": counts, "padding": 0.0625, "forecast": forecast_of(job)})
    results |= {"settings": evaluate.shown_settings(job), "optimum": evaluate.training_forecast(job)}
    results["achieved"] = achieved(results["optimum"], results["policy"])
    write_json(workdir / "evaluate" / "results.json", results)
    protections = {"network": False, "filesystem": True, "memory": True}
    lines = {"error": {HOSTILE: 203, "NameError: name 'b' is not defined": 4}, "time": {"more than 1 s": 7}}
    found = {"counts": VERDICTS | {"rows": PROMPTS}, "first_lines": lines, "units": 2}
    found |= {"row_flow": {"in": 67, "out": PROMPTS}, "rewards": spread({0.0: 250, 0.25: 187, 1.0: 163})._asdict()}
    for unit, seconds in enumerate((9.0, 2.0)):
        pace.write_pace(job.folder("score"), unit, seconds, first=unit == 0)
        write_record(job.folder("score") / "counts" / f"{unit:05d}.json", {"completions: wrong": 300})
    manifest.complete(job.folder("score"), found | {"isolation": "kernel", "protections": protections})
    of_side = {"prompts": PROMPTS, "completions: passed": 3, "completions: wrong": 1}
    of_side |= {"completions": 4, "completions cut by length limit": 3}
    flow = {"in": PROMPTS, "out": PROMPTS}
    evaluated = {"counts": dict.fromkeys(sides, of_side), "row_flow": dict.fromkeys(sides, flow), "units": 1}
    manifest.complete(job.folder("evaluate"), evaluated)
    for side in sides:
        write_record(job.folder("evaluate") / side / "counts" / "00000.json", of_side)
    for stage in stages[:-1]:
        write_json(job.folder(stage) / provenance.FOLDER / "0-of-1.json", [START])
    job.folder("report").mkdir()
    return job
