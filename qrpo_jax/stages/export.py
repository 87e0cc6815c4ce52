"""Stage `export`: the trained policy as a Hugging Face folder for other tools, or its adapters as one for PEFT."""

from pathlib import Path
from typing import Any

import jax

from qrpo_jax.devices.mesh import gather
from qrpo_jax.hugging_face import adapter_folder, model_folder
from qrpo_jax.job.job import DTYPES, Job
from qrpo_jax.model import lora
from qrpo_jax.model.decoder import Parameters

FORMS = ("merged", "peft")


def run(job: Job) -> dict[str, Any]:
    if job.config.export.adapter == "peft":
        return export_adapter(job)
    folder = job.folder("export") / "model"
    # Renamed into place when complete, so a folder that is there was made before this start.
    if not folder.exists():
        parameters, path = merged_parameters(job), job.config.model.path
        generation = model_folder.generation_settings(Path(path)) if path else {}
        policy, dtype = job.policy, job.config.export.dtype
        model_folder.save(folder, policy.settings, parameters, policy.text, dtype=dtype, generation=generation)
    job.say(f"export: {folder}")
    return {"model": "model"}


def merged_parameters(job: Job) -> Parameters:
    """What `train` left, its adapters merged into their base where it trained such."""
    trained, adapted = job.trained_parameters("train", job.mesh), job.policy.lora
    if adapted is None:
        return trained
    # The sum is rounded once, to what is written, and not to the type of the base before. Where the two are one type,
    # the sum takes the place of the base.
    dtype = DTYPES[job.config.export.dtype]
    donated = (0,) if job.config.model.parameter_dtype == job.config.export.dtype else ()
    merge = jax.jit(lambda base, adapters: lora.merge(base, adapters, adapted, dtype), donate_argnums=donated)
    return merge(job.reference_parameters(job.mesh), trained)


def export_adapter(job: Job) -> dict[str, Any]:
    """Leaves the folder `adapter`, for the model that config.model.path names."""
    folder, adapted = job.folder("export") / "adapter", job.policy.lora
    assert adapted is not None, "checked before anything ran"
    adapters = jax.tree.map(gather, job.trained_parameters("train", job.mesh))
    if jax.process_index() == 0 and not folder.exists():
        base, dtype = job.config.model.path, job.config.export.dtype
        adapter_folder.save(folder, job.policy.settings, adapted, adapters, base=base, dtype=dtype)
    job.say(f"export: {folder}")
    return {"adapter": "adapter"}
