"""Laws of parts: names and sums tell them apart, and one whole copy of each, on whatever processes, is enough."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qrpo_jax.devices import parts
from qrpo_jax.devices.mesh import make_mesh

# What eight devices of a mesh (replica 2, data 1, fsdp 2, tensor 2) hold of an array.
SPECS = PartitionSpec(), PartitionSpec("fsdp"), PartitionSpec("tensor", None), PartitionSpec(("fsdp", "tensor"))
TYPES = jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8, jnp.bool_


@pytest.fixture
def mesh():
    return make_mesh(1, 2, 2, replica=2)


def values(dtype, shape=(12, 5)):
    """Numbers of all kinds: the first is -0 and the second NaN, where a type has them."""
    drawn = np.random.default_rng(0).integers(-9, 9, shape).astype(np.float64)
    if jnp.issubdtype(dtype, jnp.floating):
        drawn.flat[0], drawn.flat[1] = -0.0, np.nan
    return np.asarray(jnp.asarray(np.abs(drawn) if dtype == jnp.uint8 else drawn).astype(dtype))


def placed(array, sharding, wrong=()):
    """An array on the mesh, with zeros on the devices of some processes."""
    pieces = []
    for device, index in sharding.addressable_devices_indices_map(array.shape).items():
        piece = array[index]
        pieces.append(jax.device_put(np.zeros_like(piece) if device in wrong else piece, device))
    return jax.make_array_from_single_device_arrays(array.shape, sharding, pieces)


def bits(array):
    return [np.asarray(shard.data).tobytes() for shard in array.addressable_shards]


def of_processes(monkeypatch, count):
    """Gives the devices to as many processes, in the order of the mesh."""
    shared = lambda mesh: np.arange(mesh.devices.size).reshape(mesh.devices.shape) * count // mesh.devices.size  # noqa: E731
    monkeypatch.setattr(parts, "_process_index", shared)
    return shared


@pytest.mark.parametrize("held", [(0, 3), (1, 2), (0, 1), (2, 3), (3, 1, 0)], ids=str)
def test_parts_of_some_processes_make_an_array_whole_bit_by_bit(mesh, monkeypatch, held):
    processes = of_processes(monkeypatch, 4)(mesh)
    holds_P = np.isin(np.arange(4), held)
    lost = [device for device, i in zip(mesh.devices.flat, processes.flat, strict=True) if i not in held]
    right = {
        f"{spec} {dtype.__name__}": placed(values(dtype), NamedSharding(mesh, spec))
        for spec in SPECS
        for dtype in TYPES
    }
    left = {name: placed(np.asarray(x), x.sharding, lost) for name, x in right.items()}
    # Processes 0 and 2 hold copies of one half, and 1 and 3 of the other.
    covered = bool({0, 2} & set(held)) and bool({1, 3} & set(held))
    assert parts.cover(right, holds_P) == covered
    if covered:
        back = parts.spread(left, holds_P)
        for name, x in right.items():
            assert back[name].sharding == x.sharding and back[name].dtype == x.dtype, name
            assert bits(back[name]) == bits(x), name


def test_sums_of_parts_see_a_change_where_it_is_and_nowhere_else(mesh):
    split = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    tree = {
        "a": placed(values(jnp.float32, (4, 6)), split),
        "b": placed(values(jnp.bfloat16, (3,)), split.update(spec=())),
    }
    sums = parts.part_sums(tree)
    assert set(sums) == parts.part_names(tree) and len(sums) == 4 + 1, sums
    changed = np.asarray(tree["a"]).copy()
    changed[3, 0] = 77  # in the part of rows 2 to 4 and columns 0 to 3
    other = parts.part_sums(tree | {"a": placed(changed, split)})
    assert [name for name in sums if sums[name] != other[name]] == ["['a'] float32[4, 6][2:4, 0:3]"]
    assert parts.part_names({"a": jax.ShapeDtypeStruct((4, 6), jnp.int32, sharding=split)}).isdisjoint(sums)


@pytest.mark.parametrize(
    ("sizes", "replica", "processes", "fewest"),
    [((1, 2, 2), 2, 2, 2), ((1, 2, 2), 2, 1, 1), ((2, 2, 2), 1, 4, 2), ((1, 8, 1), 1, 2, 1), ((8, 1, 1), 1, 8, 8)],
)
def test_processes_that_hold_a_part_are_those_along_replica_and_data(monkeypatch, sizes, replica, processes, fewest):
    of_processes(monkeypatch, processes)
    assert parts.fewest_holders(make_mesh(*sizes, replica=replica)) == fewest
