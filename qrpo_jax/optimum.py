"""The optimal policy, seen through the quantile: the numbers a trained policy is compared with.

Under pi* = pi_ref e^{f(R_q)/beta} / Z the quantile has the density p(t) = e^{f(t)/beta} / Z on (0,
1), where under pi_ref it is uniform (arXiv 2507.08068; figure 5 shows identity at beta = 0.1). f is
taken to be non-decreasing. f(t) / beta carries the rounding of f(t) divided by beta, so figures for
beta below 0.01 are worth asking for in float64.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from qrpo_jax.transforms import Transform

# Double-exponential quadrature: t = sigmoid(pi sinh u). At |u| = 3.5 the distance to an end of (0,
# 1) is 3e-23.
_REACH = 3.5
_NODES = 1001
_BISECTIONS = 64


def density(t: ArrayLike, beta: ArrayLike, transform: Transform) -> Array:
    """Density of the quantile under the optimum, p(t) = exp(f(t) / beta) / Z.

    Args:
      t: [...], quantiles in (0, 1).
      beta: > 0, broadcasts against t.
      transform: f and log Z.

    Returns:
      [...], relative to the uniform density of the reference policy.

    >>> from qrpo_jax import transforms
    >>> round(float(density(0.5, 0.5, transforms.log)), 4)
    0.75
    """
    return jnp.exp(transform.apply(jnp.asarray(t)) / beta - transform.log_z(jnp.asarray(beta)))


def crossing_share(beta: ArrayLike, transform: Transform) -> Array:
    """Share of reference completions that lose probability at the optimum.

    P(f(t) <= beta log Z) for t uniform on (0, 1).

    Args:
      beta: [...], > 0.
      transform: non-decreasing f, and log Z.

    Returns:
      [...] in [0, 1].

    >>> from qrpo_jax import transforms
    >>> round(float(crossing_share(0.1, transforms.identity)), 4)
    0.7697
    """
    beta = jnp.asarray(beta) * 1.0
    level = beta * transform.log_z(beta)

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        loses = transform.apply(middle) <= level
        return jnp.where(loses, middle, low), jnp.where(loses, high, middle)

    low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(level), jnp.ones_like(level)))
    return low


def kl(beta: ArrayLike, transform: Transform) -> Array:
    """KL(pi* || pi_ref) = E*[f] / beta - log Z, in nats.

    E*[f] is the derivative of log Z in 1 / beta, that is -beta^2 d log Z / d beta, so there is
    nothing to integrate.

    Args:
      beta: [...], > 0.
      transform: f and log Z.

    Returns:
      [...] >= 0.

    >>> from qrpo_jax import transforms
    >>> round(float(kl(0.5, transforms.normal_icdf)), 4)
    2.0
    """
    beta = jnp.asarray(beta) * 1.0
    log_z, slope = jax.jvp(transform.log_z, (beta,), (jnp.ones_like(beta),))
    return -beta * slope - log_z


def expected_quantile(beta: ArrayLike, transform: Transform) -> Array:
    """E*[t] = int_0^1 t p(t) dt, the mean quantile under the optimum; 1/2 under the reference.

    Args:
      beta: [], > 0; callers vmap.
      transform: f and log Z.

    Returns:
      [] in (0, 1).

    Raises:
      ValueError: beta is not a scalar.

    >>> from qrpo_jax import transforms
    >>> round(float(expected_quantile(0.5, transforms.log)), 4)
    0.75
    """
    beta = jnp.asarray(beta) * 1.0
    if beta.ndim != 0:
        raise ValueError(f"beta must be a scalar, got shape {beta.shape}: vmap over betas")
    step = 2 * _REACH / (_NODES - 1)
    u = jnp.linspace(-_REACH, _REACH, _NODES, dtype=beta.dtype)
    stretched = jnp.pi * jnp.sinh(u)
    t, one_minus_t = jax.nn.sigmoid(stretched), jax.nn.sigmoid(-stretched)
    # Rounding takes t to 1 before one_minus_t reaches 0, and f may be infinite at 1.
    inside = jnp.minimum(t, 1 - jnp.finfo(beta.dtype).epsneg)
    # The complement is integrated: what p holds beyond the last representable t below 1 adds
    # nothing to it.
    widths = step * jnp.pi * jnp.cosh(u) * t * one_minus_t
    return 1 - jnp.sum(widths * one_minus_t * density(inside, beta, transform))


def effective_n(expected_quantile: ArrayLike) -> Array:
    """The N of the Best-of-N sampling that has this expected quantile N / (N + 1): q / (1 - q).

    The optimum of the `log` transform is exactly Best-of-N with N = 1 + 1 / beta.

    Args:
      expected_quantile: [...] in [0, 1).

    Returns:
      [...], not an integer in general; 1 for the reference policy.

    >>> float(effective_n(0.75))
    3.0
    """
    quantile = jnp.asarray(expected_quantile)
    return quantile / (1 - quantile)
