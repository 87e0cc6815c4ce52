"""The devices that compute a unit of work together: as few as the models fit on, so that each reads its own copy.

Training splits parameters over all devices and gathers them layer by layer, which costs little beside the products of
thousands of tokens. A step of the sampler has a few tokens, so it would do nothing but gather.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from qrpo_jax.devices.capacity import bytes_per_device, device_bytes
from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.errors import UserError
from qrpo_jax.model.decoder import DecoderSettings
from qrpo_jax.training.state import parameter_layout

SHARE = 0.5  # of a device's memory, for parameters; the rest is for caches and programs
UNITS = "auto", "process", "all"  # config.mesh.units


class Model(NamedTuple):
    """Parameters that a stage holds.

    Attributes:
      dtype: of parameters.
      name: for messages.
    """

    settings: DecoderSettings
    dtype: Any
    name: str


class UnitMesh(NamedTuple):
    """A mesh, and why it was chosen.

    Attributes:
      mesh: of the devices of one process, or of all.
      reason: of the choice; "" if there is nothing to say.
    """

    mesh: Mesh
    reason: str


def choose(models: Sequence[Model], whole: Mesh, units: str) -> UnitMesh:
    """The mesh of a process's own devices if the models fit there, else that of all processes.

    A process's devices split the models along heads into as few parts as fit, because each part is one copy less of
    the models, and copies work on different rows. Rows are split along their length as in training.

    Args:
      models: that are in memory together.
      whole: the mesh of all processes, at hand or of a topology.
      units: one of `UNITS`; "process" and "all" leave the choice between processes to the user.

    Raises:
      UserError: "process", and the models do not fit on a process's devices; about "units".
    """
    own = (whole.local_devices or list(whole.devices.flat))[0].process_index
    local = [device for device in whole.devices.flat if device.process_index == own]
    alone = len(local) == whole.devices.size
    names = " and ".join(dict.fromkeys(model.name for model in models))
    if units != "all":
        context = whole.shape["context"]
        for ways in (ways for ways in range(1, len(local) + 1) if len(local) % (ways * context) == 0):
            mesh = make_mesh(-1, 1, ways, context, devices=sorted(local, key=lambda device: device.id))
            if _fits(models, mesh):
                if alone and mesh.shape == whole.shape:
                    return UnitMesh(whole, "")
                return UnitMesh(mesh, f"{names} split over {ways} devices of each process" if ways > 1 else "")
    if units == "process":
        raise UserError(f"units is 'process', and {names} do not fit on the devices of one process", about="units")
    asked = "as config.mesh.units asks" if units == "all" else "too large for the devices of one process"
    if alone:
        return UnitMesh(whole, "")
    return UnitMesh(whole, f"all processes work on each unit together: {names}, {asked}")


def _fits(models: Sequence[Model], mesh: Mesh) -> bool:
    """Whether the mesh can split the models, and holds them."""
    try:
        layouts = [parameter_layout(mesh, model.settings, model.dtype) for model in models]
    except UserError:
        return False
    return sum(map(bytes_per_device, layouts)) <= SHARE * device_bytes(mesh)
