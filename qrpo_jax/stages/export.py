"""Stage `export`: the trained policy as a Hugging Face folder that other tools load."""

from typing import Any

import jax
from jax.experimental import multihost_utils

from qrpo_jax import hugging_face
from qrpo_jax.job import Job


def run(job: Job) -> dict[str, Any]:
    folder = job.folder("export") / "model"
    parameters = job.trained_parameters("train", job.mesh)
    if jax.process_count() > 1:
        parameters = multihost_utils.process_allgather(parameters, tiled=True)
    if jax.process_index() == 0 and not (folder / "config.json").exists():
        hugging_face.save(folder, job.policy.settings, parameters, job.policy.text, dtype=job.config.export.dtype)
    job.say(f"export: {folder}")
    return {"model": "model"}
