"""The two steps of a norm with their gradients: to unit mean square, and times a scale.

A gradient of each has a sum of products, over the features of a token or over all tokens. On a CPU it is a matrix
product with ones: XLA's sum over f32[896,512] takes 2 to 4 ms there, and the product 0.1 ms (one core of an Intel Xeon,
2026-11-28).

Axes: T tokens, all axes of x before the normalised ones; F features, all normalised axes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import broadcast_to_rank


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def unit_mean_square(x: Array, axes: int, epsilon: float) -> Array:
    """x with mean square 1 over its last `axes` axes (Zhang & Sennrich 2019)."""
    return _unit_forward(x, axes, epsilon)[0]


def _unit_forward(x: Array, axes: int, epsilon: float) -> tuple[Array, tuple[Array, Array]]:
    # Not as a product, whose rounding depends on the place of a token in the batch.
    factor = jax.lax.rsqrt(jnp.mean(x * x, axis=tuple(range(-axes, 0)), keepdims=True) + epsilon)
    unit = x * factor
    return unit, (unit, factor)


def _unit_backward(axes: int, epsilon: float, kept: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    unit, factor = kept
    return (factor * (gradient - unit * mean_of_features(gradient * unit, axes)),)


unit_mean_square.defvjp(_unit_forward, _unit_backward)


@jax.custom_vjp
def times_scale(x: Array, scale: Array) -> Array:
    """x times a scale over its last axes."""
    return x * broadcast_to_rank(scale, x.ndim)


def _scale_forward(x: Array, scale: Array) -> tuple[Array, tuple[Array, Array]]:
    return times_scale(x, scale), (x, scale)


def _scale_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, scale = kept
    return gradient * broadcast_to_rank(scale, x.ndim), sum_of_tokens(gradient * x, scale.ndim)


times_scale.defvjp(_scale_forward, _scale_backward)


def mean_of_features(x: Array, axes: int) -> Array:
    """The mean over the last `axes` axes, which stay with size 1."""

    def product(x: Array) -> Array:
        x_TxF = x.reshape(-1, int(np.prod(x.shape[-axes:])))
        weights_Fx1 = jnp.full((x_TxF.shape[1], 1), 1 / x_TxF.shape[1], x.dtype)
        return (x_TxF @ weights_Fx1).reshape(*x.shape[:-axes], *[1] * axes)

    over = tuple(range(-axes, 0))
    return jax.lax.platform_dependent(x, cpu=product, default=lambda x: x.mean(over, keepdims=True))


def sum_of_tokens(x: Array, axes: int) -> Array:
    """The sum over all but the last `axes` axes."""

    def product(x: Array) -> Array:
        x_TxF = x.reshape(-1, int(np.prod(x.shape[-axes:])))
        return (jnp.ones((1, x_TxF.shape[0]), x.dtype) @ x_TxF).reshape(x.shape[-axes:])

    over = tuple(range(x.ndim - axes))
    return jax.lax.platform_dependent(x, cpu=product, default=lambda x: x.sum(over))
