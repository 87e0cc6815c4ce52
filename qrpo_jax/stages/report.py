"""Stage `report`: one self-contained page on a run, and its tables, from the files of the earlier stages."""

import json
from itertools import islice
from typing import Any

import numpy as np

from qrpo_jax.data import row_files
from qrpo_jax.devices.processes import is_first
from qrpo_jax.files import write_text
from qrpo_jax.job import accounting, results_file
from qrpo_jax.job.held_out import shared_rows
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import flatten, read_manifest
from qrpo_jax.job.source_check import is_on_policy
from qrpo_jax.job.stage_rows import reads_source
from qrpo_jax.on_policy import iterations
from qrpo_jax.on_policy.run import FOLDER as ROLLOUTS
from qrpo_jax.report import run_page, run_tables, samples, tables
from qrpo_jax.report.page import PAGE
from qrpo_jax.report.rollout_pictures import rollout_pictures
from qrpo_jax.report.run_page import Pictures
from qrpo_jax.report.run_pictures import data_pictures, held_out_pictures
from qrpo_jax.report.run_record import HeldOut, OnPolicy, RunRecord, TrainingData
from qrpo_jax.report.training_pictures import speed_pictures, training_pictures
from qrpo_jax.stages import LENGTHS, compile
from qrpo_jax.stages.evaluate import shown_settings, training_forecast
from qrpo_jax.training.metrics import METRICS, read_metrics
from qrpo_jax.training.objectives import OBJECTIVES

TABLES = "tables"  # folder of them, beside the page
CHECKED_ROWS = 2000  # of the training data, the first ones, whose ranks are drawn


def run(job: Job) -> dict[str, Any]:
    config = job.config.train
    unit = OBJECTIVES[config.objective].loss_unit.format(loss=config.loss)
    facts = {"settings": shown_settings(job), "optimum": training_forecast(job)}  # also where no policy is evaluated
    results = facts | results_file.read(job, job.config.stages)
    held_out, record = read_held_out(job), read_record(job)
    what = stored_data(job)
    pictures = Pictures(
        held_out_pictures(held_out, results),
        rollout_pictures(record.on_policy, record.metrics.get("train", []), results),
        training_pictures(record.metrics, results, unit, record.on_policy),
        data_pictures(accounting.reward_spread(job), read_training_data(job), what) if what else [],
        speed_pictures(record.metrics, record.times, run_tables.seconds_by_stage(record.starts)),
    )
    found = run_page.tables(results, held_out, record)
    page = run_page.build(results, held_out, pictures, record, found)

    path = job.folder("report") / PAGE
    if is_first():
        write_text(path, page)
        tables.write(job.folder("report") / TABLES, found)
    job.say(f"report: {path}")
    plots, shown = sum(map(len, pictures)), sum(map(len, held_out.places.values()))
    return {"page": PAGE, "plots": plots, "examples": shown, "tables": list(found)}


def read_held_out(job: Job) -> HeldOut:
    """The rewards of all held-out completions, and the rows of the samples; nothing without stage `evaluate`."""
    if "evaluate" not in job.config.stages:
        return HeldOut({}, {}, {}, {})
    rows = shared_rows(job)
    rewards = {
        side: [np.asarray([c.reward for c in row.completions]) for row in several] for side, several in rows.items()
    }
    means = {side: [float(of_prompt.mean()) for of_prompt in of_side] for side, of_side in rewards.items()}
    places = samples.chosen(means, job.config.report.examples)
    shown = [i for several in places.values() for i in several]
    examples = {side: {i: several[i] for i in shown} for side, several in rows.items()}
    lengths = job.folder("evaluate") / LENGTHS
    return HeldOut(rewards, places, examples, json.loads(lengths.read_text()) if lengths.exists() else {})


def read_training_data(job: Job) -> TrainingData | None:
    """Rewards of the first rows that stage `train` read; None without this stage, and where no stage wrote rows."""
    if "train" not in job.config.stages or reads_source(job, "train"):
        return None
    folder = job.folder(job.rows_before("train"))
    if not folder.exists():
        return None
    references, brought = [], []
    for row in islice(row_files.read(folder), CHECKED_ROWS):
        scored = [c for c in row.completions if np.isfinite(c.reward)]
        own = [c.reward for c in scored if c.source == "reference"]
        references.append(np.asarray([*own, *row.reference_rewards], np.float64))
        brought.append(np.asarray([c.reward for c in scored if c.source == "dataset"], np.float64))
    return TrainingData(references, brought)


def stored_data(job: Job) -> str:
    """What the stored completions are to this run, in words; "" if it had no use for any."""
    if "train" not in job.config.stages or not is_on_policy(job.config):
        return "training"
    return "stored reference" if ranks_among_stored(job) else ""


def ranks_among_stored(job: Job) -> bool:
    """Whether an on-policy run ranked among stored completions of the reference policy."""
    return bool((read_manifest(job.folder("train")) or {}).get("stored_references"))


def read_on_policy(job: Job) -> OnPolicy | None:
    """The iterations of an on-policy run, with the rewards that its first rows were ranked among."""
    if "train" not in job.config.stages or not is_on_policy(job.config):
        return None
    path = job.folder("train") / iterations.NAME
    references: dict[str, np.ndarray] = {}
    if ranks_among_stored(job):
        rows = islice(row_files.read(job.folder("train") / ROLLOUTS), CHECKED_ROWS)
        references = {row.id.partition("@")[0]: np.asarray(row.reference_rewards, np.float64) for row in rows}
    by_group = job.config.rollout.quantiles == "group" and OBJECTIVES[job.config.train.objective].ranked
    return OnPolicy(json.loads(path.read_text()), list(references.values()), by_group)


def read_record(job: Job) -> RunRecord:
    compiled = job.folder("compile") / compile.RESULTS
    stages = [stage for stage in ("sft", "train") if stage in job.config.stages]
    return RunRecord(
        counts=accounting.stage_counts(job),
        rows=accounting.stage_rows(job),
        verdicts=accounting.completion_verdicts(job),
        padding=accounting.paddings(job),
        comparisons=accounting.comparisons(job),
        protections=accounting.protections(job),
        settings=flatten(job.config.to_dict()),
        metrics={stage: read_metrics(job.folder(stage) / METRICS) for stage in stages},
        paces=accounting.paces(job),
        times=accounting.times(job),
        skews=accounting.skews(job),
        starts=accounting.starts(job),
        benchmark=accounting.benchmark(job),
        compiled=json.loads(compiled.read_text()) if compiled.exists() else None,
        on_policy=read_on_policy(job),
    )
