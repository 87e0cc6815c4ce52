"""The optimal policy, seen through the quantile: what a setting asks for, before anything is trained.

Under pi* = pi_ref e^{f(R_q)/beta} / Z the quantile has the density p(t) = e^{f(t)/beta} / Z on (0, 1), where under
pi_ref it is uniform (arXiv 2507.08068; figure 5 shows identity). f is taken to be non-decreasing, and rewards not to
tie. f(t) / beta carries the rounding of f(t) divided by beta, so figures for beta below 0.01 are worth asking for in
float64.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from scipy.optimize import brentq

from qrpo_jax.transforms import Transform, check_beta

# Double-exponential quadrature, as in `integrals`; at |u| = 6.08 the distance to an end of (0, 1) is 1e-299.
_REACH = 6.08
_NODES = 1739
_LOST = 1e-6  # share of the optimum
_BISECTIONS = 64
_BETAS = (1e-5, 1e5)  # between which `beta_for` looks, above the smallest beta of the transform


def density(t: ArrayLike, beta: ArrayLike, transform: Transform) -> Array:
    """Density of the quantile under the optimum, p(t) = exp(f(t) / beta) / Z.

    Args:
      t: [...], quantiles in (0, 1).
      beta: > 0, broadcasts against t.
      transform: f and log Z.

    Returns:
      [...], relative to the uniform density of the reference policy.

    Raises:
      ValueError: here and below, Z is infinite at this beta.

    >>> from qrpo_jax import transforms
    >>> round(float(density(0.5, 0.5, transforms.log)), 4)
    0.75
    """
    return jnp.exp(transform.apply(jnp.asarray(t)) / beta - transform.log_z(beta))


def _masses(top: Array, beta: ArrayLike, transform: Transform) -> tuple[Array, Array, Array]:
    """Nodes t in (0, top), 1 - t, and what p holds around them, which adds up to cdf(top); [...] -> [..., nodes]."""
    u, step = np.linspace(-_REACH, _REACH, _NODES, retstep=True)
    stretched = np.pi * np.sinh(u)
    log_share, log_rest = -np.logaddexp(0, -stretched), -np.logaddexp(0, stretched)
    log_slope = jnp.asarray(np.log(step * np.pi * np.cosh(u)) + log_share + log_rest, top.dtype)
    share, rest = jnp.asarray(np.exp(log_share), top.dtype), jnp.asarray(np.exp(log_rest), top.dtype)
    top = top[..., None]
    ends = [jnp.minimum(end, top) for end in (0.0, *transform.breaks, 1.0)]
    nodes, complements, widths = [], [], []
    for a, b in itertools.pairwise(ends):
        nodes.append(a + (b - a) * share)
        complements.append((1 - b) + (b - a) * rest)
        widths.append(jnp.broadcast_to(b - a, nodes[-1].shape))
    t, s, width = (jnp.concatenate(x, axis=-1) for x in (nodes, complements, widths))
    limits = jnp.finfo(t.dtype)
    t, s = jnp.maximum(t, limits.tiny), jnp.maximum(s, limits.tiny)
    # Next to 1, t has no digits: f is infinite there, or known from s.
    below = jnp.minimum(t, 1 - limits.epsneg)
    f = transform.apply(below)
    if transform.complement is not None:
        f = jnp.where(t > 0.5, transform.complement(s), f)
    # Densities may overflow where widths are small enough to make up for it.
    mass = width * jnp.exp(jnp.tile(log_slope, len(widths)) + f / beta - transform.log_z(beta))
    return below, s, mass


def cdf(t: ArrayLike, beta: ArrayLike, transform: Transform) -> Array:
    """P*(T <= t) = int_0^t p, the distribution function of the quantile under the optimum.

    Args:
      t: [...], in [0, 1].
      beta: [], > 0.
      transform: f and log Z.

    Returns:
      [...]

    >>> from qrpo_jax import transforms
    >>> round(float(cdf(0.5, 0.5, transforms.log)), 4)
    0.125
    """
    t = jnp.asarray(t) * 1.0
    *_, mass = _masses(t, beta, transform)
    return jnp.where(t >= 1, 1.0, jnp.clip(jnp.sum(mass, axis=-1), 0, 1))


def crossing_level(beta: ArrayLike, transform: Transform) -> Array:
    """beta log Z: completions whose f(R_q) is above it gain probability, the others lose it.

    Args:
      beta: [...], > 0.
      transform: f and log Z.

    Returns:
      [...], in units of f.

    >>> from qrpo_jax import transforms
    >>> round(float(crossing_level(0.1, transforms.identity)), 4)
    0.7697
    """
    return jnp.asarray(beta) * transform.log_z(beta)


def crossing_share(beta: ArrayLike, transform: Transform) -> Array:
    """Share of reference completions that lose probability at the optimum, and the quantile at which they gain.

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
    level = crossing_level(beta, transform)

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
    check_beta(beta, transform.smallest_beta, transform.name)
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
    return 1 - _expected_complement(beta, transform)


def _expected_complement(beta: ArrayLike, transform: Transform) -> Array:
    """1 - E*[t], which keeps its digits where E*[t] is close to 1."""
    if jnp.ndim(beta) != 0:
        raise ValueError(f"beta must be a scalar, got shape {jnp.shape(beta)}: vmap over betas")
    check_beta(beta, transform.smallest_beta, transform.name)
    beta = jnp.asarray(beta) * 1.0
    _, s, mass = _masses(jnp.ones_like(beta), beta, transform)
    return jnp.sum(mass * s)


def effective_n(expected_quantile: ArrayLike) -> Array:
    """The N of the Best-of-N sampling that has this expected quantile N / (N + 1): q / (1 - q).

    Args:
      expected_quantile: [...] in [0, 1).

    Returns:
      [...], not an integer in general; 1 for the reference policy.

    >>> float(effective_n(0.75))
    3.0
    """
    quantile = jnp.asarray(expected_quantile)
    return quantile / (1 - quantile)


def best_of_n(beta: ArrayLike, transform: Transform) -> Array:
    """N of the Best-of-N sampling that has the optimum's expected quantile; for `log` exactly 1 + 1 / beta.

    Args:
      beta: [], > 0; callers vmap.
      transform: f and log Z.

    Returns:
      [] > 0, not an integer in general.

    >>> from qrpo_jax import transforms
    >>> round(float(best_of_n(0.25, transforms.log)), 4)
    5.0
    """
    complement = _expected_complement(beta, transform)
    return (1 - complement) / complement


def reward_density(
    reward: ArrayLike,
    beta: ArrayLike,
    transform: Transform,
    reward_cdf: Callable[[Array], Array],
    reward_survival: Callable[[Array], Array] | None = None,
) -> Array:
    """Density of the reward itself under the optimum: p(F(r)) F'(r), F its distribution under the reference.

    Args:
      reward: [...], r.
      beta: > 0, broadcasts against r.
      transform: f and log Z.
      reward_cdf: F, elementwise, continuous and differentiable by JAX.
      reward_survival: 1 - F, for rewards so good that F has rounded to 1; without it their density is 0.

    Returns:
      [...], per unit of reward.

    >>> from jax.scipy.stats import norm
    >>> from qrpo_jax import transforms
    >>> shifted = reward_density(1.5, 1.0, transforms.normal_icdf, norm.cdf)
    >>> round(float(shifted), 4), round(float(norm.pdf(1.5, loc=1.0)), 4)
    (0.3521, 0.3521)
    """
    reward = jnp.asarray(reward) * 1.0
    quantile, slope = jax.jvp(reward_cdf, (reward,), (jnp.ones_like(reward),))
    # Where F has reached 0 or 1, f may be infinite and the reference has nothing to give.
    inside = (quantile > 0) & (quantile < 1)
    f = transform.apply(jnp.where(inside, quantile, 0.5))
    if reward_survival is not None and transform.complement is not None:
        rest, falling = jax.jvp(reward_survival, (reward,), (jnp.ones_like(reward),))
        high = (rest > 0) & (rest < 0.5)
        f = jnp.where(high, transform.complement(jnp.where(high, rest, 0.5)), f)
        slope, inside = jnp.where(high, -falling, slope), inside | high
    # One exponent: p alone may overflow where F' is small.
    log_slope = jnp.log(jnp.where(slope > 0, slope, 1.0))
    density = jnp.exp(log_slope + f / beta - transform.log_z(beta))
    return jnp.where(inside & (slope > 0), density, 0.0)


def expected_reward(
    beta: ArrayLike,
    transform: Transform,
    reward_cdf: Callable[[Array], Array],
    support: tuple[float, float],
    reward_survival: Callable[[Array], Array] | None = None,
) -> Array:
    """E*[R] = int F^{-1}(t) p(t) dt, the mean reward under the optimum.

    Args:
      beta: [], > 0; callers vmap.
      transform: f and log Z.
      reward_cdf: F, elementwise and continuous: the reward's distribution under the reference.
      support: (low, high), between which F goes from 0 to 1, up to what may be neglected.
      reward_survival: 1 - F, for an optimum among rewards so good that F has rounded to 1.

    Returns:
      [], in units of the reward; NaN where more than 1e-6 of the optimum lies where neither function can tell rewards
      apart, unless all of these are within 1e-6 of the support's length.

    Raises:
      ValueError: beta is not a scalar, or the support is not an interval.

    >>> from qrpo_jax import transforms
    >>> round(float(expected_reward(0.5, transforms.log, lambda r: r / 10, (0, 10))), 4)
    7.5
    """
    if jnp.ndim(beta) != 0 or not support[0] < support[1]:
        raise ValueError(f"beta must be a scalar and support rise, got shape {jnp.shape(beta)} and {support}")
    beta = jnp.asarray(beta) * 1.0
    t, s, mass = _masses(jnp.ones_like(beta), beta, transform)

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        under = reward_cdf(middle) < t
        if reward_survival is not None:
            under = jnp.where(s < 0.5, reward_survival(middle) > s, under)
        return jnp.where(under, middle, low), jnp.where(under, high, middle)

    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.full_like(t, support[0]), jnp.full_like(t, support[1])))
    reward = (low + high) / 2
    lost = (s < jnp.finfo(s.dtype).eps) if reward_survival is None else (s <= jnp.finfo(s.dtype).tiny)
    last = jnp.max(jnp.where(lost, support[0], reward))
    unknown = 1 - jnp.sum(jnp.where(lost, 0.0, mass))
    told = (unknown < _LOST) | (support[1] - last < _LOST * (support[1] - support[0]))
    return jnp.where(told, jnp.sum(jnp.where(lost, 0.0, mass * reward)) + unknown * last, jnp.nan)


def beta_for(figure: Callable[[ArrayLike, Transform], Array], value: float, transform: Transform) -> float:
    """The beta at which the optimum has this figure: the inverse of `kl`, `expected_quantile` or `best_of_n`.

    Args:
      figure: one of them, or any function of beta and transform that falls as beta grows.
      value: what it is to be.
      transform: f and log Z.

    Returns:
      beta, found in float64.

    Raises:
      ValueError: the optimum of this transform has no such figure.

    >>> from qrpo_jax import transforms
    >>> round(beta_for(best_of_n, 5, transforms.log), 6), round(beta_for(kl, 2, transforms.normal_icdf), 6)
    (0.25, 0.5)
    """
    least = transform.smallest_beta
    with jax.enable_x64(True):
        at = jax.jit(lambda beta: figure(beta, transform))

        def reached(log_beta: float) -> float:
            return float(at(least + np.exp(log_beta)))

        low, high = np.log(_BETAS)
        most, fewest = reached(low), reached(high)
        # What is reached in the limit only, such as the KL of a threshold with all mass above it, is no optimum's.
        if not most > value > fewest:
            name = getattr(figure, "__name__", "figure")
            raise ValueError(
                f"no optimum of transform {transform.name!r} has {name} = {value:g}: it lies between {fewest:.6g} and "
                f"{most:.6g} (beta from {least + _BETAS[1]:g} down to {least + _BETAS[0]:g})"
            )
        root = brentq(lambda log_beta: reached(log_beta) - value, low, high, xtol=1e-14, rtol=1e-14)
        return float(least + np.exp(root))
