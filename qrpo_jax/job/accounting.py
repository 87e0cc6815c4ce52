"""Figures of a finished run for its report: rows dropped and cut, padding, ties, protections, speed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qrpo_jax.evaluation.histogram import Spread
from qrpo_jax.job import provenance, summary, verdicts
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.pace import READ, SAMPLED, SCORED, per_second
from qrpo_jax.job.summary import CUT
from qrpo_jax.job.units import pace_of, row_units
from qrpo_jax.job.verdicts import FirstLines
from qrpo_jax.report.run_record import Protections, StagePace, StageRows, Verdicts
from qrpo_jax.training import host_skew, time_sheet
from qrpo_jax.training.metrics import METRICS, read_metrics
from qrpo_jax.training.time_sheet import Goodput, goodput

MEASURES = {"sample": SAMPLED, "score": SCORED, "reference": READ, "evaluate": SAMPLED}
# The action of model-written code that each protection prevents.
PREVENTS = {
    "network": "connect to the network",
    "filesystem": "write files",
    "reading": "read files outside the interpreter's library",
    "paths": "see which other paths exist",
    "processes": "start or signal other processes",
    "waiting": "sleep or wait",
    "memory": "use more memory than its limit",
    "cpu": "use more CPU time than its limit",
    "repeatable": "see addresses in memory that differ from run to run",
}


def stage_counts(job: Job) -> list[tuple[str, list[tuple[str, int]]]]:
    """The counts above 0 of each finished stage, sorted by name; a stage with two sides has one entry for each."""
    return [(title, sorted(item for item in counts.items() if item[1])) for title, counts, _ in _parts(job)]


def completion_verdicts(job: Job) -> list[Verdicts]:
    """The verdicts of each stage that scored completions, by side; none of a reward that is a number."""
    found = [Verdicts(title, verdicts.by_verdict(counts), lines) for title, counts, lines in _parts(job)]
    return [one for one in found if one.completions]


def _parts(job: Job) -> Iterator[tuple[str, dict[str, int], FirstLines]]:
    """Of each finished stage, or of each of its two sides: a title, its counts, and first lines by verdict."""
    for stage in job.config.stages:
        manifest = read_manifest(job.folder(stage))
        if manifest is None or "counts" not in manifest:
            continue
        counts, lines = manifest["counts"], manifest.get("first_lines", {})
        if any(isinstance(value, dict) for value in counts.values()):
            yield from ((f"{stage}, {side}", of_side, lines.get(side, {})) for side, of_side in counts.items())
        else:
            yield stage, counts, lines


def stage_rows(job: Job) -> list[StageRows]:
    """Rows in and out of each stage that writes rows, by side, and what length limits cut."""
    counts = {title: of_title for title, of_title, _ in _parts(job)}
    return [
        StageRows(title, rows["in"], rows["out"], counts[title].get(CUT), summary.cut_share(counts[title]))
        for title, _, rows in _row_folders(job)
    ]


def paces(job: Job) -> list[StagePace]:
    """Work and rate of each stage that writes rows, by side, as far as it was measured."""
    found = []
    for title, folder, _ in _row_folders(job):
        stage = title.partition(",")[0]
        measure, units = MEASURES[stage], row_units(job.folder(stage))
        of_title = pace_of(folder, units, measure)
        if rate := per_second(of_title, measure):
            found.append(StagePace(title, of_title.amount, measure.what, of_title.seconds, rate, of_title.warm))
    return found


def reward_spread(job: Job) -> Spread | None:
    """The rewards that stage `score` found; None for a job without it, or without rewards."""
    manifest = read_manifest(job.folder("score")) if "score" in job.config.stages else None
    return Spread(**manifest["rewards"]) if manifest is not None and manifest.get("rewards") else None


def _row_folders(job: Job) -> Iterator[tuple[str, Path, dict[str, int]]]:
    """Of each finished stage with rows, or of each of its sides: a title, the folder, and rows in and out."""
    for stage in job.config.stages:
        manifest = read_manifest(job.folder(stage))
        if manifest is None or "row_flow" not in manifest:
            continue
        if stage == "evaluate":
            yield from (
                (f"{stage}, {side}", job.folder(stage) / side, flow) for side, flow in manifest["row_flow"].items()
            )
        else:
            yield stage, job.folder(stage), manifest["row_flow"]


def paddings(job: Job) -> dict[str, float]:
    """Share of padding among the tokens of each training stage's batches: as planned, or else as in its metrics."""
    manifests = {stage: read_manifest(job.folder(stage)) for stage in ("sft", "train") if stage in job.config.stages}
    found = {}
    for stage, manifest in manifests.items():
        if manifest is not None and "padding" in manifest:
            found[stage] = manifest["padding"]
        elif lines := [line for line in read_metrics(job.folder(stage) / METRICS) if line.get("padding", 1.0) < 1]:
            tokens = sum(line["tokens"] for line in lines)
            found[stage] = 1 - tokens / sum(line["tokens"] / (1 - line["padding"]) for line in lines)
    return found


def comparisons(job: Job) -> dict[str, float]:
    """The `tied_shares` that stage `train` found in its rows; empty if there are none."""
    manifest = read_manifest(job.folder("train")) if "train" in job.config.stages else None
    return manifest.get("comparisons", {}) if manifest is not None else {}


def protections(job: Job) -> Protections | None:
    """What the sandbox prevented where completions were scored first, and what it did not; None if no code was run."""
    stages = (stage for stage in ("score", "train", "evaluate") if stage in job.config.stages)
    manifests = [read_manifest(job.folder(stage)) for stage in stages]
    manifest = next((one for one in manifests if one is not None and one.get("protections")), None)
    if manifest is None:
        return None
    held = {PREVENTS.get(name, name): holds for name, holds in manifest["protections"].items()}
    prevented = [action for action in held if held[action]]
    return Protections(manifest.get("isolation", ""), prevented, [action for action in held if not held[action]])


def benchmark(job: Job) -> dict[str, Any] | None:
    """The figures of stage `benchmark`; None for a job without it."""
    return read_manifest(job.folder("benchmark")) if "benchmark" in job.config.stages else None


def times(job: Job) -> dict[str, Goodput]:
    """Where the time of each training stage went."""
    stages = (stage for stage in ("sft", "train") if stage in job.config.stages)
    found = {stage: goodput(job.folder(stage) / time_sheet.NAME) for stage in stages}
    return {stage: one for stage, one in found.items() if one is not None}


def skews(job: Job) -> dict[str, host_skew.Summary]:
    """Skew between the processes of each training stage; empty for a job of one process."""
    stages = (stage for stage in ("sft", "train") if stage in job.config.stages)
    found = {stage: host_skew.summary(read_metrics(job.folder(stage) / METRICS)) for stage in stages}
    return {stage: one for stage, one in found.items() if one is not None}


def starts(job: Job) -> dict[str, list[dict[str, Any]]]:
    """The starts of each finished stage that has them on record."""
    finished = [stage for stage in job.config.stages if read_manifest(job.folder(stage)) is not None]
    found = {stage: provenance.starts(job.folder(stage)) for stage in finished}
    return {stage: several for stage, several in found.items() if several}
