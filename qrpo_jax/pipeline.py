"""The stages of a job, run in order: complete ones are skipped, changed settings are refused."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

from qrpo_jax import manifest
from qrpo_jax.checks import check
from qrpo_jax.job import Job
from qrpo_jax.stages import evaluate, export, reference, report, sample, score, sft, train

STAGES: dict[str, Callable[[Job], dict[str, Any] | None]] = {
    "sft": sft.run,
    "sample": sample.run,
    "score": score.run,
    "reference": reference.run,
    "train": train.run,
    "evaluate": evaluate.run,
    "report": report.run,
    "export": export.run,
}

# The sections a stage's output depends on, besides those of the stages before it. The mesh and the log are
# not among them: a run may go on with other devices.
SECTIONS = {
    "sft": ("model", "prompts", "pack", "sft"),
    "sample": ("model", "prompts", "sample"),
    "score": ("reward",),
    "reference": ("pack", "reference"),
    "train": ("pack", "select", "train"),
    "evaluate": ("evaluate",),
    "report": ("report",),
    "export": ("export",),
}


def settings(config: Any, stage: str) -> dict[str, Any]:
    """The settings that decide what a stage makes: its own and those of all stages before it."""
    upto = config.stages[: config.stages.index(stage) + 1]
    sections = {name: config[name].to_dict() for s in upto for name in SECTIONS[s]}
    return manifest.flatten({"seed": config.seed, "stages": list(upto)} | sections)


def run(job: Job) -> bool:
    """Runs what is not complete yet; returns whether everything is.

    Raises:
      ValueError: a user's mistake, found before anything was compiled or written.
    """
    check(job)
    for stage in job.config.stages:
        manifest.check_settings(job.folder(stage), settings(job.config, stage))
    for stage in job.config.stages:
        folder = job.folder(stage)
        if manifest.read_manifest(folder) is not None:
            job.say(f"{stage}: complete, skipped")
            continue
        if jax.process_index() == 0:
            manifest.begin(folder, settings(job.config, stage))
        made = STAGES[stage](job)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"stage {stage}")
        if made is None:
            return False
        if jax.process_index() == 0:
            manifest.complete(folder, made)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"manifest {stage}")
    return True
