"""Checks of the config sections that several stages share: model, mesh, prompts, rows, adapters, logs."""

import importlib.util

from qrpo_jax.devices.mesh import parameter_shardings
from qrpo_jax.errors import UserError, located
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.hugging_face.config import read_settings
from qrpo_jax.job import local_disk
from qrpo_jax.job.bounds import check_least
from qrpo_jax.job.job import Job
from qrpo_jax.job.listed_prompts import check_listed_prompts
from qrpo_jax.job.prompts import check_prompts
from qrpo_jax.job.source_check import check_source
from qrpo_jax.job.stage import needs_weights
from qrpo_jax.model import decoder
from qrpo_jax.training.profile import parse_profile


def check(job: Job) -> None:
    """Refuses shared settings with which no stage can run. Opens the model folder, but reads no weights, only headers.

    Raises:
      UserError: naming the key.
    """
    config = job.config
    check_source(config)
    check_model(job)
    if needs_data(job):
        check_prompts(job)
        check_listed_prompts(job)
    check_packing(job)
    local_disk.check(job)
    with located(profile="log.profile"):
        parse_profile(config.log.profile, job.workdir)
    if config.log.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError("config.log.wandb is set, but wandb is not installed: pip install -e '.[wandb]', or unset it")


def needs_data(job: Job) -> bool:
    """Whether a stage of the job uses prompts and parameters, and not the shape of the model alone."""
    return any(job.stages[name].needs_data for name in job.config.stages)


def check_model(job: Job) -> None:
    """Refuses a model that cannot be opened, or that the mesh cannot split.

    Raises:
      UserError: naming the key.
    """
    config = job.config
    job.compute(job.mesh)
    if needs_data(job) and "sft" not in config.stages and not config.model.path:
        raise UserError("no model to start from: set config.model.path, or put 'sft' first in config.stages")
    if needs_data(job) and config.lora.rank and "train" not in config.stages:
        raise UserError("lora.rank is set, but only stage 'train' has adapters: add it to config.stages, or set 0")
    if needs_data(job) and config.model.path:
        with located("model.path", template="model.template"):
            weights = needs_weights(config, job.stages)
            settings = (model_folder.check_folder if weights else read_settings)(job.model_folder.folder)
            model_folder.check_vocabulary(settings, job.text)
    settings = job.shape.settings
    shapes = decoder.abstract_parameters(settings)
    with located("mesh"):
        # Adapters are split along the same axes and need no check.
        parameter_shardings(job.mesh, decoder.logical_axes(settings), shapes)


def check_packing(job: Job) -> None:
    """Refuses packed rows that are too short for a completion, and completions too long for the model.

    Raises:
      UserError: naming the key.
    """
    config, positions = job.config, job.shape.settings.max_positions
    pack = config.pack
    if pack.row_tokens:
        check_least(config, {"pack.row_tokens": pack.max_tokens})
    if pack.slots % 2:
        raise UserError(f"pack.slots is {pack.slots}; pairs need an even number (config.pack.slots)")
    if pack.max_tokens > positions:
        raise UserError(
            f"pack.max_tokens is {pack.max_tokens}, the model was made for {positions} positions; "
            "lower config.pack.max_tokens"
        )
