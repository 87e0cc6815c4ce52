"""Closed forms of log Z = log int_0^1 exp(f(t) / beta) dt, in forms that stay finite and accurate in float32.

Each function has the name of its transform in `transforms`; docs/partition_functions.md derives them. Their argument is
beta [...] > 0, or, if the smallest beta is 1, beta - 1 [...] > 0; they return log Z [...]. Arguments are not checked.
"""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import dawsn

# For 1 / beta up to this the closed forms are small differences of large terms; a series without cancellation is used.
_SERIES_BELOW = 2.0
_SERIES_TERMS = 28  # 2^28 / 28! < 1e-21: the first dropped term is far below float64 rounding


def _horner(x: Array, coefficients: Sequence[float]) -> Array:
    """sum_{k>=1} c_k x^k."""
    total = jnp.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = (total + coefficient) * x
    return total


def with_series(power: float, closed_form: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """log Z of f(t) = t^power for every beta: the closed form for small beta, a series for large.

    With x = 1 / beta and the moments E[f^k] = 1 / (power k + 1), Z = 1 + sum_{k>=1} x^k / (k! (power k + 1)). All
    terms are positive, so log Z = log1p(sum) has full relative accuracy.

    Args:
      power: > 0.
      closed_form: log Z as a function of beta [...], accurate for beta <= 1/2.

    Returns:
      log Z as a function of beta [...].

    >>> round(float(with_series(1, identity)(1e4)), 12)  # 1 / (2 beta) + 1 / (24 beta^2)
    5.0000417e-05
    """
    coefficients = [1 / (math.factorial(k) * (power * k + 1)) for k in range(1, _SERIES_TERMS + 1)]

    def log_z(beta: Array) -> Array:
        use_series = 1 / beta <= _SERIES_BELOW
        # Each branch sees only arguments within its range: an infinity in the unused one would make the gradient NaN.
        excess = _horner(jnp.where(use_series, 1 / beta, _SERIES_BELOW), coefficients)
        closed = closed_form(jnp.where(use_series, 1 / _SERIES_BELOW, beta))
        return jnp.where(use_series, jnp.log1p(excess), closed)

    return log_z


def identity(beta: Array) -> Array:
    """f = t: Z = beta (e^{1/beta} - 1).

    >>> round(float(identity(0.1)), 4)
    7.6974
    """
    return jnp.log(beta) + 1 / beta + jnp.log1p(-jnp.exp(-1 / beta))


def square(beta: Array) -> Array:
    """f = t^2: Z = (sqrt(pi beta) / 2) erfi(1 / sqrt(beta)) = sqrt(beta) e^{1/beta} D(1 / sqrt(beta)).

    D(x) = (sqrt(pi) / 2) e^{-x^2} erfi(x) is Dawson's integral.

    >>> round(float(square(0.1)), 4)
    7.0632
    """
    return 0.5 * jnp.log(beta) + 1 / beta + jnp.log(dawsn(1 / jnp.sqrt(beta)))


def sqrt(beta: Array) -> Array:
    """f = sqrt(t): Z = 2 beta (beta + (1 - beta) e^{1/beta}).

    >>> round(float(sqrt(0.1)), 4)
    8.2852
    """
    return jnp.log(2 * beta) + 1 / beta + jnp.log((1 - beta) + beta * jnp.exp(-1 / beta))


def log(beta: Array) -> Array:
    """f = log t: Z = int t^{1/beta} dt = beta / (beta + 1).

    >>> round(float(log(0.1)), 4)
    -2.3979
    """
    return -jnp.log1p(1 / beta)


def normal_icdf(beta: Array) -> Array:
    """f = Phi^{-1}(t): Z = E[exp(X / beta)] = exp(1 / (2 beta^2)), X standard normal.

    >>> round(float(normal_icdf(0.3)), 4)
    5.5556
    """
    return 0.5 / jnp.square(beta)


def exponential_icdf(room: Array) -> Array:
    """f = -log(1 - t): Z = int (1 - t)^{-1/beta} dt = beta / (beta - 1); room is beta - 1.

    >>> round(float(exponential_icdf(1.0)), 4)
    0.6931
    """
    return jnp.log1p(1 / room)


# log(pi x / sin(pi x)) = sum_k zeta(2k) x^{2k} / k, used for x up to 1/2.
_ZETA = [1.6449340668482264, 1.0823232337111382, 1.0173430619844492, 1.0040773561979444, 1.0009945751278180]
_LOGIT_SERIES = [(_ZETA[k - 1] if k <= 5 else sum(n ** (-2.0 * k) for n in range(1, 60))) / k for k in range(1, 27)]


def logit(room: Array) -> Array:
    """f = log(t / (1 - t)): Z = Gamma(1 + x) Gamma(1 - x) = pi x / sin(pi x), x = 1 / beta; room is beta - 1.

    >>> round(float(logit(1.0)), 4)
    0.4516
    """
    use_series = room >= 1
    series = _horner(jnp.square(1 / (1 + jnp.where(use_series, room, 1.0))), _LOGIT_SERIES)
    room = jnp.where(use_series, 1.0, room)
    # sin(pi x) = sin(pi (1 - x)), which keeps its digits when x is close to 1.
    closed = jnp.log(jnp.pi / (1 + room)) - jnp.log(jnp.sin(jnp.pi * room / (1 + room)))
    return jnp.where(use_series, series, closed)
