"""Checksums of arrays: the same on every mesh, different for every change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qrpo_jax.devices.array_sums import array_sums, differences, dtype_of
from qrpo_jax.devices.mesh import make_mesh

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "bool")


def bits(shape=(8, 6), dtype="float32", seed=0):
    """An array of random bits, NaNs and infinities among them."""
    dtype = jnp.dtype(dtype)
    rng = np.random.default_rng(seed)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape).copy()


def sums(**arrays):
    return array_sums({name: jnp.asarray(x) for name, x in arrays.items()})


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_flipped_bit_changes_both_halves_of_the_sum(dtype):
    x = bits((7, 5), dtype)
    (whole,) = sums(x=x).values()
    for index in np.random.default_rng(1).choice(x.size, 11, replace=False):
        for bit in range(1 if dtype == "bool" else 8 * x.itemsize):
            changed = x.copy()
            raw = changed.reshape(-1).view(np.uint8)
            raw[index * x.itemsize + bit // 8] ^= np.uint8(1 << bit % 8)
            (other,) = sums(x=changed).values()
            assert whole[-16:-8] != other[-16:-8] and whole[-8:] != other[-8:], (index, bit, whole, other)


def test_order_shape_type_and_name_count():
    x = bits()
    ways = [
        x,
        x[::-1],
        x[:, ::-1],
        x.T,
        x.reshape(6, 8),
        x.view(np.int32),
        np.roll(x, 1),
        np.concatenate([x, x[:1] * 0]),
    ]
    of_ways = [sums(x=way)["['x']"] for way in ways]
    assert len(set(of_ways)) == len(ways), of_ways
    assert differences(sums(a=x, b=x[::-1]), sums(a=x[::-1], b=x)) == ["['a']", "['b']"]
    assert differences(sums(a=x), sums(a=x, b=x)) == ["['b']"]
    assert dtype_of(sums(a=jnp.zeros(3, jnp.bfloat16))["['a']"], None) == jnp.bfloat16


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_mesh_gives_the_same_sum(dtype):
    x, mesh = bits((8, 4, 2), dtype), make_mesh(2, 2, 2)
    (expected,) = sums(x=x).values()
    for spec in (
        PartitionSpec(),
        PartitionSpec("data"),
        PartitionSpec("data", "fsdp", "tensor"),
        PartitionSpec(("data", "fsdp", "tensor")),
    ):
        (found,) = array_sums({"x": jax.device_put(x, NamedSharding(mesh, spec))}).values()
        assert found == expected, spec


def test_scalars_and_empty_arrays_have_sums():
    of_zero, of_one, of_none = (sums(x=x)["['x']"] for x in (np.int32(0), np.int32(1), np.zeros((0, 3), np.float32)))
    assert len({of_zero, of_one, of_none}) == 3
