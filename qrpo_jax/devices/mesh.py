"""The device mesh, and the one table that maps logical axes of arrays to axes of the mesh."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qrpo_jax.errors import UserError

AXES = ("replica", "data", "fsdp", "tensor", "context")

# Parameters are split over `fsdp` and `context` along the model dimension, and over `tensor` along heads, feed-forward
# and vocabulary. Activations are split by rows, and along a row over `context`. Between layers, where every token is
# computed alone, `tensor` splits rows further along their length. Embeddings are looked up where their part of the
# model dimension is stored, so by fewer splits of the rows. `replica` is the axis between slices, whose network is
# slow: only gradients cross it.
LOGICAL: dict[str, tuple[str, ...]] = {
    "embed": ("fsdp", "context"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "feed_forward": ("tensor",),
    "vocab": ("tensor",),
    "head_dim": (),
    "scalar": (),
    "rank": (),
    "layers": (),
    "rows": ("replica", "data", "fsdp"),
    "length": ("context",),
    "residual_length": ("context", "tensor"),
    "looked_up_rows": ("replica", "data"),
}


def make_mesh(
    data: int,
    fsdp: int,
    tensor: int,
    context: int = 1,
    replica: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh over `devices` (default: all), neighbours on the mesh being neighbours in the network.

    Args:
      data, fsdp, tensor, context: sizes of the axes. One of them may be -1: it is chosen so that all devices are used.
      replica: size of the axis between slices, a multiple of their number; 0 is their number, which is 1 outside
        multi-slice jobs.

    Raises:
      UserError: sizes that are not allowed or do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    sizes = [replica or slices, data, fsdp, tensor, context]
    fixed = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise UserError(f"mesh sizes {_named(sizes)}: each must be at least 1, one of them may be -1", about="mesh")
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // fixed)
    if int(np.prod(sizes)) != len(devices):
        message = f"mesh {_named(sizes)} needs {int(np.prod(sizes))} devices, there are {len(devices)}"
        raise UserError(message, about="mesh")
    if slices == 1:
        return Mesh(mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True), AXES)
    if sizes[0] % slices:
        raise UserError(f"mesh {_named(sizes)}: replica must be a multiple of the {slices} slices", about="mesh")
    within, between = [sizes[0] // slices, *sizes[1:]], [slices, 1, 1, 1, 1]
    return Mesh(mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True), AXES)


def regrouped(mesh: Mesh, tensor: int) -> Mesh:
    """The same devices in the same order, of which `tensor` neighbours share a copy of the parameters.

    All other devices of a slice split rows.

    Raises:
      UserError: about "tensor": groups of so many do not fill a slice.
    """
    replica, data, *inner = mesh.devices.shape
    ways = int(np.prod(inner))
    if ways % tensor:
        raise UserError(f"{tensor} devices a copy; fsdp, tensor and context together are {ways}", about="tensor")
    return Mesh(mesh.devices.reshape(replica, data, ways // tensor, tensor, 1), AXES)


def _named(sizes: Sequence[int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))


def spec(mesh: Mesh, axes: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
    """The partition of an array with these logical axes, without the mesh axes by which a size cannot be divided.

    Args:
      axes: names from `LOGICAL`; None is an axis that is not split.
    """

    def entry(axis: str | None, size: int) -> str | tuple[str, ...] | None:
        names: tuple[str, ...] = ()
        for name in LOGICAL[axis] if axis is not None else ():
            if size % _ways(mesh, (*names, name)) == 0:
                names += (name,)
        return names if len(names) > 1 else names[0] if names else None

    return PartitionSpec(*(entry(axis, size) for axis, size in zip(axes, shape, strict=True)))


def mesh_axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes in one entry of a partition."""
    return (entry,) if isinstance(entry, str) else entry or ()


def _ways(mesh: Mesh, names: Sequence[str]) -> int:
    return int(np.prod([mesh.shape[name] for name in names], dtype=int))


def parameter_shardings(mesh: Mesh, axes: Any, shapes: Any) -> Any:
    """Shardings of a tree of parameters.

    Args:
      axes: the same tree with a tuple of logical axes for each parameter.
      shapes: the same tree with something that has a `shape` for each parameter.

    Raises:
      UserError: a dimension is not a multiple of the mesh axis that would split it. `context` is left out of this: it
        is there to split rows, and splits parameters too where it can.
    """

    def sharding(names: tuple[str, ...], shape: Any) -> NamedSharding:
        for name, size in zip(names, shape.shape, strict=True):
            ways = _ways(mesh, [axis for axis in LOGICAL[name] if axis != "context"])
            if size % ways:
                raise UserError(f"{name} of size {size} cannot be split {ways} ways over the mesh", about="mesh")
        return NamedSharding(mesh, spec(mesh, names, shape.shape))

    return jax.tree.map(sharding, axes, shapes, is_leaf=lambda x: isinstance(x, tuple))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first axis, the rows of a batch."""
    return NamedSharding(mesh, PartitionSpec(LOGICAL["rows"]))


def row_parts(mesh: Mesh, devices: Sequence[jax.Device] | None = None) -> np.ndarray:
    """Which of the equal parts of a batch's rows these devices hold, each once, in ascending order.

    Args:
      devices: of the mesh; by default those of this process.
    """
    devices = mesh.local_devices if devices is None else devices
    held = row_sharding(mesh).devices_indices_map((axis_size(mesh, "rows"),))
    return np.unique([range(axis_size(mesh, "rows"))[held[device][0]][0] for device in devices])


def own_rows(mesh: Mesh, rows: int, devices: Sequence[jax.Device] | None = None) -> np.ndarray:
    """The rows of a batch that these devices hold, each once, in ascending order; they need not be neighbours.

    Args:
      rows: B, a multiple of the parts into which the mesh splits rows.
      devices: as in `row_parts`.
    """
    return np.arange(rows).reshape(axis_size(mesh, "rows"), -1)[row_parts(mesh, devices)].reshape(-1)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def axis_size(mesh: Mesh, logical: str) -> int:
    """The number of parts into which the mesh splits a logical axis."""
    return _ways(mesh, LOGICAL[logical])


def platform_of(mesh: Mesh) -> str:
    """ "cpu", "gpu" or "tpu"."""
    return "gpu" if mesh.devices.flat[0].platform in ("cuda", "rocm") else mesh.devices.flat[0].platform


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

    # JAX counts these uploads as implicit transfers. They are intended, so a transfer guard must not refuse them.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(on_mesh, tree)


def place_rows(tree: Any, mesh: Mesh) -> Any:
    """Puts a batch onto the mesh, of which every process passes its `own_rows` only."""
    parts, sharding = row_parts(mesh), row_sharding(mesh)

    def on_mesh(array: np.ndarray) -> jax.Array:
        part_rows = len(array) // len(parts)

        def part(index: Any) -> np.ndarray:
            first = int(np.searchsorted(parts, (index[0].start or 0) // part_rows)) * part_rows
            return array[first : first + part_rows]

        shape = part_rows * axis_size(mesh, "rows"), *array.shape[1:]
        return jax.make_array_from_callback(shape, sharding, part)

    with jax.transfer_guard_host_to_device("allow"):  # see `place`
        return jax.tree.map(on_mesh, tree)


def fetch(tree: Any) -> Any:
    """A tree of arrays on the host, each as by `gather`."""
    return jax.tree.map(gather, tree)


def gather(array: jax.Array) -> np.ndarray:
    """The whole array on the host. All processes must call this together if the array is spread over them."""
    return np.asarray(_on_own_devices(array))


def gather_to(array: jax.Array, process: int) -> np.ndarray | None:
    """The whole array on the host of one process; None on the others. All must call this together, as with `gather`."""
    whole = _on_own_devices(array)
    if jax.process_index() == process:
        return np.asarray(whole)
    jax.block_until_ready(whole)  # whole arrays would pile up on the devices of a process that runs ahead
    return None


def _on_own_devices(array: jax.Array) -> jax.Array:
    """The array, or a copy that is whole on each device if other processes hold some of it."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return array
    sharding: Any = array.sharding  # an array that is spread over processes has a mesh
    return _replicate(sharding.mesh)(array).addressable_data(0)


@functools.cache
def _replicate(mesh: Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))
