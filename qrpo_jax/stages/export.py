"""Stage `export`: the policy, or the model after SFT, as a Hugging Face folder, or LoRA adapters as a PEFT folder."""

from pathlib import Path
from typing import Any

import jax

from qrpo_jax.devices.dtypes import FLOATS
from qrpo_jax.devices.mesh import gather_to
from qrpo_jax.devices.processes import everywhere, from_first, is_first, made_by_first
from qrpo_jax.errors import UserError, located
from qrpo_jax.evaluation import curve
from qrpo_jax.evaluation.halves import REPORTING
from qrpo_jax.files import is_complete
from qrpo_jax.hugging_face import adapter_folder, model_folder
from qrpo_jax.hugging_face.config import read_config
from qrpo_jax.hugging_face.publish import check_access, check_name, push
from qrpo_jax.hugging_face.text_part import layers_in
from qrpo_jax.job import card, results_file
from qrpo_jax.job.exported_step import check_exported_step, exported_stage, exported_step, stages_before
from qrpo_jax.job.job import Job
from qrpo_jax.job.kept_steps import BEST
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.model import lora
from qrpo_jax.model.decoder import Parameters


def run(job: Job) -> dict[str, Any]:
    if job.config.export.adapter == "peft":
        return export_adapter(job)
    folder = job.folder("export") / "model"
    # The folder appears when it is complete, so an existing one needs no second export after a kill. All processes
    # export or none; one that is late to see a new folder must not do so alone.
    if everywhere(not is_complete(folder)):
        parameters, path = merged_parameters(job), job.config.model.path
        generation = model_folder.generation_settings(job.model_folder.folder) if path else {}
        settings, dtype = job.shape.settings, job.config.export.dtype
        documents = card.documents(job, results_before(job))
        model_folder.save(
            folder, settings, parameters, job.text, dtype=dtype, generation=generation, documents=documents
        )
    job.say(f"export: {folder}")
    return {"model": "model"} | publish(job, folder)


def results_before(job: Job) -> dict[str, Any] | None:
    """What stages before it found of the exported policy; None if none of them evaluates it."""
    before, step = stages_before(job.config), exported_step(job)
    results = results_file.read(job, before)
    if step is None:
        return results or None
    return curve.results_of(results, step, REPORTING if job.config.export.checkpoint == BEST else "")


def publish(job: Job, folder: Path) -> dict[str, str]:
    """Uploads the exported folder if the config asks for that; returns the address of the commit by name."""
    config = job.config.export
    if not config.push_to_hub:
        return {}
    published = ""
    if is_first():
        published = push(folder, config.push_to_hub, private=config.private)
        job.say(f"export: published as {published}")
    return {"published": from_first(published)}


def merged_parameters(job: Job) -> Parameters:
    """The trained parameters, with adapters merged into their base."""
    if exported_stage(job.config) == "sft":
        return job.reference_parameters(job.mesh)
    trained, adapted = job.trained_parameters("train", job.mesh, exported_step(job)), job.shape.lora
    if adapted is None:
        return trained
    # The sum is rounded once, directly to the exported type. If that is also the type of the base, the sum replaces the
    # base in memory.
    dtype = FLOATS[job.config.export.dtype]
    donated = (0,) if job.config.model.parameter_dtype == job.config.export.dtype else ()
    merge = jax.jit(lambda base, adapters: lora.merge(base, adapters, adapted, dtype), donate_argnums=donated)
    return merge(job.reference_parameters(job.mesh), trained)


def export_adapter(job: Job) -> dict[str, Any]:
    """Writes the folder `adapter`, for the model that config.model.path names."""
    folder, adapted = job.folder("export") / "adapter", job.shape.lora
    assert adapted is not None, "check refuses adapters without LoRA"
    adapters = jax.tree.map(lambda x: gather_to(x, 0), job.trained_parameters("train", job.mesh, exported_step(job)))
    if is_first() and not is_complete(folder):
        found, dtype = job.model_folder, job.config.export.dtype
        base, revision = found.hub_id or job.config.model.path, found.commit
        layers, shape = layers_in(read_config(found.folder)), job.shape.settings
        names = {"base": base, "layers": layers, "revision": revision, "dtype": dtype}
        names |= {"documents": card.documents(job, results_before(job))}
        adapter_folder.save(folder, shape, adapted, adapters, **names)
    job.say(f"export: {folder}")
    return {"adapter": "adapter"} | publish(job, folder)


def check(job: Job) -> None:
    config = job.config
    check_exported_step(job)
    check_published(job)
    if config.export.adapter == "peft":
        if not config.lora.rank:
            raise UserError("export.adapter 'peft' needs LoRA (config.lora.rank); or set config.export.adapter=merged")
        if "sft" in config.stages or not config.model.path:
            raise UserError(
                "export.adapter 'peft' needs a base that is a model folder, and this base comes from stage 'sft': "
                "set config.export.adapter='merged', or config.model.path without 'sft' in config.stages"
            )
    with located("model", dtype="export.dtype"):
        model_folder.check_export(job.shape.settings, job.text, config.export.dtype)


def check_published(job: Job) -> None:
    """Refuses a name that no model can have, and a hub that cannot be written to, before anything runs.

    Raises:
      UserError: naming the key.
    """
    name = job.config.export.push_to_hub
    if not name:
        return
    with located("export.push_to_hub"):
        check_name(name)
        if read_manifest(job.folder("export")) is None:
            made_by_first(check_access)
