"""Stage `report`: one self-contained page on a run, from the files of the earlier stages."""

import json
from typing import Any

import numpy as np

from qrpo_jax.data.rows import Row
from qrpo_jax.devices.processes import is_first
from qrpo_jax.files import write_text
from qrpo_jax.job import accounting, results_file
from qrpo_jax.job.held_out import shared_rows
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import flatten
from qrpo_jax.report import run_page
from qrpo_jax.report.evaluation_pictures import evaluation_pictures
from qrpo_jax.report.page import PAGE
from qrpo_jax.report.run_page import HeldOut, RunRecord
from qrpo_jax.report.run_pictures import held_out_pictures, score_pictures, training_pictures
from qrpo_jax.stages import compile
from qrpo_jax.training.metrics import read_metrics
from qrpo_jax.training.objectives import OBJECTIVES


def run(job: Job) -> dict[str, Any]:
    config = job.config.train
    unit = OBJECTIVES[config.objective].loss_unit.format(loss=config.loss)
    results = results_file.read(job, job.config.stages)
    metrics = {stage: read_metrics(job.folder(stage) / "metrics.jsonl") for stage in ("sft", "train")}
    held_out = read_held_out(job)

    pictures = [
        *evaluation_pictures(results),
        *held_out_pictures(held_out.rewards, results),
        *score_pictures(accounting.reward_spread(job)),
        *training_pictures(metrics, results, unit),
    ]
    page = run_page.build(results, held_out, pictures, read_record(job))

    path = job.folder("report") / PAGE
    if is_first():
        write_text(path, page)
    job.say(f"report: {path}")
    return {"page": PAGE, "plots": len(pictures) + 1, "examples": len(held_out.examples["policy"])}


def read_held_out(job: Job) -> HeldOut:
    """The rewards of all held-out completions, and the rows of the examples."""
    rewards: dict[str, list[np.ndarray]] = {}
    examples: dict[str, list[Row]] = {}
    for side, rows in shared_rows(job).items():
        rewards[side], examples[side] = [], []
        for row in rows:
            rewards[side].append(np.asarray([c.reward for c in row.completions]))
            if len(examples[side]) < job.config.report.examples:
                examples[side].append(row)
    return HeldOut(rewards, examples)


def read_record(job: Job) -> RunRecord:
    compiled = job.folder("compile") / compile.RESULTS
    return RunRecord(
        counts=accounting.stage_counts(job),
        rows=accounting.stage_rows(job),
        verdicts=accounting.completion_verdicts(job),
        padding=accounting.paddings(job),
        comparisons=accounting.comparisons(job),
        protections=accounting.protections(job),
        settings=flatten(job.config.to_dict()),
        speeds=accounting.speeds(job),
        paces=accounting.paces(job),
        times=accounting.times(job),
        skews=accounting.skews(job),
        benchmark=accounting.benchmark(job),
        compiled=json.loads(compiled.read_text()) if compiled.exists() else None,
    )
