"""What can be wrong with the values of a transform f, whatever its log Z: looked for on a grid of quantiles."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qrpo_jax.errors import UserError, reason
from qrpo_jax.faults.user_code import guard
from qrpo_jax.transform_record import CLAMPS, Transform

GRID = 1001  # quantiles, with 0 and 1
SHAPES = ((), (7,), (2, 3))  # in which training and ranking call f
ROUNDING = 1e-6  # relative; f falls only where it falls by more


def check_traceable(f: Callable[[Array], Array], name: str) -> None:
    """Refuses an f that JAX cannot trace, that is not elementwise in its shapes, or that is not real.

    Raises:
      UserError: about "f".
    """
    for shape in SHAPES:
        try:
            result: Any = jax.eval_shape(f, jax.ShapeDtypeStruct(shape, jnp.float32))
        except Exception as error:
            raise UserError(
                f"transform {name!r} cannot be traced by JAX; it must use jax.numpy alone, and no `if` on values "
                f"({reason(error)})",
                about="f",
            ) from error
        given = getattr(result, "shape", None)
        if given != shape:
            raise UserError(f"transform {name!r} must be elementwise; for shape {shape} it returns {given}", about="f")
        if not any(jnp.issubdtype(result.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
            raise UserError(f"transform {name!r} returns {result.dtype}; it must return real numbers", about="f")


def check_values(transform: Transform, estimator: str) -> float:
    """The share of (0, 1) on which f falls; refuses an f from which nothing can be learned.

    Args:
      estimator: of quantiles; "ecdf" gives 0 and 1 unless they are clamped.

    Raises:
      UserError: about "transform": f raises, is constant, not finite in float32 where quantiles may be, or not
        elementwise; or the clamp is unknown.
    """
    if transform.clamp not in CLAMPS:
        raise _fault(transform, f"has clamp {transform.clamp!r}; allowed: {', '.join(CLAMPS)}")
    t_N = np.linspace(0, 1, GRID, dtype=np.float32)
    some = np.arange(GRID)[::-3]  # part of the quantiles in another order: f makes the same of each
    with guard(f"transform {transform.name!r} failed", "transform"):
        f_N, some_f = (np.asarray(transform.apply(jnp.asarray(t)), np.float32) for t in (t_N, t_N[some]))
    if not np.allclose(some_f, f_N[some], 1e-4, 1e-6, equal_nan=True):
        raise _fault(transform, "is not elementwise: its value at a quantile depends on other quantiles, or on chance")
    inside_N = f_N[1:-1]
    if not np.isfinite(inside_N).all():
        raise _fault(
            transform, f"is {inside_N[~np.isfinite(inside_N)][0]} in float32 inside (0, 1); give it smaller values"
        )
    for at, ends in ((0, ("none", "upper")), (-1, ("none", "lower"))):
        if estimator == "ecdf" and transform.clamp in ends and not np.isfinite(f_N[at]):
            raise UserError(
                f"transform {transform.name!r} is {f_N[at]} at quantile {t_N[at]:g}, which estimator 'ecdf' gives; set "
                "the estimator to 'midpoint', or name a transform with a clamp (transforms.from_function)",
                about=("transform", "estimator"),
            )
    if np.ptp(f_N[np.isfinite(f_N)]) == 0:
        raise _fault(transform, f"is {inside_N[0]:g} everywhere, so that all completions have the same target")
    return float(np.mean(np.diff(inside_N) < -ROUNDING * np.abs(inside_N).max()))


def _fault(transform: Transform, message: str) -> UserError:
    return UserError(f"transform {transform.name!r} {message}", about="transform")
