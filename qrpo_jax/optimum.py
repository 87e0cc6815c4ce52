"""The distribution of the quantile under the optimal policy, known from f and beta before any training.

Under pi* = pi_ref e^{f(R_q)/beta} / Z the quantile has density p(t) = e^{f(t)/beta} / Z on (0, 1); under pi_ref it is
uniform (arXiv 2507.08068; figure 5 shows identity). These functions assume that f is non-decreasing and that rewards do
not tie. The rounding error of f(t) / beta grows as 1 / beta, so use float64 for beta below 0.01.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import broadcast_to_rank
from jax.typing import ArrayLike

from qrpo_jax.errors import UserError
from qrpo_jax.transform_record import Transform, check_beta

_REACH = 6.08  # largest |u| of the double-exponential quadrature, as in `integrals`
_NODES = 1739
_NEGLIGIBLE = 1e-6  # share of the optimum's probability, and of the reward's support
_BISECTIONS = 64
_BETAS = (1e-5, 1e5)  # range of `beta_for`, as distances from the transform's smallest beta


def density(t: ArrayLike, beta: ArrayLike, transform: Transform) -> Array:
    """Density of the quantile under the optimum, p(t) = exp(f(t) / beta) / Z.

    Args:
      t: [...], quantiles in (0, 1).
      beta: [...], > 0, in units of f; broadcasts against t.
      transform: f and log Z.

    Returns:
      [...], relative to the uniform density of the reference policy.

    Raises:
      UserError: here and below, Z is infinite at this beta.

    >>> from qrpo_jax import transforms
    >>> round(float(density(0.5, 0.5, transforms.log)), 4)
    0.75
    """
    return jnp.exp(transform.apply(jnp.asarray(t)) / beta - transform.log_z(beta))


def _masses(top: Array, beta: ArrayLike, transform: Transform) -> tuple[Array, Array, Array]:
    """Nodes t in (0, top), their 1 - t, and the mass of p at each, with sum cdf(top); [...] -> [..., nodes]."""
    u, step = np.linspace(-_REACH, _REACH, _NODES, retstep=True)
    stretched = np.pi * np.sinh(u)
    log_share, log_rest = -np.logaddexp(0, -stretched), -np.logaddexp(0, stretched)
    slopes = np.log(step * np.pi * np.cosh(u)) + log_share + log_rest
    top = top[..., None]
    log_slope, share, rest = (
        broadcast_to_rank(jnp.asarray(x, top.dtype), top.ndim) for x in (slopes, np.exp(log_share), np.exp(log_rest))
    )
    ends = [jnp.minimum(end, top) for end in (0.0, *transform.breaks, 1.0)]
    nodes, complements, widths = [], [], []
    for a, b in itertools.pairwise(ends):
        nodes.append(a + (b - a) * share)
        complements.append((1 - b) + (b - a) * rest)
        widths.append(jnp.broadcast_to(b - a, nodes[-1].shape))
    t, s, width = (jnp.concatenate(x, axis=-1) for x in (nodes, complements, widths))
    limits = jnp.finfo(t.dtype)
    t, s = jnp.maximum(t, limits.tiny), jnp.maximum(s, limits.tiny)
    # Near 1, t has lost its digits, and f is finite or computed from s.
    below = jnp.minimum(t, 1 - limits.epsneg)
    f = transform.apply(below)
    if transform.complement is not None:
        f = jnp.where(t > 0.5, transform.complement(s), f)
    # One exponent: a density may overflow although its product with a small width does not.
    mass = width * jnp.exp(jnp.tile(log_slope, len(widths)) + f / beta - transform.log_z(beta))
    return below, s, mass


def cdf(t: ArrayLike, beta: ArrayLike, transform: Transform) -> Array:
    """P*(T <= t) = int_0^t p, the distribution function of the quantile under the optimum.

    Args:
      t: [...], quantiles in [0, 1].
      beta: [], > 0, in units of f.
      transform: f and log Z.

    Returns:
      [...] in [0, 1].

    >>> from qrpo_jax import transforms
    >>> round(float(cdf(0.5, 0.5, transforms.log)), 4)
    0.125
    """
    t = jnp.asarray(t) * 1.0
    *_, mass = _masses(t, beta, transform)
    return jnp.where(t >= 1, 1.0, jnp.clip(jnp.sum(mass, axis=-1), 0, 1))


def crossing_level(beta: ArrayLike, transform: Transform) -> Array:
    """beta log Z, the level of f(R_q) above which completions gain probability; those below it lose probability.

    Args:
      beta: [...], > 0, in units of f.
      transform: f and log Z.

    Returns:
      [...], in units of f.

    >>> from qrpo_jax import transforms
    >>> round(float(crossing_level(0.1, transforms.identity)), 4)
    0.7697
    """
    return jnp.asarray(beta) * transform.log_z(beta)


def crossing_share(beta: ArrayLike, transform: Transform) -> Array:
    """P(f(t) <= beta log Z), t uniform: the share of reference completions that lose probability at the optimum.

    It is also the quantile above which completions gain.

    Args:
      beta: [...], > 0, in units of f.
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

    E*[f] is the derivative of log Z in 1 / beta, -beta^2 d log Z / d beta, so no integral is needed.

    Args:
      beta: [...], > 0, in units of f.
      transform: f and log Z.

    Returns:
      [...] >= 0, in nats.

    >>> from qrpo_jax import transforms
    >>> round(float(kl(0.5, transforms.normal_icdf)), 4)
    2.0
    """
    check_beta(beta, transform.smallest_beta, transform.name)
    beta = jnp.asarray(beta) * 1.0
    log_z, slope = jax.jvp(transform.log_z, (beta,), (jnp.ones_like(beta),))
    return -beta * slope - log_z


def expected_quantile(beta: ArrayLike, transform: Transform) -> Array:
    """E*[t] = int_0^1 t p(t) dt, the mean quantile under the optimum; it is 1/2 under the reference.

    Args:
      beta: [], > 0, in units of f; callers vmap.
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
    """1 - E*[t], which keeps its digits when E*[t] is close to 1."""
    if jnp.ndim(beta) != 0:
        raise ValueError(f"beta must be a scalar, got shape {jnp.shape(beta)}: vmap over betas")
    check_beta(beta, transform.smallest_beta, transform.name)
    beta = jnp.asarray(beta) * 1.0
    _, s, mass = _masses(jnp.ones_like(beta), beta, transform)
    return jnp.sum(mass * s)


def effective_n(expected_quantile: ArrayLike) -> Array:
    """q / (1 - q), the N of Best-of-N sampling with expected quantile q = N / (N + 1).

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
    """The N of Best-of-N sampling with the optimum's expected quantile; for `log` exactly 1 + 1 / beta.

    Args:
      beta: [], > 0, in units of f; callers vmap.
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
    """Density of the reward under the optimum, p(F(r)) F'(r), with F its distribution function under the reference.

    Args:
      reward: [...], r.
      beta: [...], > 0, in units of f; broadcasts against r.
      transform: f and log Z.
      reward_cdf: F, elementwise, continuous and differentiable by JAX.
      reward_survival: 1 - F, for rewards so high that F rounds to 1; without it their density is 0.

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
    # Where F is 0 or 1, f may be infinite, and the reference has no probability beyond.
    inside = (quantile > 0) & (quantile < 1)
    f = transform.apply(jnp.where(inside, quantile, 0.5))
    if reward_survival is not None and transform.complement is not None:
        rest, falling = jax.jvp(reward_survival, (reward,), (jnp.ones_like(reward),))
        high = (rest > 0) & (rest < 0.5)
        f = jnp.where(high, transform.complement(jnp.where(high, rest, 0.5)), f)
        slope, inside = jnp.where(high, -falling, slope), inside | high
    # One exponent: p may overflow although its product with a small F' does not.
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
      beta: [], > 0, in units of f; callers vmap.
      transform: f and log Z.
      reward_cdf: F, elementwise and continuous, the reward's distribution function under the reference.
      support: (low, high), the rewards between which F rises from 0 to 1, up to a negligible probability.
      reward_survival: 1 - F, for an optimum at rewards so high that F rounds to 1.

    Returns:
      [], in units of the reward. NaN if neither function distinguishes rewards that have more than 1e-6 of the
      optimum's probability and span more than 1e-6 of the support.

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
    rounded = (s < jnp.finfo(s.dtype).eps) if reward_survival is None else (s <= jnp.finfo(s.dtype).tiny)
    last = jnp.max(jnp.where(rounded, support[0], reward))
    rest = 1 - jnp.sum(jnp.where(rounded, 0.0, mass))
    resolved = (rest < _NEGLIGIBLE) | (support[1] - last < _NEGLIGIBLE * (support[1] - support[0]))
    return jnp.where(resolved, jnp.sum(jnp.where(rounded, 0.0, mass * reward)) + rest * last, jnp.nan)


def beta_for(figure: Callable[[ArrayLike, Transform], Array], value: float, transform: Transform) -> float:
    """The beta at which `kl`, `expected_quantile` or `best_of_n` has a given value, by root finding.

    Args:
      figure: one of these functions, or any other function of beta and transform that falls as beta grows.
      value: its value, in its own units.
      transform: f and log Z.

    Returns:
      beta, in units of f, computed in float64.

    Raises:
      UserError: no optimum of this transform has this value.

    >>> from qrpo_jax import transforms
    >>> round(beta_for(best_of_n, 5, transforms.log), 6), round(beta_for(kl, 2, transforms.normal_icdf), 6)
    (0.25, 0.5)
    """
    least = transform.smallest_beta
    with jax.enable_x64(True):
        compiled = jax.jit(lambda beta: figure(beta, transform))

        def figure_at(log_beta: float) -> float:
            return float(compiled(least + np.exp(log_beta)))

        low, high = np.log(_BETAS)
        upper, lower = figure_at(low), figure_at(high)
        # Strictly between: no optimum has a limiting value, such as the KL of all mass above a threshold.
        if not upper > value > lower:
            name = getattr(figure, "__name__", "figure")
            raise UserError(
                f"no optimum of transform {transform.name!r} has {name} = {value:g}: it lies between {lower:.6g} and "
                f"{upper:.6g} (beta from {least + _BETAS[1]:g} down to {least + _BETAS[0]:g})",
                about="value",
            )
        from scipy.optimize import brentq  # here because it takes longer to import than this module

        root = brentq(lambda log_beta: figure_at(log_beta) - value, low, high, xtol=1e-14, rtol=1e-14)
        return float(least + np.exp(root))
