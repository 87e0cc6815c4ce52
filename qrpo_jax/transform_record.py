"""The record of a transform of the quantile reward: f, its log Z, and the domain of beta."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from qrpo_jax.errors import UserError

CLAMPS = ("none", "lower", "upper", "both")


class Transform(NamedTuple):
    """f and log Z(beta) = log int_0^1 exp(f(t) / beta) dt, t the quantile reward (arXiv 2507.08068, section 3).

    Attributes:
      name: the name in configs and for `transforms.parse`.
      apply: f, elementwise: quantiles [...] in [0, 1] -> transformed rewards [...].
      log_z: log Z, elementwise: beta [...] -> [...]. Raises UserError unless beta > smallest_beta; where beta is
        traced, and so cannot be checked, the result is NaN.
      clamp: range in which f is finite on quantiles estimated from n references: "none", "lower" ([1/n, 1]),
        "upper" ([0, (n-1)/n]) or "both" ([1/n, (n-1)/n]); see `quantiles.clamp`.
      smallest_beta: Z is finite for every beta above it.
      breaks: points inside (0, 1) where f jumps or bends; quadrature needs them.
      scaled: True if f must be multiplied by each prompt's reward spread, see `affine.scale_by`.
      complement: s -> f(1 - s), for an f that is unbounded at 1: float64 resolves 1e-300 near 0 but only 1e-16 near 1.
      log_z_above: log Z as a function of beta - smallest_beta, for smallest_beta > 0. Close to the smallest beta, the
        difference has digits that beta has lost.
    """

    name: str
    apply: Callable[[ArrayLike], Array]
    log_z: Callable[[ArrayLike], Array]
    clamp: str = "none"
    smallest_beta: float = 0.0
    breaks: tuple[float, ...] = ()
    scaled: bool = False
    complement: Callable[[ArrayLike], Array] | None = None
    log_z_above: Callable[[ArrayLike], Array] | None = None


def check_beta(beta: Any, smallest: Any, name: str) -> None:
    """Rejects a beta for which Z is infinite; a traced beta passes unchecked.

    Args:
      beta: [...]
      smallest: [...], Z is finite above it; broadcasts against beta.
      name: the transform's name, for the message.

    Raises:
      UserError: some beta is not above `smallest`.

    >>> check_beta([2.0, 0.5], 1.0, "logit")
    Traceback (most recent call last):
    qrpo_jax.errors.UserError: transform 'logit' has no finite partition function at beta = 0.5: beta must be above 1
    """
    if isinstance(beta, jax.core.Tracer) or isinstance(smallest, jax.core.Tracer):
        return
    betas, bounds = np.broadcast_arrays(np.asarray(beta, float), np.asarray(smallest, float))
    outside = np.flatnonzero(~(betas > bounds))
    if len(outside):
        beta, bound = betas.flat[outside[0]], bounds.flat[outside[0]]
        raise UserError(
            f"transform {name!r} has no finite partition function at beta = {beta:g}: beta must be above {bound:g}",
            about=("transform", "beta") if bound > 0 else "beta",
        )


def with_domain(
    name: str,
    apply: Callable,
    log_z_above: Callable,
    *,
    smallest_beta: float = 0.0,
    complement: Callable | None = None,
    **rest: Any,
) -> Transform:
    """A transform from formulas for arrays: it accepts any number and rejects beta outside its domain.

    Args:
      name: see `Transform`; so are the arguments below.
      apply: f of a floating array.
      log_z_above: log Z as a function of the floating array beta - smallest_beta.
      smallest_beta: Z is finite for every beta above it.
      complement: s -> f(1 - s) of a floating array.
      rest: other attributes of `Transform`.

    >>> with_domain("constant", lambda t: 0 * t + 2, lambda beta: 2 / beta).log_z(4)
    Array(0.5, dtype=float32, weak_type=True)
    """

    def above(room: ArrayLike) -> Array:
        room = floating(room)
        # Outside the domain a formula may return finite numbers, although the integral is infinite.
        return log_z_above(jnp.where(room > 0, room, jnp.nan))

    def checked(beta: ArrayLike) -> Array:
        check_beta(beta, smallest_beta, name)
        return above(room_above(floating(beta), smallest_beta))

    return Transform(
        name,
        lambda t: apply(floating(t)),
        checked,
        smallest_beta=smallest_beta,
        complement=None if complement is None else lambda s: complement(floating(s)),
        log_z_above=above,
        **rest,
    )


def floating(x: ArrayLike) -> Array:
    """x as a floating array; floating dtypes and weak types stay, integers become floats.

    >>> floating(3).dtype
    dtype('float32')
    """
    return jnp.asarray(x) * 1.0


def room_above(beta: Array, smallest: Any) -> Array:
    """beta - smallest, exact to the last digit of beta, even if `smallest` has more digits than beta's dtype.

    Args:
      beta: [...], floating.
      smallest: [...] or a number.

    >>> f"{float(room_above(jnp.float32(0.1), 0.1)):.3g}"  # the float32 next to 0.1 is not 0.1
    '1.49e-09'
    """
    if isinstance(smallest, jax.core.Tracer):
        return beta - smallest
    leading = np.float32(smallest) if np.ndim(smallest) else float(np.float32(smallest))
    return (beta - leading) - (smallest - leading)
