"""The device mesh, and the table that maps logical axes of arrays to axes of the mesh."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qrpo_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

# Parameters are split over `fsdp` along the model dimension, and over `tensor` along heads, feed-forward and
# vocabulary. Rows of a batch are split over `data` and `fsdp`.
LOGICAL: dict[str, str | tuple[str, ...] | None] = {
    "rows": ("data", "fsdp"),
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "feed_forward": "tensor",
    "vocab": "tensor",
    "head_dim": None,
    "scalar": None,
    "rank": None,
    "layers": None,
}


def make_mesh(data: int, fsdp: int, tensor: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (default: all).

    Args:
      data, fsdp, tensor: sizes of the axes. One of them may be -1: it is chosen so that all devices are used.

    Raises:
      UserError: sizes that are not allowed or do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    fixed = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise UserError(f"mesh sizes {sizes}: each must be at least 1, one of them may be -1", about="mesh")
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // fixed)
    if int(np.prod(sizes)) != len(devices):
        named = ", ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))
        message = f"mesh {named} needs {int(np.prod(sizes))} devices, there are {len(devices)}"
        raise UserError(message, about="mesh")
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The partition of an array with these logical axes; None is an axis that is not split."""
    return PartitionSpec(*(LOGICAL[axis] if axis is not None else None for axis in axes))


def parameter_shardings(mesh: Mesh, axes: Any, shapes: Any) -> Any:
    """Shardings of a tree of parameters.

    Args:
      axes: the same tree with a tuple of logical axes for each parameter.
      shapes: the same tree with something that has a `shape` for each parameter.

    Raises:
      UserError: a dimension is not a multiple of the mesh axis that would split it.
    """

    def sharding(names: tuple[str, ...], shape: Any) -> NamedSharding:
        for name, size in zip(names, shape.shape, strict=True):
            ways = axis_size(mesh, name)
            if size % ways:
                raise UserError(f"{name} of size {size} cannot be split {ways} ways over the mesh", about="mesh")
        return NamedSharding(mesh, spec(names))

    return jax.tree.map(sharding, axes, shapes, is_leaf=lambda x: isinstance(x, tuple))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first axis, the rows of a batch."""
    return NamedSharding(mesh, spec(("rows",)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def axis_size(mesh: Mesh, logical: str) -> int:
    """Into how many parts the mesh splits a logical axis."""
    axes = LOGICAL[logical]
    names = (axes,) if isinstance(axes, str) else axes or ()
    return int(np.prod([mesh.shape[name] for name in names], dtype=int))


def round_up(count: int, multiple: int) -> int:
    """The smallest multiple that is at least `count`.

    >>> round_up(13, 8), round_up(16, 8)
    (16, 16)
    """
    return -(-count // multiple) * multiple


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Puts a tree of host arrays onto the mesh.

    Every process passes the whole arrays and uploads only the part of its own devices.
    """

    def on_mesh(array: Any) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    # JAX counts these uploads as implicit; they are meant, so a transfer guard lets them pass.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(on_mesh, tree)


def gather(array: jax.Array) -> np.ndarray:
    """The whole array on the host. All processes must call this together if the array is spread over them."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        sharding: Any = array.sharding  # an array that is spread over processes has a mesh
        array = jax.jit(lambda x: x, out_shardings=replicated(sharding.mesh))(array)
        return np.asarray(array.addressable_data(0))
    return np.asarray(array)
