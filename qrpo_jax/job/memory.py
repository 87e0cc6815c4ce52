"""Memory of a job before anything runs: what its stages need at least, and how many prompts are sampled from at a time.

What a stage holds is exact, from shapes alone. What its programs need besides is estimated here for the smallest part
of its work, and known once they are compiled, which happens when the stage starts (`devices.program.checked`).
"""

from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from qrpo_jax.data.row_cost import layer_numbers, model_cost
from qrpo_jax.devices.capacity import bytes_per_device, device_bytes
from qrpo_jax.devices.dtypes import FLOATS
from qrpo_jax.devices.mesh import axis_size, platform_of, round_up
from qrpo_jax.errors import UserError
from qrpo_jax.job.chosen_objective import reads_reference
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.trainer import stage_layout, stage_trainable
from qrpo_jax.model.cache import ring_places, window_places
from qrpo_jax.model.decoder import parameter_count
from qrpo_jax.model.token_log_probs import CHUNK
from qrpo_jax.training.state import parameter_layout

TRAINING = "sft", "train"
# Of a device's memory, what parameters and the programs of a stage may take; the rest is for what estimates leave out,
# and on a CPU for everything else that runs on the machine.
SHARE = {"cpu": 0.5}
ACCELERATOR_SHARE = 0.8
ESTIMATE = 0.5  # compiled for an H200 and a CPU, programs needed 0.7 to 1.4 of what `token_bytes` says
# On a core of an Intel Xeon (2026-11-28) the stories model samples 440 tokens fastest with 8 to 16 slots, and 60 tokens
# with 64 and more: where a slot's cache is as large as its share of the weights, more slots cost as much as they do.
LEAST_SLOTS, MOST_SLOTS, WEIGHTS_OVER_CACHE = 16, 1024, 4
PREFILL_TOKENS = 8192  # of prompts that a device reads at a time: enough to keep its matrix units busy
WIDTH = 16  # prompts are padded to a multiple of this, which limits the number of widths to compile


class Room(NamedTuple):
    """Where completions are sampled.

    Attributes:
      mesh: the devices, as prompts and caches are split over them.
      held: bytes on one device that are taken all the while: parameters, a copy of them for decoding, and whatever else
        the stage holds.
      stored: the same devices as the parameters are split over them, if the sampler makes such a copy.
    """

    mesh: Mesh
    held: float
    stored: Mesh | None = None


def check(job: Job) -> None:
    """Refuses stages that need more than a device has even for the smallest part of their work.

    Raises:
      UserError: naming the stage, the sizes and keys that change them.
    """
    capacity = device_bytes(job.mesh)
    for stage in job.config.stages:
        mesh = mesh_of(job, stage)
        held, row = held_bytes(job, stage), row_bytes(job, stage)
        if held + row <= capacity or read_manifest(job.folder(stage)) is not None:
            continue
        on = f"on each of {mesh.devices.size} devices"
        if held > capacity:
            needs = f"stage {stage!r} holds {held / 1e9:.1f} GB {on}, before it computes anything"
            keys = ["mesh.fsdp", "model.parameter_dtype"] + (["lora.rank"] if stage == "train" else [])
        else:
            needs = (
                f"stage {stage!r} holds {held / 1e9:.1f} GB {on}, and one row needs at least {row / 1e9:.1f} GB more"
            )
            keys = ["mesh.fsdp", "mesh.context", "pack.row_tokens" if job.config.pack.row_tokens else "pack.max_tokens"]
            keys += ["model.remat"] if stage in TRAINING else []
        if platform_of(mesh) == "cpu":
            keys[0] = "mesh.cpu_devices"
        raise UserError(
            f"{needs}; a device has {capacity / 1e9:.1f} GB: change {' or '.join(f'config.{key}' for key in keys)}"
        )


def mesh_of(job: Job, stage: str) -> Mesh:
    """The devices that a stage runs on."""
    return job.mesh if stage in TRAINING else job.unit_mesh


def held_bytes(job: Job, stage: str) -> float:
    """Bytes on one device: of parameters, and in training of gradients and the optimizer's state."""
    mesh = mesh_of(job, stage)
    if stage in TRAINING:
        return between_steps(job, stage, mesh) + bytes_per_device(stage_layout(job, stage, mesh))
    if stage in ("sample", "reference", "evaluate") and job.stages[stage].needs_weights(job.config):
        return bytes_per_device(job.unit_layout(mesh))
    return 0.0


def between_steps(job: Job, stage: str, mesh: Mesh) -> float:
    """Bytes on one device that a training stage holds between two steps: all but gradients."""
    state = stage_trainable(job, stage, mesh).abstract()
    beside = 0.0
    if stage == "train" and job.shape.lora is not None:
        dtype = FLOATS[job.config.model.parameter_dtype]
        beside = bytes_per_device(parameter_layout(mesh, job.shape.settings, dtype))
    elif stage == "train" and reads_reference(job):
        beside = bytes_per_device(job.unit_layout(mesh))
    return bytes_per_device(state) + beside


def row_bytes(job: Job, stage: str) -> float:
    """Bytes on one device that the shortest packed row needs at least while it is computed."""
    if stage not in (*TRAINING, "reference", "evaluate"):
        return 0.0
    model, pack, mesh = job.config.model, job.config.pack, mesh_of(job, stage)
    cost = model_cost(
        job.shape.settings,
        bytes_per_number=np.dtype(FLOATS[model.compute_dtype]).itemsize,
        vocab_chunk=model.vocab_chunk or CHUNK,
        stored=model.remat if stage in TRAINING else None,
    )
    split = mesh.shape["context"] * mesh.shape["tensor"]
    return ESTIMATE * cost.token_bytes * (pack.row_tokens or pack.max_tokens) / split


def unit_room(job: Job, mesh: Mesh | None = None) -> Room:
    """Where stages sample units of work, which hold the weights as they are used.

    Args:
      mesh: by default the job's.
    """
    mesh = mesh or job.unit_mesh
    return Room(mesh, bytes_per_device(job.unit_layout(mesh)))


def prompts_at_once(job: Job, section: Any, room: Room, unit: int) -> int:
    """Prompts of a unit that are sampled from in one call: all of them, or as many as memory allows.

    This changes no draw, because each prompt has its own random numbers.

    Args:
      section: of the config, with completions and max_new_tokens.
      unit: prompts of a unit.
    """
    rows, heads = axis_size(room.mesh, "rows"), axis_size(room.mesh, "heads")
    taken = slots_at_once(job, section, room) * slot_bytes(job, section) + prefill_bytes(job)
    # Rows of a unit are split over devices, and the cache of a row over its heads.
    most = max(0.0, free_bytes(room) * heads - taken) * rows / prompt_bytes(job, section)
    count = round_up(unit, rows)
    while count > max(most, rows):
        count = round_up(-(-count // 2), rows) if count > 2 * rows else rows
    return count


def slots_at_once(job: Job, section: Any, room: Room) -> int:
    """Completions that a device decodes at a time: what the config says, or what its sizes say.

    A step reads all weights, also those that it gathers from other devices, and the cache of each slot. More slots
    share the weights, until caches are most of what is read; then they only wait for each other. They take a half of
    the free memory at most.
    """
    if section.slots:
        return int(section.slots)
    heads, each = axis_size(room.mesh, "heads"), slot_bytes(job, section)
    weights = parameter_count(job.shape.settings) * np.dtype(FLOATS[job.config.model.compute_dtype]).itemsize
    wanted = max(LEAST_SLOTS, WEIGHTS_OVER_CACHE * weights / kept_bytes(job, section.max_new_tokens))
    most = free_bytes(room) * heads / 2 / each
    return max(1, int(min(wanted, most, MOST_SLOTS)))


def free_bytes(room: Room) -> float:
    """Bytes of a device that sampling may take beside what is held."""
    share = SHARE.get(platform_of(room.mesh), ACCELERATOR_SHARE)
    return max(0.0, share * device_bytes(room.mesh) - room.held)


def cache_bytes(job: Job, tokens: int) -> float:
    """Bytes of the keys and values of so many tokens, in all layers."""
    return job.shape.settings.layers * tokens * layer_bytes(job)


def kept_bytes(job: Job, tokens: int) -> float:
    """Bytes of the keys and values of a completion of so many tokens: layers with a window keep no more than it."""
    settings = job.shape.settings
    window = tokens if settings.sliding_window is None else min(tokens, settings.sliding_window)
    return sum(window if slides else tokens for slides in settings.slides) * layer_bytes(job)


def layer_bytes(job: Job) -> float:
    """Bytes of the keys and values of a token in one layer."""
    settings, size = job.shape.settings, np.dtype(FLOATS[job.config.model.compute_dtype]).itemsize
    return float(2 * settings.kv_heads * settings.head_dim * size)


def slot_bytes(job: Job, section: Any) -> float:
    """Bytes that a slot needs while it is decoded: its cache and its prompt's, and logits.

    With their exponentials and a sorted copy, logits are there four times.
    """
    prompt = round_up(job.config.prompts.max_tokens, WIDTH)
    settings, new = job.shape.settings, section.max_new_tokens
    narrow = sum(settings.slides)
    places = (settings.layers - narrow) * ring_places(new) + narrow * window_places(settings.sliding_window, new)
    return places * layer_bytes(job) + cache_bytes(job, prompt) + 4 * settings.vocab_size * 4


def prompt_bytes(job: Job, section: Any) -> float:
    """Bytes that a prompt needs from when it is read until its completions have ended."""
    length = round_up(job.config.prompts.max_tokens, WIDTH)
    tokens = section.completions * section.max_new_tokens * 8  # with their log-probs
    return cache_bytes(job, length) + job.shape.settings.vocab_size * 4 + tokens


def prefill_bytes(job: Job) -> float:
    """Bytes that a device needs while it reads some prompts, or a piece of one.

    Attention may store scores of a block of queries for all keys, so they count as those of one piece. A prompt that is
    read in pieces has its keys and values there twice.
    """
    settings, size = job.shape.settings, np.dtype(FLOATS[job.config.model.compute_dtype]).itemsize
    length = round_up(job.config.prompts.max_tokens, WIDTH)
    again = cache_bytes(job, length) if length > PREFILL_TOKENS else 0
    scores = 2 * settings.heads * min(length, PREFILL_TOKENS) * length * 4
    return PREFILL_TOKENS * layer_numbers(settings)["none"] * size + scores + again
