"""The programs of an on-policy iteration, which all run on the mesh of training; lowered from shapes alone.

They have the names of the programs that they stand in for when a run has stored completions.
"""

from jax.sharding import Mesh

from qrpo_jax.devices.dtypes import FLOATS
from qrpo_jax.job import programs
from qrpo_jax.job.job import Job
from qrpo_jax.job.programs import Described, Programs, abstract_batch, row_tokens
from qrpo_jax.job.trainer import stage_layout
from qrpo_jax.job.training_room import copied_layout, training_room
from qrpo_jax.model import flops, lora, value_head
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.model.flops import causal_pairs
from qrpo_jax.on_policy.token_log_probs import jitted_token_log_probs
from qrpo_jax.training.state import parameter_layout


def rollout(job: Job, mesh: Mesh, prompts: int) -> Described:
    """The sampler of rollouts, with a copy of the weights for decoding if there is one."""
    room = training_room(job, mesh)
    layout = value_head.split(policy_layout(job, mesh))[0]
    return programs.sampler(job, job.config.rollout, "policy", room, layout, copied_layout(job, room.mesh), prompts)


def log_probs(job: Job, mesh: Mesh, rows: int) -> Described:
    """Log-probs of the tokens of so many packed rows, of the policy."""
    settings, length = job.shape.settings, row_tokens(job)
    pairs = causal_pairs(rows, length, settings.sliding_window)
    return Described(
        jitted_token_log_probs(job, "policy", mesh).lower(policy_layout(job, mesh), abstract_batch(job, mesh, rows)),
        rows,
        length,
        rows * length,
        flops.forward_flops(settings, rows * length, pairs),
    )


def policy_layout(job: Job, mesh: Mesh) -> Parameters:
    """Shapes, types and shardings of the policy while it trains, with the value head if there is one."""
    trained = stage_layout(job, "train", mesh)
    if job.shape.lora is None:
        return trained
    base = parameter_layout(mesh, job.shape.settings, FLOATS[job.config.model.parameter_dtype])
    return lora.join(base, trained)


PROGRAMS: Programs = {
    "train": programs.train,
    "reference": log_probs,
    "sample": rollout,
}
