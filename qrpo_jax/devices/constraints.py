"""Where the arrays of a compiled program lie: constraints by logical axes, and parameters gathered where they are used.

All functions change nothing without a mesh, or on one device.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh, NamedSharding

from qrpo_jax.devices.mesh import spec

STORAGE = "embed"  # split to store parameters; a computation needs this axis whole


def spreads(mesh: Mesh | None) -> bool:
    """Whether arrays are spread over more than one device."""
    return mesh is not None and mesh.size > 1


def constrain(x: Array, mesh: Mesh | None, axes: Sequence[str | None]) -> Array:
    """x, split over the mesh along these logical axes wherever its sizes can be divided."""
    if mesh is None or not spreads(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(mesh, axes, x.shape)))


def laid_out(weight: Array, stored: Mesh, mesh: Mesh, axes: tuple[str, ...], dtype: Any) -> Array:
    """A parameter in the type of a computation, moved from the mesh that stores it to another one of the same devices.

    There it is whole along the axis that only storage splits. The constraints say how it travels: converted where it
    lies, then exchanged within groups of neighbours, then gathered.
    """
    weight = constrain(weight.astype(dtype), stored, axes)
    if mesh is not stored:
        weight = constrain(weight, mesh, axes)
    return constrain(weight, mesh, whole(axes))


def whole(axes: tuple[str, ...]) -> tuple[str | None, ...]:
    """Logical axes without the one that only storage splits."""
    return tuple(None if axis == STORAGE else axis for axis in axes)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gathered(weight: Array, mesh: Mesh | None, axes: tuple[str, ...], dtype: Any) -> Array:
    """A parameter in the type of a computation, whole along the axis that only storage splits (FSDP, ZeRO 3).

    It is converted before it travels, so bfloat16 halves the bytes. Its gradient travels back in the same type and
    arrives split as the parameter is, in the parameter's type.
    """
    weight = weight.astype(dtype)
    if mesh is None or not spreads(mesh):
        return weight
    # Two constraints: conversion happens on the split array, and then the array is gathered.
    weight = jax.lax.with_sharding_constraint(weight, NamedSharding(mesh, spec(mesh, axes, weight.shape)))
    return constrain(weight, mesh, whole(axes))


def _gathered(weight: Array, mesh: Mesh | None, axes: tuple[str, ...], dtype: Any) -> tuple[Array, Array]:
    return gathered(weight, mesh, axes, dtype), weight[(slice(0, 0),) * weight.ndim]  # carries the type alone


def _scattered(mesh: Mesh | None, axes: tuple[str, ...], dtype: Any, empty: Array, gradient: Array) -> tuple[Array]:
    if mesh is not None and spreads(mesh):
        gradient = jax.lax.with_sharding_constraint(gradient, NamedSharding(mesh, spec(mesh, axes, gradient.shape)))
    return (gradient.astype(empty.dtype),)


gathered.defvjp(_gathered, _scattered)
