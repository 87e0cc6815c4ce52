"""Affine images a + b f of a transform f, among them the scaling by each prompt's reward spread."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from qrpo_jax.errors import UserError
from qrpo_jax.transform_names import shortest
from qrpo_jax.transform_record import Transform, check_beta, floating, room_above


def affine(transform: Transform, shift: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> Transform:
    """shift + scale f(t), with log Z(beta) = shift / beta + log Z_f(beta / scale).

    Args:
      transform: f.
      shift: [...], added to f, in units of f; broadcasts against quantiles and beta.
      scale: [...], multiplies f, >= 0; broadcasts likewise and may be traced. A scale of 0 (a prompt whose reference
        rewards are all equal) gives the constant `shift`.

    Raises:
      UserError: a scale is below 0, an argument is not a finite number, or f already has a scale for each prompt.

    >>> from qrpo_jax import transforms
    >>> half = affine(transforms.identity, shift=0.25, scale=0.5)
    >>> round(float(half.apply(0.5)), 4), round(float(half.log_z(1.0)), 4)
    (0.5, 0.5104)
    """
    if transform.scaled:
        message = f"transform {transform.name!r} differs from prompt to prompt; it cannot be shifted or scaled"
        raise UserError(message, about="transform")
    a, b = _concrete("shift", shift), _concrete("scale", scale)
    known = not isinstance(b, jax.core.Tracer)
    if known and np.any(b < 0):
        message = f"scale is {scale}; it must be at least 0 (for a falling f, define a transform with its formula)"
        raise UserError(message, about="scale")
    numbers = isinstance(a, float) and isinstance(b, float)
    name = f"affine({transform.name}, {shortest(a)}, {shortest(b)})" if numbers else f"affine({transform.name})"

    # beta / 0 would be an infinity with a NaN gradient; exp(0 / beta) integrates to exactly 1.
    constant = b == 0
    divisor = (b or 1.0) if isinstance(b, float) else (np if known else jnp).where(constant, 1.0, b)

    def image(f: Callable[[ArrayLike], Array]) -> Callable[[ArrayLike], Array]:
        return lambda t: a + b * f(t)

    def above(room: Array, beta: Array) -> Array:
        """log Z from beta's distance to the smallest beta, which beta / scale would lose."""
        if transform.log_z_above is None:
            inner = transform.log_z(jnp.where(constant, transform.smallest_beta + 1.0, beta / divisor))
        else:
            inner = transform.log_z_above(jnp.where(constant, 1.0, room / divisor))
        return a / beta + jnp.where(constant, 0.0, inner)

    def log_z(beta: ArrayLike) -> Array:
        if known:
            check_beta(beta, transform.smallest_beta * b, name)
        beta = floating(beta)
        return above(room_above(beta, transform.smallest_beta * divisor), beta)

    smallest = transform.smallest_beta * (float(np.max(b)) if known else 1.0)
    one_edge = smallest == 0 or isinstance(b, float)
    return transform._replace(
        name=name,
        apply=image(transform.apply),
        log_z=log_z,
        smallest_beta=smallest,
        complement=None if transform.complement is None else image(transform.complement),
        log_z_above=(lambda room: above(floating(room), smallest + floating(room))) if one_edge else None,
    )


def _concrete(argument: str, value: ArrayLike) -> Any:
    """A number as a Python float, which keeps its digits whatever precision comes later; an array as NumPy's."""
    if isinstance(value, jax.core.Tracer):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{argument} is {value!r}; it must be a number", about=argument)
    if array.ndim:
        return array
    if not np.isfinite(array):
        raise UserError(f"{argument} is {value}; it must be finite", about=argument)
    return float(array)


def scale_by(transform: Transform, reward_scale: ArrayLike | None) -> Transform:
    """s f(t), s each prompt's reward spread, if the transform is scaled by it; any other transform unchanged.

    Args:
      transform: f.
      reward_scale: [...], each prompt's standard deviation of reference rewards (`quantiles.reward_std`) over its mean
        across prompts; broadcasts against quantiles and beta.

    Raises:
      ValueError: the transform needs `reward_scale`, which is None.

    >>> from qrpo_jax import transforms
    >>> scaled = scale_by(transforms.TRANSFORMS["scaled-normal-icdf"], 0.5)
    >>> round(float(scaled.log_z(0.5)), 4)
    0.5
    """
    if not transform.scaled:
        return transform
    if reward_scale is None:
        raise ValueError(
            f"transform {transform.name!r} needs each prompt's std of reference rewards: pass reward_scale"
        )
    return affine(transform._replace(scaled=False), scale=reward_scale)._replace(name=transform.name)
