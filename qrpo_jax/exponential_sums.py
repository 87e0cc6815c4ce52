"""log E[exp(f / beta)] over finitely many values of f, accurate in float32 for every beta.

Quadrature over (0, 1) and the partition functions of finite samples are sums of this kind.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import broadcast_to_rank
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

# While all exponents are below this, Z - 1 is summed from positive terms, so that log Z is exact near 0 too.
_SMALL = 8.0


def log_mean_exp(values: Any, weights: Any, inverse_beta: ArrayLike, halves: Any = None) -> Array:
    """log sum_i w_i exp(f_i / beta), with full relative accuracy for large and for small beta.

    Args:
      values: [N], f_i; differences are taken in the precision of `values`, so float64 NumPy arrays stay exact.
      weights: [N], w_i >= 0, with sum 1; a value of weight 0 has no effect, even NaN.
      inverse_beta: [...], 1 / beta >= 0; determines shape and dtype of the result.
      halves: [N], half rises h_i: f rises linearly from f_i - h_i to f_i + h_i over the i-th part of the unit interval,
        and exp(f_i / beta) becomes its mean there, exp(f_i / beta) sinh(h_i / beta) / (h_i / beta). By default 0.

    Returns:
      [...]

    >>> round(float(log_mean_exp(np.array([0.0, 1.0]), np.array([0.5, 0.5]), 2.0)), 4)
    1.4338
    """
    xp: Any = np if isinstance(values, np.ndarray) else jnp
    halves = xp.zeros_like(values) if halves is None else xp.abs(halves)
    counted = weights > 0
    mean = xp.sum(xp.where(counted, weights * values, 0))
    centred = xp.where(counted, values - mean, 0)
    ends = xp.where(counted, values + halves, 0)
    log_weights = xp.where(counted, xp.log(xp.where(counted, weights, 1)), -xp.inf)

    x = jnp.asarray(inverse_beta)[..., None] * 1.0
    lost = (_lost(a, x.dtype) for a in (ends, log_weights))
    weights, halves, centred, ends, log_weights, ends_lost, log_weights_lost = (
        broadcast_to_rank(jnp.asarray(a).astype(x.dtype), x.ndim)
        for a in (weights, halves, centred, ends, log_weights, *lost)
    )
    exponents = (ends, ends_lost, log_weights, log_weights_lost)
    return _log_mean_exp(x, weights, halves, centred, jnp.asarray(mean).astype(x.dtype), exponents)


def _lost(a: Any, dtype: Any) -> Any:
    """What conversion of `a` to the type takes away, which has digits of its own if `a` is more precise; 0 for -inf."""
    xp: Any = np if isinstance(a, np.ndarray) else jnp
    finite = xp.where(xp.isfinite(a), a, 0)
    return finite - finite.astype(dtype).astype(finite.dtype)


@jax.jit  # callers outside of a jitted program evaluate many tables of one shape
def _log_mean_exp(
    x: Array,
    weights: Array,
    halves: Array,
    centred: Array,
    mean: Array,
    exponents: tuple[Array, Array, Array, Array],
) -> Array:
    """The sum from differences of f, in the dtype of the result; x [..., 1], mean [], the others [N].

    Args:
      exponents: f_i + h_i and log w_i, each with what rounding to this dtype took away.
    """
    ends, ends_lost, log_weights, log_weights_lost = exponents
    small = jnp.max(x * (centred + halves) + log_weights, axis=-1, keepdims=True) <= _SMALL
    # Each branch sees only exponents within its range: an overflow in the unused one would make the gradient NaN.
    y, h = jnp.where(small, x * centred, 0), jnp.where(small, x * halves, 0)
    # With sum_i w_i y_i = 0, Z e^{-mean / beta} - 1 = sum_i w_i (e^y - 1 - y) + w_i e^y (sinh(h) / h - 1) >= 0.
    rest = _sinhc_minus_one(h)
    excess = jnp.where(
        jnp.abs(y) < 1,
        weights * (_exp_minus_tangent(y) + jnp.exp(jnp.clip(y, -1, 1)) * rest),
        jnp.exp(y + log_weights) * (1 + rest) - weights * (1 + y),
    )
    near = x[..., 0] * mean + jnp.log1p(jnp.sum(excess, axis=-1))
    x = jnp.where(small, 0, x)
    # Exponents are differences to the largest one, so that those that matter are small and their rounding errors too.
    rise = _log_sinhc_minus_h(x * halves)
    peak = jnp.argmax(log_weights + x * ends + rise, axis=-1, keepdims=True)
    end, end_lost, log_weight, log_weight_lost = (a.reshape(-1)[peak] for a in exponents)
    lower = (log_weights - log_weight) + (log_weights_lost - log_weight_lost)
    far = logsumexp(lower + x * ((ends - end) + (ends_lost - end_lost)) + rise, axis=-1)
    far = far + (x * end + log_weight + (x * end_lost + log_weight_lost))[..., 0]
    return jnp.where(small[..., 0], near, far)


def _series(z: Array, coefficients: list[float]) -> Array:
    total = jnp.zeros_like(z)
    for coefficient in reversed(coefficients):
        total = total * z + coefficient
    return total


def _exp_minus_tangent(y: Array) -> Array:
    """e^y - 1 - y for |y| <= 1, without cancellation."""
    y = jnp.clip(y, -1, 1)
    return y * y * _series(y, [1 / math.factorial(k + 2) for k in range(18)])


def _sinhc_minus_one(h: Array) -> Array:
    """sinh(h) / h - 1 for h >= 0, exact to rounding."""
    near = jnp.minimum(h, 1.0)
    series = near * near * _series(near * near, [1 / math.factorial(2 * k + 3) for k in range(9)])
    far = jnp.maximum(h, 1.0)
    return jnp.where(h < 1, series, jnp.sinh(far) / far - 1)


def _log_sinhc_minus_h(h: Array) -> Array:
    """log(sinh(h) / h) - h for h >= 0, without overflow."""
    near, far = jnp.minimum(h, 1.0), jnp.maximum(h, 1.0)
    return jnp.where(h < 1, jnp.log1p(_sinhc_minus_one(near)) - near, jnp.log(-jnp.expm1(-2 * far) / (2 * far)))
