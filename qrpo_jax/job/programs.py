"""The programs of a job, lowered from shapes alone: nothing is allocated, and no weights or tokenizer are read."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from qrpo_jax.data.batch import Batch
from qrpo_jax.data.per_completion import NEUTRAL, PerCompletion
from qrpo_jax.data.per_token import NOTHING, PerToken
from qrpo_jax.devices.capacity import bytes_per_device
from qrpo_jax.devices.dtypes import FLOATS
from qrpo_jax.devices.mesh import axis_size, round_up, row_sharding
from qrpo_jax.job.chosen_objective import chosen_objective, reads_reference
from qrpo_jax.job.completions import jitted_sampler
from qrpo_jax.job.job import Job
from qrpo_jax.job.log_probs import jitted_log_probs
from qrpo_jax.job.memory import WIDTH, Room, cache_bytes, kept_bytes, slots_at_once, unit_room
from qrpo_jax.job.source_check import is_on_policy
from qrpo_jax.job.trainer import stage_trainable
from qrpo_jax.job.training_options import configured_objective, prediction
from qrpo_jax.model import flops
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.model.flops import Flops, causal_pairs
from qrpo_jax.model.layout import Layout
from qrpo_jax.sampling.queue import arrange
from qrpo_jax.training.fit import jitted
from qrpo_jax.training.state import parameter_layout
from qrpo_jax.training.step import make_step

SLOTS = 16  # completions of a row where the config leaves it open
NO_TOKEN = -1  # which token ends a completion does not change the program


class Described(NamedTuple):
    """A program before compilation, and what it computes.

    Attributes:
      lowered: a `jax.stages.Lowered`.
      rows: in one run: packed rows, or prompts.
      row_tokens: of a packed row, or of a prompt.
      tokens: that one run computes or samples.
      flops: that these need.
      read_bytes: that a device must read at least where it computes few tokens at a time; 0 where that does not matter.
    """

    lowered: Any
    rows: int
    row_tokens: int
    tokens: int
    flops: Flops
    read_bytes: float = 0.0


def train(job: Job, mesh: Mesh, rows: int) -> Described:
    """The step of stage `train` on so many packed rows, which are one sequence each when FLOPs are counted."""
    config, shape, settings = job.config.train, job.shape, job.log_prob_settings(mesh, backward=True)
    on_the_fly = config.reference_log_probs == "on_the_fly"
    trainable = stage_trainable(job, "train", mesh)
    step = make_step(
        shape.trained_graph,
        configured_objective(job),
        trainable.optimizer,
        log_prob_settings=settings,
        microbatches=config.microbatches or 1,
        predict=prediction(job) if chosen_objective(job).ranked else None,
        reference_graph=shape.graph if on_the_fly else None,
        has_reference=reads_reference(job),
    )
    frozen = {}
    if shape.lora is not None:
        frozen = parameter_layout(mesh, shape.settings, FLOATS[job.config.model.parameter_dtype])
    length = row_tokens(job)
    pairs = causal_pairs(rows, length, shape.settings.sliding_window)
    return Described(
        jitted(step, trainable).lower(trainable.abstract(), abstract_batch(job, mesh, rows), frozen),
        rows,
        length,
        rows * length,
        flops.step_flops(shape.settings, rows * length, pairs, lora=shape.lora, with_reference=on_the_fly),
    )


def reference(job: Job, mesh: Mesh, rows: int) -> Described:
    """The forward pass of stage `reference`: log-probs of so many packed rows' completions."""
    shape, length = job.shape, row_tokens(job)
    pairs = causal_pairs(rows, length, shape.settings.sliding_window)
    return Described(
        jitted_log_probs(job, mesh=mesh).lower(job.unit_layout(mesh), abstract_batch(job, mesh, rows)),
        rows,
        length,
        rows * length,
        flops.forward_flops(shape.settings, rows * length, pairs),
    )


def sample(job: Job, mesh: Mesh, prompts: int) -> Described:
    """The sampler of stage `sample`, for prompts and completions as long as the config allows."""
    layout = job.unit_layout(mesh)
    return sampler(job, job.config.sample, "reference", unit_room(job, mesh), layout, layout, prompts)


def sampler(
    job: Job, section: Any, side: str, room: Room, layout: Parameters, used: Parameters, prompts: int
) -> Described:
    """A sampler for prompts and completions as long as the config allows.

    Args:
      section, side, room: as in `jitted_sampler`.
      layout: of its parameters.
      used: of the policy's parameters as each step uses them.
    """
    shape, completions, new = job.shape, section.completions, section.max_new_tokens
    width = round_up(job.config.prompts.max_tokens, WIDTH)

    def array(dims: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=row_sharding(room.mesh))

    lowered = jitted_sampler(job, section, side, (NO_TOKEN,), room).lower(
        layout,
        array((prompts, width), jnp.int32),
        array((prompts,), jnp.int32),
        array((prompts, 2), jnp.uint32),
    )
    window, sampled = shape.settings.sliding_window, prompts * completions * new
    prompt, whole = causal_pairs(prompts, width, window), causal_pairs(prompts, width + new, window)
    later = flops.Pairs(*(completions * (a - b) for a, b in zip(whole, prompt, strict=True)))
    parts = (
        flops.forward_flops(shape.settings, prompts * width, prompt, targets=prompts),
        flops.forward_flops(shape.settings, sampled, later),
    )
    needed = Flops(*(sum(each) for each in zip(*parts, strict=True)))
    return Described(lowered, prompts, width, sampled, needed, sampler_bytes(job, section, room, used, prompts))


def sampler_bytes(job: Job, section: Any, room: Room, used: Parameters, prompts: int) -> float:
    """Bytes that a device reads in all steps of a sampler: each time the weights, prompts and completions so far.

    Args:
      used: as in `sampler`.
    """
    count, width = prompts // axis_size(room.mesh, "rows"), round_up(job.config.prompts.max_tokens, WIDTH)
    groups, each = arrange(slots_at_once(job, section, room), count, section.completions)
    weights = bytes_per_device(used)
    if not job.shape.settings.tie_embeddings:  # of the embedding a step reads few rows
        weights -= bytes_per_device(used["embedding"])
    caches = cache_bytes(job, groups * width) + groups * each * kept_bytes(job, section.max_new_tokens) / 2
    steps = decode_steps(job, section, room, prompts)
    return steps * (weights + caches / axis_size(room.mesh, "kv_heads"))


def decode_steps(job: Job, section: Any, room: Room, prompts: int) -> int:
    """Steps of a sampler when all completions are as long as they may be."""
    count = prompts // axis_size(room.mesh, "rows")
    groups, each = arrange(slots_at_once(job, section, room), count, section.completions)
    return int(-(-count // groups) * -(-section.completions // each) * section.max_new_tokens)


Programs = Mapping[str, Callable[[Job, Mesh, int], Described]]
PROGRAMS: Programs = {"train": train, "reference": reference, "sample": sample}


def row_multiple(job: Job, mesh: Mesh, name: str) -> int:
    """Rows or prompts of a program are a multiple of this, so that each device has as many as the others."""
    microbatches = job.config.train.microbatches if name == "train" else 0
    return axis_size(mesh, "rows") * (microbatches or 1)


def row_tokens(job: Job) -> int:
    """L: what the config says, or the longest completion with its prompt where rows are planned from data."""
    return job.config.pack.row_tokens or job.config.pack.max_tokens


def abstract_batch(job: Job, mesh: Mesh, rows: int) -> Batch:
    """Shapes, types and shardings of a batch."""
    sharding: NamedSharding = row_sharding(mesh)
    tokens = jax.ShapeDtypeStruct((rows, row_tokens(job)), jnp.int32, sharding=sharding)

    def slots(dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, job.config.pack.slots or SLOTS), dtype, sharding=sharding)

    numbers = jax.ShapeDtypeStruct(tokens.shape, jnp.float32, sharding=sharding)
    return Batch(
        tokens_BxL=tokens,
        layout=Layout(tokens, tokens, tokens),
        targets_BxL=tokens,
        present_BxS=slots(np.bool_),
        example_BxS=slots(np.int32),
        completions_BxS=PerCompletion(*(slots(np.asarray(value).dtype) for value in NEUTRAL)),
        per_token_BxL=PerToken(*(numbers for _ in NOTHING)) if is_on_policy(job.config) else None,
    )
