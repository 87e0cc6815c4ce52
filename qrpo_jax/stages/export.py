"""Stage `export`: the trained policy as a Hugging Face folder that other tools load."""

from typing import Any

from qrpo_jax import hugging_face
from qrpo_jax.job import Job


def run(job: Job) -> dict[str, Any]:
    folder = job.folder("export") / "model"
    # Renamed into place when complete, so a folder that is there was made before this start.
    if not folder.exists():
        parameters = job.trained_parameters("train", job.mesh)
        hugging_face.save(folder, job.policy.settings, parameters, job.policy.text, dtype=job.config.export.dtype)
    job.say(f"export: {folder}")
    return {"model": "model"}
