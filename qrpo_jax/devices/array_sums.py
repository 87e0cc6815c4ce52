"""Checksums of arrays, computed where the arrays are: the same on any mesh, and as fast as memory is read.

Each element's bits are mixed with its place in the array by a bijection of 32 bits, and the results are added modulo
2**32, once for each of two mixes. Addition has no order, so every sharding gives the same 64 bits. A change of any one
element changes both sums for certain; any other change, such as two rows or two arrays that changed places, goes
unnoticed once in 2**64.
"""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, Sharding

_SEEDS = (0x9E3779B9, 0x85EBCA6B)  # any two different numbers
_NARROW = {1: jnp.uint8, 2: jnp.uint16}  # by bytes


def array_sums(tree: Any) -> dict[str, str]:
    """For each array of a tree, by its path, its type, shape and checksum.

    Every process of a job must call it, with arrays on the same devices.
    """
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    sums = jax.device_get([_on_devices(leaf) for _, leaf in named])
    return {
        name: f"{leaf.dtype.name}{list(leaf.shape)} {first:08x}{second:08x}"
        for (name, leaf), (first, second) in zip(named, sums, strict=True)
    }


def dtype_of(array_sum: str | None, default: Any) -> Any:
    """The type of the array whose checksum this is; `default` without one."""
    return default if array_sum is None else jnp.dtype(array_sum.partition("[")[0])


def differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Paths whose arrays differ, or that only one of two trees has."""
    return sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))


def _on_devices(x: Array) -> Array:
    """Both sums of an array, on every device that holds a part of it."""
    where = x.sharding
    return _program(NamedSharding(where.mesh, PartitionSpec()) if isinstance(where, NamedSharding) else where)(x)


@cache
def _program(result: Sharding) -> Any:
    return jax.jit(element_sums, out_shardings=result)


def element_sums(x: Array) -> Array:
    """Both sums of an array, uint32 [2]."""
    bits = as_bits(x)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * np.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.stack([jnp.sum(_mix(bits ^ _mix(place + np.uint32(seed))), dtype=jnp.uint32) for seed in _SEEDS])


def as_bits(x: Array) -> Array:
    """The elements as uint32; wider ones are several, along a new last axis."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if x.dtype.itemsize >= 4:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, _NARROW[x.dtype.itemsize]).astype(jnp.uint32)


def from_bits(bits: Array, dtype: Any) -> Array:
    """The elements of this type whose bits `as_bits` returned."""
    if dtype == jnp.bool_:
        return bits.astype(jnp.bool_)
    if jnp.dtype(dtype).itemsize < 4:
        bits = bits.astype(_NARROW[jnp.dtype(dtype).itemsize])
    return jax.lax.bitcast_convert_type(bits, dtype)


def _mix(x: Array) -> Array:
    """A bijection of 32 bits in which every input bit sways every output bit (the finalizer of MurmurHash3)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
