"""Root-mean-square norm (Zhang & Sennrich 2019) with its own backward pass, computed in float32 at least.

With u = x / rms(x) and upstream gradient g, the gradients are g u for the scale, summed over positions, and
(h - u mean(h u)) / rms(x) for x, with h = g scale. So the backward pass keeps x and one number a position, and on a CPU
sums products that exist already, which takes a tenth of the time of a sum fused with its products.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import broadcast_to_rank

from qrpo_jax.devices.dtypes import at_least_float32


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def rms_norm(x: Array, scale: Array, epsilon: float, rounds: bool) -> Array:
    """u * scale in the type of x.

    Args:
      x: [..., *axes].
      scale: [*axes], of the last axes of x, over which the mean is taken.
      epsilon: added to the mean of squares.
      rounds: u is rounded to the type of x before it is scaled.
    """
    return _forward(x, scale, epsilon, rounds)[0]


def _forward(x: Array, scale: Array, epsilon: float, rounds: bool) -> tuple[Array, tuple[Array, Array, Array]]:
    wide = x.astype(at_least_float32(x.dtype))
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=_over(scale), keepdims=True) + epsilon)
    normed = _unit(x, inverse, rounds) * broadcast_to_rank(scale.astype(wide.dtype), x.ndim)
    return normed.astype(x.dtype), (x, scale, inverse)


def _backward(epsilon: float, rounds: bool, kept: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, scale, inverse = kept
    unit, gradient = _unit(x, inverse, rounds), gradient.astype(inverse.dtype)
    product = gradient * unit
    of_scale = product.sum(tuple(range(x.ndim - scale.ndim))).astype(scale.dtype)
    over, numbers = _over(scale), math.prod(scale.shape)
    scale = broadcast_to_rank(scale.astype(inverse.dtype), x.ndim)
    mean = (product * scale).sum(over, keepdims=True) / numbers
    return (inverse * (gradient * scale - unit * mean)).astype(x.dtype), of_scale


rms_norm.defvjp(_forward, _backward)


def _over(scale: Array) -> tuple[int, ...]:
    return tuple(range(-scale.ndim, 0))


def _unit(x: Array, inverse: Array, rounds: bool) -> Any:
    """u, in the type of `inverse`."""
    unit = x.astype(inverse.dtype) * inverse
    if rounds and x.dtype != inverse.dtype:
        # Not by casting to x.dtype and back: the compiler may remove such a pair of casts.
        low = jnp.finfo(x.dtype)
        unit = jax.lax.reduce_precision(unit, low.nexp, low.nmant)
    return unit
