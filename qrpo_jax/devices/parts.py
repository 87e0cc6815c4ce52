"""Parts of arrays: what one process holds of them, and how they become whole again from parts that some processes have.

Devices that differ only along mesh axes over which an array is not split hold copies of the same part.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qrpo_jax.devices.array_sums import as_bits, element_sums, from_bits
from qrpo_jax.devices.mesh import LOGICAL, mesh_axes


def part_names(abstract: Any) -> set[str]:
    """Names of the parts that this process holds of a tree of arrays: path, type, shape and place of each."""
    return {
        _name(path, leaf, index)
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
        for index in leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    }


def part_sums(tree: Any) -> dict[str, str]:
    """The checksum of each part that this process holds, by its name. Every process must call it."""
    parts: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        sums = {shard.device: shard.data for shard in _part_program(leaf.sharding)(leaf).addressable_shards}
        parts |= {_name(path, leaf, shard.index): sums[shard.device] for shard in leaf.addressable_shards}
    return {name: "".join(f"{each:08x}" for each in sums.flat) for name, sums in jax.device_get(parts).items()}


def zeros(abstract: Any) -> Any:
    """A tree of zeros. A process makes its parts without the others."""

    def make(leaf: Any) -> Array:
        part = np.zeros(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: part)

    return jax.tree.map(make, abstract)


def fewest_holders(mesh: Mesh) -> int:
    """The number of processes that hold a part of the parameters, for the part that the fewest hold."""
    copies = tuple(mesh.axis_names.index(name) for name in LOGICAL["looked_up_rows"])
    processes = np.moveaxis(_process_index(mesh), copies, range(len(copies)))
    processes = processes.reshape(-1, int(np.prod(processes.shape[len(copies) :])))
    return min(len(set(column)) for column in processes.T)


def cover(tree: Any, holds_P: np.ndarray) -> bool:
    """Whether every part of every array is on one of these processes."""
    shardings = {leaf.sharding for leaf in jax.tree.leaves(tree)}
    return all(holds_P[_process_index(where.mesh)].any(_free(where)).all() for where in shardings)


def spread(tree: Any, holds_P: np.ndarray) -> Any:
    """The arrays with every part right, from arrays whose parts are right on some processes. All must call it.

    Bits are sent, so that no value changes: a sum of floats would turn -0 into 0.

    Args:
      holds_P: for each process, whether its parts are right; together they `cover` the tree.
    """
    return tree if holds_P.all() else jax.tree.map(lambda leaf: _spread(leaf, holds_P), tree)


def _spread(x: Array, holds_P: np.ndarray) -> Array:
    where: Any = x.sharding
    mesh, free = where.mesh, _free(where)
    sends = dict(zip(mesh.devices.flat, _first(holds_P[_process_index(mesh)], free).flat, strict=True))
    copies = int(np.prod([mesh.devices.shape[axis] for axis in free], dtype=int))
    # Each copy along a new first axis. One of them has the bits, and the others are 0.
    pieces = [_piece(shard.data, sends[shard.device]) for shard in x.addressable_shards]
    axes = tuple(mesh.axis_names[axis] for axis in free)
    split = NamedSharding(mesh, PartitionSpec(axes or None, *where.spec))
    shape = (copies, *x.shape, *pieces[0].shape[1 + x.ndim :])
    return _merge(where, x.dtype)(jax.make_array_from_single_device_arrays(shape, split, pieces))


def _first(holds: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Leaves only the first True along these axes together."""
    moved = np.moveaxis(holds, axes, range(len(axes)))
    rows = moved.reshape(int(np.prod(moved.shape[: len(axes)], dtype=int)), -1)
    first = rows & (np.cumsum(rows, axis=0) == 1)
    return np.moveaxis(first.reshape(moved.shape), range(len(axes)), axes)


@jax.jit
def _piece(part: Array, sends: Any) -> Array:
    bits = as_bits(part)[jnp.newaxis]
    return jnp.where(sends, bits, jnp.zeros_like(bits))


@cache
def _merge(where: NamedSharding, dtype: Any) -> Any:
    return jax.jit(lambda bits: from_bits(jnp.sum(bits, axis=0, dtype=jnp.uint32), dtype), out_shardings=where)


@cache
def _part_program(where: NamedSharding) -> Any:
    """Both sums of each device's part: uint32, one axis for each of the mesh and one of 2."""
    axes = where.mesh.axis_names
    return jax.jit(
        jax.shard_map(
            lambda part: element_sums(part).reshape((1,) * len(axes) + (2,)),
            mesh=where.mesh,
            in_specs=where.spec,
            out_specs=PartitionSpec(*axes),
            check_vma=False,
        )
    )


def _free(where: Any) -> tuple[int, ...]:
    """Indices of the mesh axes over which an array is not split."""
    used = {name for entry in where.spec for name in mesh_axes(entry)}
    return tuple(i for i, name in enumerate(where.mesh.axis_names) if name not in used)


def _process_index(mesh: Mesh) -> np.ndarray:
    """The process of each device of a mesh."""
    return np.asarray([device.process_index for device in mesh.devices.flat]).reshape(mesh.devices.shape)


def _name(path: Any, leaf: Any, index: tuple[slice, ...]) -> str:
    place = ", ".join("{}:{}".format(*each.indices(size)) for each, size in zip(index, leaf.shape, strict=True))
    return f"{jax.tree_util.keystr(path)} {leaf.dtype.name}{list(leaf.shape)}[{place}]"
