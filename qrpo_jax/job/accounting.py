"""What a run counted: rows and completions dropped or cut, padding, ties, protections, speed."""

import math
from collections.abc import Iterable, Iterator

import numpy as np

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row
from qrpo_jax.job.job import Job, before
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.training.metrics import read_metrics

# What a completion cannot do where the protection of that name holds.
FORBIDDEN = {
    "network": "connect to the network",
    "filesystem": "write files",
    "reading": "read files outside the interpreter's library",
    "processes": "start or signal other processes",
    "memory": "use more memory than its limit",
    "cpu": "use more CPU time than its limit",
    "repeatable": "see addresses in memory that differ from run to run",
}


SIDES = ("reference", "policy")


def held_out(job: Job) -> dict[str, Iterator[Row]]:
    """Evaluated rows of both sides, prompt by prompt; one that lost all completions on a side is in neither."""
    folder = job.folder("evaluate")
    both = set.intersection(*({row.id for row in row_files.read(folder / side)} for side in SIDES))
    return {side: (row for row in row_files.read(folder / side) if row.id in both) for side in SIDES}


def stage_counts(job: Job) -> list[tuple[str, list[tuple[str, int]]]]:
    """What each stage counted, side by side where a stage has sides."""
    found = []
    for stage in job.config.stages:
        made = read_manifest(job.folder(stage))
        if made is not None and "counts" in made:
            counts = made["counts"]
            nested = any(isinstance(value, dict) for value in counts.values())
            parts = {f"{stage}, {side}": counts[side] for side in counts} if nested else {stage: counts}
            found += [(name, sorted(part.items())) for name, part in parts.items()]
    return found


def paddings(job: Job) -> dict[str, float]:
    manifests = {stage: read_manifest(job.folder(stage)) for stage in ("sft", "train") if stage in job.config.stages}
    return {stage: made["padding"] for stage, made in manifests.items() if made is not None and "padding" in made}


def comparisons(job: Job) -> dict[str, float]:
    """How much the training rewards tell: shares of tied comparisons, and of prompts whose references all tie."""
    source = before(job.config.stages, "train", ("sample", "score", "reference"))
    if source is None:
        return {}
    return tied_shares(row_files.read(job.folder(source)))


def tied_shares(rows: Iterable[Row]) -> dict[str, float]:
    """Shares of tied comparisons, completions with the other references of their prompt, and of flat prompts."""
    compared, tied, prompts, flat = 0, 0, 0, 0
    for row in rows:
        own = [c.reward for c in row.completions if c.source == "reference"]
        references = np.asarray([*own, *row.reference_rewards], np.float32)
        for completion in row.completions:
            itself = completion.source == "reference"
            tied += int((references == np.float32(completion.reward)).sum()) - itself
            compared += len(references) - itself
        if len(references) > 1:
            prompts += 1
            flat += bool((references == references[0]).all())
    return {"compared": compared, "tied": tied / max(compared, 1), "prompts": prompts, "flat": flat / max(prompts, 1)}


def protections(job: Job) -> dict[str, list[str]] | None:
    """What this machine kept model-written code from, and what it could not; None where no such code ran."""
    made = read_manifest(job.folder("score")) if "score" in job.config.stages else None
    if made is None or not made["protections"]:
        return None
    told = {name: FORBIDDEN.get(name, name) for name in made["protections"]}
    return {
        "held": [told[name] for name, held in made["protections"].items() if held],
        "not_held": [told[name] for name, held in made["protections"].items() if not held],
    }


def speeds(job: Job) -> dict[str, float]:
    """Median tokens per second of each training stage: the only figures that are about the machine."""
    found = {}
    for stage in ("sft", "train"):
        lines = read_metrics(job.folder(stage) / "metrics.jsonl")
        # The first line of a start has none: it would count compilation.
        laps = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
        laps = [lap for lap in laps if math.isfinite(lap)]
        if laps:
            found[stage] = float(np.median(laps))
    return found
