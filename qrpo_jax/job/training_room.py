"""Where the policy is sampled while it trains: on all devices of training, from a copy of its weights for decoding."""

import math

from jax.sharding import Mesh

from qrpo_jax.devices.capacity import bytes_per_device
from qrpo_jax.devices.dtypes import FLOATS
from qrpo_jax.devices.mesh import AXES, axis_size, regrouped
from qrpo_jax.errors import UserError, located
from qrpo_jax.job.job import Job
from qrpo_jax.job.memory import Room, between_steps, free_bytes
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.training.state import forward_layout, parameter_layout

AUTO, TRAINING = "auto", "training"
SHARE = 0.5  # of the free memory, that a copy chosen by itself may take; caches have the rest


def training_room(job: Job, mesh: Mesh | None = None) -> Room:
    """The room of samplers that take the parameters which are trained.

    Args:
      mesh: by default that of training.

    Raises:
      UserError: `mesh.decoding` does not go with the mesh or the model.
    """
    mesh = mesh or job.mesh
    as_it_lies = Room(mesh, between_steps(job, "train", mesh))
    wanted = job.config.mesh.decoding
    if wanted == TRAINING or wanted == AUTO and not gains(job, mesh):
        return as_it_lies
    if wanted != AUTO:
        with located(tensor="mesh.decoding", mesh="mesh.decoding"):
            return with_copy(job, as_it_lies, wanted)
    most = SHARE * free_bytes(as_it_lies)
    for tensor in group_sizes(mesh):
        try:
            room = with_copy(job, as_it_lies, tensor)
        except UserError:  # heads or vocabulary cannot be split so many ways
            break
        if room.held - as_it_lies.held <= most:
            return room
    return as_it_lies


def gains(job: Job, mesh: Mesh) -> bool:
    """Whether decoding would gather or convert weights for each token."""
    model = job.config.model
    return axis_size(mesh, "embed") > 1 or FLOATS[model.parameter_dtype] != FLOATS[model.compute_dtype]


def group_sizes(mesh: Mesh) -> list[int]:
    """How many devices may share a copy, from few to many: multiples of `tensor`."""
    ways, tensor = math.prod(mesh.shape[axis] for axis in AXES[2:]), mesh.shape["tensor"]
    return [tensor * n for n in range(1, ways // tensor + 1) if ways // tensor % n == 0]


def with_copy(job: Job, room: Room, tensor: int) -> Room:
    """The room with a copy of the weights in each group of so many devices.

    Raises:
      UserError: about "tensor" or "mesh": the devices or the model cannot be split so.
    """
    mesh = regrouped(room.mesh, tensor)
    return Room(mesh, room.held + bytes_per_device(copied_layout(job, mesh)), room.mesh)


def copied_layout(job: Job, mesh: Mesh) -> Parameters:
    """Shapes, types and shardings of the copy, on the mesh that decodes.

    Raises:
      UserError: about "mesh": the model cannot be split so.
    """
    without_fsdp = Mesh(mesh.devices.reshape(-1, mesh.shape["tensor"])[:, None, None, :, None], AXES)
    model = job.config.model
    layout = parameter_layout(without_fsdp, job.shape.settings, FLOATS[model.parameter_dtype])
    return forward_layout(layout, FLOATS[model.compute_dtype])
