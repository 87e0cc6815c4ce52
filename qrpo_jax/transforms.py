"""Transforms f of the quantile reward, each with its exact log partition function.

Quantile rewards are uniform on (0, 1) under the reference policy, whatever the reward is, so a
transform f fixes the partition function of the KL-regularised problem (arXiv 2507.08068):
Z(beta) = int_0^1 exp(f(t) / beta) dt. A `Transform` is the pair of f and log Z.

1 / beta reaches 10,000, so no formula here exponentiates 1 / beta, and every log Z is accurate in
float32 as well.
"""

from collections.abc import Callable
from math import factorial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import dawsn, ndtri
from jax.typing import ArrayLike

# From this 1 / beta down, the closed forms of log Z are small differences of large terms and the
# moment series takes over.
_SERIES_BELOW = 2.0
_SERIES_TERMS = 28  # 2^28 / 28! < 1e-21: the first dropped term is far below float64 rounding


class Transform(NamedTuple):
    """A function of the quantile reward and its log partition function.

    Attributes:
      name: name in `TRANSFORMS`, for messages and reports.
      apply: f, elementwise: quantiles [...] in [0, 1] -> transformed rewards [...].
      log_z: log int_0^1 exp(f(t) / beta) dt, elementwise: beta [...] > 0 -> [...].
      clamp: how quantiles that are estimated from n references are kept where f is finite:
        "none", "lower" ([1/n, 1]) or "both" ([1/n, (n-1)/n]); see `quantiles.clamp`.
    """

    name: str
    apply: Callable[[Array], Array]
    log_z: Callable[[Array], Array]
    clamp: str = "none"


def _floating(x: ArrayLike) -> Array:
    # Multiplying by a Python float keeps floating types and weak types as they are, and turns
    # integers into floats.
    return jnp.asarray(x) * 1.0


def _power_log_z(power: float, closed_form: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """log Z of f(t) = t^power: closed form for small beta, series without cancellation for large.

    With x = 1 / beta and the moments E[f^k] = 1 / (power k + 1),
    Z = 1 + sum_{k>=1} x^k / (k! (power k + 1)). All terms are positive, so log Z = log1p(sum) has
    full relative accuracy.
    """
    coefficients = [1 / (factorial(k) * (power * k + 1)) for k in range(_SERIES_TERMS, 0, -1)]

    def log_z(beta: Array) -> Array:
        beta = _floating(beta)
        use_series = 1 / beta <= _SERIES_BELOW
        # Both branches see only arguments they are made for: an infinity in the branch not taken
        # would make the gradient NaN.
        inverse = jnp.where(use_series, 1 / beta, _SERIES_BELOW)
        excess = jnp.zeros_like(inverse)
        for coefficient in coefficients:
            excess = (excess + coefficient) * inverse
        closed = closed_form(jnp.where(use_series, 1 / _SERIES_BELOW, beta))
        return jnp.where(use_series, jnp.log1p(excess), closed)

    return log_z


def _identity_closed_form(beta: Array) -> Array:
    """Z = beta (e^{1/beta} - 1)."""
    return jnp.log(beta) + 1 / beta + jnp.log1p(-jnp.exp(-1 / beta))


def _square_closed_form(beta: Array) -> Array:
    """Z = (sqrt(pi beta) / 2) erfi(1 / sqrt(beta)) = sqrt(beta) e^{1/beta} D(1 / sqrt(beta)).

    D(x) = (sqrt(pi) / 2) e^{-x^2} erfi(x) is Dawson's integral.
    """
    return 0.5 * jnp.log(beta) + 1 / beta + jnp.log(dawsn(1 / jnp.sqrt(beta)))


def _sqrt_closed_form(beta: Array) -> Array:
    """Z = 2 beta (beta + (1 - beta) e^{1/beta})."""
    return jnp.log(2 * beta) + 1 / beta + jnp.log((1 - beta) + beta * jnp.exp(-1 / beta))


def _log_log_z(beta: Array) -> Array:
    """Z = int t^{1/beta} dt = beta / (beta + 1)."""
    return -jnp.log1p(1 / _floating(beta))


def _normal_log_z(beta: Array) -> Array:
    """Z = E[exp(X / beta)], X standard normal = exp(1 / (2 beta^2))."""
    return 0.5 / jnp.square(_floating(beta))


identity = Transform("identity", _floating, _power_log_z(1, _identity_closed_form))
log = Transform("log", jnp.log, _log_log_z, clamp="lower")
square = Transform("square", lambda t: jnp.square(_floating(t)), _power_log_z(2, _square_closed_form))
sqrt = Transform("sqrt", jnp.sqrt, _power_log_z(0.5, _sqrt_closed_form))
normal_icdf = Transform("normal-icdf", lambda t: ndtri(_floating(t)), _normal_log_z, clamp="both")


def affine(transform: Transform, shift: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> Transform:
    """shift + scale f(t), with log Z(beta) = shift / beta + log Z_f(beta / scale).

    Args:
      transform: f.
      shift: added to f; broadcasts against quantiles and beta.
      scale: multiplies f, >= 0; broadcasts likewise and may be traced. 0 (a prompt whose reference
        rewards are all equal) gives the constant `shift`.

    >>> half = affine(identity, shift=0.25, scale=0.5)
    >>> round(float(half.apply(0.5)), 4), round(float(half.log_z(1.0)), 4)
    (0.5, 0.5104)
    """

    def apply(t: Array) -> Array:
        return jnp.asarray(shift) + jnp.asarray(scale) * transform.apply(t)

    def log_z(beta: Array) -> Array:
        beta = _floating(beta)
        # beta / 0 would be an infinity with a NaN gradient; exp(0 / beta) integrates to 1 exactly.
        constant = jnp.equal(scale, 0)
        log_z_f = transform.log_z(beta / jnp.where(constant, 1.0, scale))
        return jnp.asarray(shift) / beta + jnp.where(constant, 0.0, log_z_f)

    return Transform(f"affine({transform.name})", apply, log_z, transform.clamp)


def gaussian(mean: ArrayLike = 0.0, std: ArrayLike = 1.0) -> Transform:
    """mean + std Phi^{-1}(t), with log Z = mean / beta + std^2 / (2 beta^2).

    The rewards of the reference policy, if those are normal.

    Args:
      mean: broadcasts against quantiles and beta.
      std: >= 0, broadcasts likewise.

    >>> round(float(gaussian(mean=1.0, std=2.0).log_z(0.5)), 4)
    10.0
    """
    return affine(normal_icdf, mean, std)._replace(name="gaussian")


TRANSFORMS = {
    "identity": identity,
    "log": log,
    "square": square,
    "sqrt": sqrt,
    "normal-icdf": normal_icdf,
    # Scaled by each prompt's reward spread when `get` is told it; this entry has its clamp and its
    # unit-scale form.
    "scaled-normal-icdf": normal_icdf._replace(name="scaled-normal-icdf"),
}


def get(name: str, reward_scale: ArrayLike | None = None) -> Transform:
    """The published transform of that name.

    Args:
      name: a key of `TRANSFORMS`.
      reward_scale: for "scaled-normal-icdf" only: each prompt's std of reference rewards
        (`quantiles.reward_std`) over its mean across prompts; broadcasts against quantiles and
        beta.

    Raises:
      ValueError: unknown name, or "scaled-normal-icdf" without `reward_scale`.

    >>> round(float(get("identity").log_z(0.1)), 4)
    7.6974
    >>> round(float(get("scaled-normal-icdf", reward_scale=0.5).log_z(0.5)), 4)
    0.5
    """
    if name not in TRANSFORMS:
        raise ValueError(f"unknown transform {name!r}: set the transform to one of {sorted(TRANSFORMS)}")
    transform = TRANSFORMS[name]
    if name != "scaled-normal-icdf":
        return transform
    if reward_scale is None:
        raise ValueError(f"transform {name!r} needs each prompt's std of reference rewards: pass reward_scale")
    return affine(transform, scale=reward_scale)._replace(name=name)


def published(transform: Transform) -> Transform:
    """The transform with log Z as in the authors' PyTorch code, for comparisons with that code.

    It drops log1p(-e^{-1/beta}) from the log Z of `identity`, which shows from beta = 0.1 up. The
    others are unchanged.

    >>> round(float(identity.log_z(1.0)), 4), round(float(published(identity).log_z(1.0)), 4)
    (0.5413, 1.0)
    """
    if transform.name != identity.name:
        return transform
    return transform._replace(log_z=lambda beta: jnp.log(beta) + 1 / _floating(beta))
