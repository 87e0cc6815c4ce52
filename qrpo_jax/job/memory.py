"""Memory of a job before anything runs: what its stages hold at least, and how many prompts are sampled from at a time.

What a stage holds is exact, from shapes alone. What its programs need besides is known once they are compiled, which
happens when the stage starts (`devices.program.checked`).
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from qrpo_jax.data.row_cost import layer_numbers
from qrpo_jax.devices.capacity import device_bytes
from qrpo_jax.devices.dtypes import FLOATS
from qrpo_jax.devices.mesh import axis_size, platform_of, round_up
from qrpo_jax.errors import UserError
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.trainer import configured_optimizer
from qrpo_jax.training.state import Trainable, parameter_layout

# Of a device's memory, what parameters and the programs of a stage may take; the rest is for what estimates leave out,
# and on a CPU for everything else that runs on the machine.
SHARE = {"cpu": 0.5}
ACCELERATOR_SHARE = 0.8
WIDTH = 16  # prompts are padded to a multiple of this, which limits the number of widths to compile


def check(job: Job) -> None:
    """Refuses stages whose parameters and optimizer state alone are more than a device can hold.

    Raises:
      UserError: naming the stage, both sizes and keys that change them.
    """
    capacity = device_bytes(job.mesh)
    for stage in job.config.stages:
        held = held_bytes(job, stage)
        if held <= capacity or read_manifest(job.folder(stage)) is not None:
            continue
        keys = ["mesh.fsdp", "model.parameter_dtype"] + (["lora.rank"] if stage == "train" else [])
        if platform_of(job.mesh) == "cpu":
            keys[0] = "mesh.cpu_devices"
        raise UserError(
            f"stage {stage!r} holds {held / 1e9:.1f} GB on each of {job.mesh.devices.size} devices, before it computes "
            f"anything; a device has {capacity / 1e9:.1f} GB: change {' or '.join(f'config.{key}' for key in keys)}"
        )


def held_bytes(job: Job, stage: str) -> float:
    """Bytes on one device: of parameters, and in training of gradients and the optimizer's state."""
    dtype = FLOATS[job.config.model.parameter_dtype]
    settings, lora = job.shape.settings, job.shape.lora if stage == "train" else None
    if stage in ("sft", "train"):
        optimizer, _ = configured_optimizer(job.config, stage, steps=1)
        layout = parameter_layout(job.mesh, settings, dtype if lora is None else np.float32, lora)
        state = Trainable(layout, optimizer, dict, job.config.seed).abstract()
        frozen = {} if lora is None else parameter_layout(job.mesh, settings, dtype)
        return _bytes(state) + _bytes(layout) + _bytes(frozen)
    if stage in ("sample", "reference", "evaluate"):
        return _bytes(parameter_layout(job.mesh, settings, dtype))
    return 0.0


def _bytes(tree: Any) -> float:
    """Bytes of a tree of shapes on one device."""
    leaves = jax.tree.leaves(tree)
    numbers = [(leaf, math.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in leaves]
    # Keys of random numbers have a type of their own, and no size to speak of.
    return float(sum(np.dtype(leaf.dtype).itemsize * n for leaf, n in numbers if _is_plain(leaf)))


def _is_plain(leaf: Any) -> bool:
    return not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)


def prompts_at_once(job: Job, section: Any, mesh: Mesh) -> int:
    """Prompts of a unit that are sampled from at a time: all of them, or as many as memory allows.

    This changes no draw, because each prompt has its own random numbers.

    Args:
      section: of the config, with completions and max_new_tokens.
      mesh: where the sampler runs.
    """
    rows = axis_size(mesh, "rows")
    share = SHARE.get(platform_of(mesh), ACCELERATOR_SHARE)
    dtype = FLOATS[job.config.model.parameter_dtype]
    free = share * device_bytes(mesh) - _bytes(parameter_layout(mesh, job.shape.settings, dtype))
    split = rows * axis_size(mesh, "heads")  # rows of a unit over devices, and the cache of a row over its heads
    most = max(0.0, free) * split / prompt_bytes(job, section)
    count = round_up(job.config.prompts.unit, rows)
    while count > max(most, rows):
        count = round_up(-(-count // 2), rows) if count > 2 * rows else rows
    return count


def prompt_bytes(job: Job, section: Any) -> float:
    """Bytes that sampling needs for a prompt and its completions: compiled for a CPU 0.24 to 0.83 of it were used."""
    settings, n = job.shape.settings, section.completions
    size = np.dtype(FLOATS[job.config.model.compute_dtype]).itemsize
    length = round_up(job.config.prompts.max_tokens, WIDTH)
    cache = 2 * settings.layers * settings.kv_heads * settings.head_dim * (length + n * section.max_new_tokens) * size
    logits = 4 * n * settings.vocab_size * 4  # and their exponentials, random numbers, and a sorted copy
    prefill = length * layer_numbers(settings)["none"] * size + 2 * settings.heads * length**2 * 4
    return float(cache + logits + prefill)
