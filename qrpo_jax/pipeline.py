"""The stages of a job, run in order: complete ones are skipped, changed settings are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from qrpo_jax.data.sources import SOURCES
from qrpo_jax.job import manifest
from qrpo_jax.job.checks import check
from qrpo_jax.job.job import Job
from qrpo_jax.stages import compare_transforms, evaluate, export, reference, report, sample, score, sft, train

STAGES: dict[str, Callable[[Job], dict[str, Any] | None]] = {
    "sft": sft.run,
    "sample": sample.run,
    "score": score.run,
    "reference": reference.run,
    "train": train.run,
    "evaluate": evaluate.run,
    "report": report.run,
    "export": export.run,
    "compare_transforms": compare_transforms.run,
}

# The sections a stage's output depends on, besides those of the stages before it. The mesh and the log are
# not among them: a run may go on with other devices.
SECTIONS = {
    "sft": ("model", "prompts", "pack", "sft"),
    "sample": ("model", "prompts", "sample"),
    "score": ("reward",),
    "reference": ("pack", "reference"),
    "train": ("pack", "reference", "select", "lora", "train"),
    "evaluate": ("reference", "reward", "evaluate"),
    "report": ("report",),
    "export": ("export",),
    "compare_transforms": ("compare_transforms",),
}
# Keys of those sections that say how the machine is used and not what is made.
MACHINE = {
    "reward.workers",
    "reward.batch_rows",
    "reference.batch_rows",
    "sft.checkpoint_every",
    "train.checkpoint_every",
}
SHARDABLE = ("sample", "score", "reference", "evaluate")


def settings(config: Any, stage: str) -> dict[str, Any]:
    """What decides what a stage makes: its own settings and files, and those of all stages before it."""
    upto = config.stages[: config.stages.index(stage) + 1]
    sections = {name: config[name].to_dict() for s in upto for name in SECTIONS[s]}
    flat = manifest.flatten({"seed": config.seed, "stages": list(upto)} | sections)
    flat = {key: value for key, value in flat.items() if key not in MACHINE}
    if "prompts" in sections and SOURCES[config.prompts.source].listed:
        flat["prompts.path sha256"] = manifest.sha256(Path(config.prompts.path))
    for section in ("model", "reward"):
        if section in sections and config[section].path:
            folder = Path(config[section].path)
            flat[f"{section}.path config sha256"] = manifest.sha256(folder / "config.json")
            flat[f"{section}.path weight bytes"] = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return flat


def run(job: Job) -> bool:
    """Runs what is not complete yet; returns whether everything is.

    Raises:
      ValueError: a user's mistake, found before anything was compiled or written.
    """
    check(job)
    for stage in job.config.stages:
        manifest.check_settings(job.folder(stage), settings(job.config, stage))
    wait("settings checked")
    for stage in job.config.stages:
        folder = job.folder(stage)
        if manifest.read_manifest(folder) is not None:
            job.say(f"{stage}: complete, skipped")
            continue
        if job.shard.count > 1 and jax.process_count() == 1 and stage not in SHARDABLE:
            job.say(f"{stage}: does not split into shards; run without --shard to make it")
            return False
        if jax.process_index() == 0:
            manifest.begin(folder, settings(job.config, stage))
        wait(f"{stage} begun")
        made = STAGES[stage](job)
        wait(f"{stage} run")
        if made is None:
            return False
        if jax.process_index() == 0:
            manifest.complete(folder, made)
        wait(f"{stage} complete")
    return True


def wait(point: str) -> None:
    """Lets no process of several pass before all are there."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(point)
