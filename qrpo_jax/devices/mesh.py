"""The device mesh and the one table that maps logical axes to mesh axes."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

# Parameters are split over `fsdp` along the model dimension and over `tensor` along heads, feed-forward and
# vocabulary; rows of a batch are split over both data-parallel axes.
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
    """A mesh over `devices` (default: all); exactly one size may be -1 and takes what is left."""
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    known = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise ValueError(f"mesh sizes {sizes}: each must be at least 1, one of them may be -1 (config.mesh)")
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // known)
    if int(np.prod(sizes)) != len(devices):
        named = ", ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))
        raise ValueError(f"mesh {named} needs {int(np.prod(sizes))} devices, there are {len(devices)} (config.mesh)")
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    return PartitionSpec(*(LOGICAL[axis] if axis is not None else None for axis in axes))


def parameter_shardings(mesh: Mesh, axes: Any, shapes: Any) -> Any:
    """Shardings for a tree of parameters, given their logical axes and shapes.

    Raises:
      ValueError: a dimension is not a multiple of the mesh axis that would split it.
    """

    def one(names: tuple[str, ...], shape: Any) -> NamedSharding:
        for name, size in zip(names, shape.shape, strict=True):
            ways = axis_size(mesh, name)
            if size % ways:
                raise ValueError(f"{name} of size {size} cannot be split {ways} ways over the mesh (config.mesh)")
        return NamedSharding(mesh, spec(names))

    return jax.tree.map(one, axes, shapes, is_leaf=lambda x: isinstance(x, tuple))


def row_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, spec(("rows",)))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def axis_size(mesh: Mesh, logical: str) -> int:
    """Into how many parts the mesh splits a logical axis."""
    named = LOGICAL[logical]
    names = (named,) if isinstance(named, str) else named or ()
    return int(np.prod([mesh.shape[n] for n in names], dtype=int))


def round_up(count: int, multiple: int) -> int:
    """The smallest multiple that is at least `count`.

    >>> round_up(13, 8), round_up(16, 8)
    (16, 16)
    """
    return -(-count // multiple) * multiple


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Puts host arrays, whole on every process, onto the mesh; each process uploads only its devices' part."""

    def one(array: Any) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    # JAX counts these uploads as implicit; they are meant, so a transfer guard lets them pass.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(one, tree)


def gather(array: jax.Array) -> np.ndarray:
    """An array as a whole on the host. Of one that lies on several processes, all must ask at the same time."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        sharding: Any = array.sharding  # what lies on several processes lies on a mesh
        array = jax.jit(lambda x: x, out_shardings=replicated(sharding.mesh))(array)
        return np.asarray(array.addressable_data(0))
    return np.asarray(array)
