"""Transforms f of the quantile reward, each with its exact log partition function.

The quantile reward is uniform on (0, 1) under the reference policy, whatever the reward. A transform f therefore
determines the partition function of the KL-regularised problem: Z(beta) = int_0^1 exp(f(t) / beta) dt (arXiv
2507.08068, section 3). docs/partition_functions.md derives log Z for every transform here.

1 / beta reaches 10,000, so no formula forms exp(1 / beta), and every log Z is accurate in float32 too.
"""

from collections.abc import Callable
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logit as log_odds
from jax.scipy.special import ndtri
from jax.typing import ArrayLike

from qrpo_jax import closed_forms, transform_names
from qrpo_jax.affine import affine, scale_by
from qrpo_jax.errors import UserError, reason
from qrpo_jax.exponential_sums import log_mean_exp
from qrpo_jax.faults import user_code
from qrpo_jax.integrals import tabulate
from qrpo_jax.transform_checks import check_traceable
from qrpo_jax.transform_names import of_numbers, shortest
from qrpo_jax.transform_record import CLAMPS, Transform, check_beta, floating, with_domain

__all__ = [
    "TRANSFORMS",
    "Transform",
    "affine",
    "check_beta",
    "exponential_icdf",
    "from_function",
    "gaussian",
    "get",
    "identity",
    "log",
    "logit",
    "normal_icdf",
    "parse",
    "piecewise_linear",
    "power",
    "published",
    "scale_by",
    "sqrt",
    "square",
    "threshold",
]

identity = with_domain("identity", lambda t: t, closed_forms.with_series(1, closed_forms.identity))
log = with_domain("log", jnp.log, closed_forms.log, clamp="lower")
square = with_domain("square", jnp.square, closed_forms.with_series(2, closed_forms.square))
sqrt = with_domain("sqrt", jnp.sqrt, closed_forms.with_series(0.5, closed_forms.sqrt))
normal_icdf = with_domain("normal-icdf", ndtri, closed_forms.normal_icdf, clamp="both", complement=lambda s: -ndtri(s))
exponential_icdf = with_domain(
    "exponential-icdf",
    lambda t: -jnp.log1p(-t),
    closed_forms.exponential_icdf,
    clamp="upper",
    smallest_beta=1.0,
    complement=lambda s: -jnp.log(s),
)
logit = with_domain(
    "logit",
    log_odds,
    closed_forms.logit,
    clamp="both",
    smallest_beta=1.0,
    complement=lambda s: -log_odds(s),
)


@lru_cache(maxsize=64)
def power(p: float) -> Transform:
    """t^p, with Z = 1F1(1/p; 1 + 1/p; 1/beta), an incomplete gamma function of -1 / beta.

    `identity`, `square` and `sqrt` are the powers 1, 2 and 1/2 and have elementary closed forms. For other p no formula
    is accurate at every beta, so log Z is computed by quadrature, to rounding.

    Args:
      p: the exponent, > 0.

    Raises:
      UserError: p is not positive and finite.

    >>> round(float(power(3).log_z(0.1)), 4)
    6.6789
    """
    if not 0 < p < np.inf:
        raise UserError(f"power is {p}; it must be positive and finite, such as power(0.7)", about="p")
    p = float(p)  # NumPy's numbers would widen float32
    name = f"power({shortest(p)})"
    if p in (0.5, 1, 2):
        return {0.5: sqrt, 1: identity, 2: square}[p]._replace(name=name)
    # Near 1, t^p = exp(p log(1 - s)) keeps the digits that t has lost.
    table = tabulate(lambda t: t**p, lambda s: jnp.exp(p * jnp.log1p(-s)))
    return with_domain(name, lambda t: t**p, table.log_z, smallest_beta=table.smallest_beta)


def threshold(q: float) -> Transform:
    """The step 1{t >= q}, a reward of 1 for the best 1 - q of the completions; Z = q + (1 - q) e^{1/beta}.

    Args:
      q: a quantile in (0, 1).

    Raises:
      UserError: q is not in (0, 1).

    >>> round(float(threshold(0.8).log_z(0.5)), 4), float(threshold(0.8).apply(0.8))
    (0.8232, 1.0)
    """
    if not 0 < q < 1:
        raise UserError(f"threshold is {q}; it must lie inside (0, 1), such as threshold(0.8)", about="q")
    q = float(q)

    def log_z(beta: Array) -> Array:
        # log1p(sum) is accurate near 0; the other form avoids e^{1/beta} where that would overflow.
        near = 1 / beta < 60
        x = jnp.where(near, 1 / beta, 60.0)
        beta = jnp.where(near, 1 / 60.0, beta)
        return jnp.where(near, jnp.log1p((1 - q) * jnp.expm1(x)), 1 / beta + jnp.log((1 - q) + q * jnp.exp(-1 / beta)))

    def apply(t: Array) -> Array:
        return jnp.where(jnp.isnan(t), t, t >= q)  # NaN is not a quantile below q

    return with_domain(f"threshold({shortest(q)})", apply, log_z, breaks=(q,))


def piecewise_linear(*knots: tuple[float, float]) -> Transform:
    """f through the knots (t_i, f_i), linear between them.

    On a piece of width w from a to b, with middle m = (a + b) / 2 and half rise h = (b - a) / 2, the integral of
    exp(f / beta) is w e^{m/beta} sinh(h/beta) / (h/beta). Z is the sum over the pieces.

    Args:
      knots: pairs (t, f), t rising from 0 to 1. Two knots at the same t are a jump, where f has the later value.

    Raises:
      UserError: fewer than two knots, t that do not rise from 0 to 1, or f that are not finite.

    >>> round(float(piecewise_linear((0, 0), (1, 1)).log_z(0.1)), 4)
    7.6974
    """
    pairs = all(np.shape(knot) == (2,) for knot in knots)
    t, f = np.asarray(knots, float).T if knots and pairs else (np.zeros(0),) * 2
    if len(t) < 2 or t[0] != 0 or t[-1] != 1 or not (np.diff(t) >= 0).all() or not np.isfinite(f).all():
        raise UserError(
            f"knots are {knots}; they must be pairs (t, f), t rising from 0 to 1, f finite, such as "
            "piecewise-linear((0, 0), (0.8, 0.1), (1, 1))",
            about="knots",
        )
    wide = np.diff(t) > 0
    starts, ends = t[:-1][wide], t[1:][wide]
    low, high = f[:-1][wide], f[1:][wide]

    def apply(x: Array) -> Array:
        piece = jnp.clip(jnp.searchsorted(jnp.asarray(starts, x.dtype), x, side="right") - 1, 0, len(starts) - 1)
        a, b, from_, to = (jnp.asarray(v, x.dtype)[piece] for v in (starts, ends, low, high))
        share = (x - a) / (b - a)
        return jnp.where(x >= 1, jnp.asarray(f[-1], x.dtype), from_ * (1 - share) + to * share)

    def log_z(beta: Array) -> Array:
        return log_mean_exp((low + high) / 2, ends - starts, 1 / beta, (high - low) / 2)

    name = "piecewise-linear(" + ", ".join(f"({shortest(a)}, {shortest(b)})" for a, b in zip(t, f, strict=True)) + ")"
    return with_domain(name, apply, log_z, breaks=tuple(float(x) for x in np.unique(t)[1:-1]))


def from_function(
    f: Callable[[Array], Array],
    name: str = "",
    *,
    complement: Callable[[Array], Array] | None = None,
    breaks: tuple[float, ...] = (),
    clamp: str = "none",
) -> Transform:
    """Any f, with log Z by quadrature in the log domain, to a relative error of 1e-6 or less.

    Args:
      f: elementwise and traceable by JAX, finite inside (0, 1).
      name: the name in messages; by default that of the function.
      complement: s -> f(1 - s), for an f that is infinite at 1, near which t has few digits.
      breaks: points inside (0, 1) where f jumps or bends.
      clamp: see `Transform`; needed if f is infinite at 0 or 1 and quantiles come from `quantiles.ecdf`.

    Returns:
      A transform; below its `smallest_beta`, Z is infinite or quadrature does not resolve it.

    Raises:
      UserError: an unknown clamp, an f that is no function, or one that `integrals.tabulate` rejects.

    >>> round(float(from_function(lambda t: jnp.sin(3 * t)).log_z(0.5)), 4)
    1.4728
    """
    name = name or getattr(f, "__name__", "f")
    if clamp not in CLAMPS:
        raise UserError(f"transform {name!r} has clamp {clamp!r}; allowed: {', '.join(CLAMPS)}", about="clamp")
    if not callable(f):
        raise UserError(f"transform {name!r} is {f!r}; it must be a function of quantiles", about="f")
    try:
        table = tabulate(f, complement, breaks)
    except UserError as error:
        raise UserError(f"transform {name!r}: {error.message}", about=error.about) from error
    except Exception as error:
        raise UserError(f"transform {name!r}: {reason(error)}", about="f") from error
    check_traceable(f, name)
    return with_domain(
        name,
        f,
        table.log_z,
        clamp=clamp,
        smallest_beta=table.smallest_beta,
        breaks=tuple(sorted(breaks)),
        complement=complement,
    )


def gaussian(mean: ArrayLike = 0.0, std: ArrayLike = 1.0) -> Transform:
    """mean + std Phi^{-1}(t), with log Z = mean / beta + std^2 / (2 beta^2).

    f(t) is the reward itself if rewards are normal under the reference policy.

    Args:
      mean: [...], in units of f; broadcasts against quantiles and beta.
      std: [...], >= 0, in units of f; broadcasts likewise.

    Raises:
      UserError: a std is below 0, or an argument is not a finite number.

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
    # At unit scale; `scale_by` multiplies it by each prompt's reward spread.
    "scaled-normal-icdf": normal_icdf._replace(name="scaled-normal-icdf", scaled=True),
    "exponential-icdf": exponential_icdf,
    "logit": logit,
}
FAMILIES: transform_names.Families = {
    "power": of_numbers(power),
    "threshold": of_numbers(threshold),
    "piecewise-linear": piecewise_linear,
    "affine": of_numbers(affine, transforms=1),
    "gaussian": of_numbers(gaussian),
}
ALLOWED = (
    f"{', '.join(TRANSFORMS)}, power(p), threshold(q), piecewise-linear((0, f), ..., (1, f)), affine(transform, shift, "
    "scale), gaussian(mean, std), or package.module:function"
)


@lru_cache(maxsize=64)
def parse(text: str) -> Transform:
    """The transform that a config names.

    Args:
      text: a key of `TRANSFORMS`; a family with its numbers, such as "power(0.7)", "threshold(0.8)",
        "piecewise-linear((0, 0), (0.8, 0.1), (1, 1))" or "affine(log, 0.5, 2)"; or "package.module:function", your own
        function, for `from_function`.

    Raises:
      UserError: the text is none of these, or its numbers are not allowed.

    >>> parse("affine(power(2), 0.5, 2)").name
    'affine(power(2), 0.5, 2)'
    """
    if ":" not in text:
        return transform_names.read(text, TRANSFORMS, FAMILIES, ALLOWED)
    target = user_code.imported(text, f"transform is {text!r}; that function cannot be imported", "transform")
    if isinstance(target, Transform):
        check_traceable(target.apply, text)
        return target._replace(name=text)
    try:
        # A bug in f is an error of `from_function`; the guard is for what no bug should do, such as an exit.
        with user_code.guard(f"transform {text!r} failed", "transform"), user_code.Watch() as watch:
            watch.calling(f"transform {text!r}")
            return from_function(target, text)
    except UserError as error:
        raise UserError(error.message, about="transform") from error


def get(name: str, reward_scale: ArrayLike | None = None) -> Transform:
    """The transform of that name with each prompt's scale applied: `parse`, then `scale_by`.

    Args:
      name: see `parse`.
      reward_scale: [...], see `scale_by`; only "scaled-normal-icdf" uses it.

    Raises:
      UserError: unknown name.
      ValueError: "scaled-normal-icdf" without `reward_scale`.

    >>> round(float(get("identity").log_z(0.1)), 4)
    7.6974
    >>> round(float(get("scaled-normal-icdf", reward_scale=0.5).log_z(0.5)), 4)
    0.5
    """
    return scale_by(parse(name), reward_scale)


def published(transform: Transform) -> Transform:
    """The transform with log Z as in the authors' PyTorch code, for comparisons with that code.

    Their log Z of `identity` omits the term log1p(-e^{-1/beta}), which matters from beta = 0.1 up. The other transforms
    are unchanged.

    Args:
      transform: f and its exact log Z.

    >>> round(float(identity.log_z(1.0)), 4), round(float(published(identity).log_z(1.0)), 4)
    (0.5413, 1.0)
    """
    if transform.name != identity.name:
        return transform
    return transform._replace(log_z=lambda beta: jnp.log(beta) + 1 / floating(beta))
