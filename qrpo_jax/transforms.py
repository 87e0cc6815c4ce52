"""Transforms f of the quantile reward, each with its exact log partition function.

Quantile rewards are uniform on (0, 1) under the reference policy, whatever the reward is, so a transform f fixes the
partition function of the KL-regularised problem (arXiv 2507.08068, section 3): Z(beta) = int_0^1 exp(f(t) / beta) dt.
A `Transform` is the pair of f and log Z. docs/partition_functions.md derives each of them.

1 / beta reaches 10,000, so no formula here exponentiates 1 / beta, and every log Z is accurate in float32 as well.
"""

import ast
import importlib
import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri
from jax.typing import ArrayLike

from qrpo_jax import closed_forms
from qrpo_jax.integrals import log_mean_exp, tabulate

CLAMPS = ("none", "lower", "upper", "both")


class Transform(NamedTuple):
    """A function of the quantile reward and its log partition function.

    Attributes:
      name: how `parse` and configs call it.
      apply: f, elementwise: quantiles [...] in [0, 1] -> transformed rewards [...].
      log_z: log int_0^1 exp(f(t) / beta) dt, elementwise: beta [...] > smallest_beta -> [...]. Raises ValueError for
        a beta that is not; where beta is traced and cannot be looked at, the result is NaN.
      clamp: how quantiles that are estimated from n references are kept where f is finite:
        "none", "lower" ([1/n, 1]), "upper" ([0, (n-1)/n]) or "both"; see `quantiles.clamp`.
      smallest_beta: Z is finite for every beta above it.
      breaks: points inside (0, 1) where f jumps or bends, for quadrature.
      scaled: f is to be multiplied by each prompt's reward spread, see `scale_by`.
      complement: s -> f(1 - s), where f has no bound at 1: next to 1 numbers lie 1e-16 apart, next to 0 1e-300.
      log_z_above: log Z at beta = smallest_beta + its argument, where smallest_beta > 0: next to the smallest beta the
        difference has digits that beta has not.
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
    """Refuses beta for which Z is infinite, unless beta is traced.

    Args:
      beta: [...]
      smallest: Z is finite above it; broadcasts against beta.
      name: of the transform.

    Raises:
      ValueError: some beta is not above `smallest`.

    >>> check_beta([2.0, 0.5], 1.0, "logit")
    Traceback (most recent call last):
    ValueError: transform 'logit' has no finite partition function at beta = 0.5: beta must be above 1
    """
    if isinstance(beta, jax.core.Tracer) or isinstance(smallest, jax.core.Tracer):
        return
    given, least = np.broadcast_arrays(np.asarray(beta, float), np.asarray(smallest, float))
    bad = np.flatnonzero(~(given > least))
    if len(bad):
        raise ValueError(
            f"transform {name!r} has no finite partition function at beta = {given.flat[bad[0]]:g}: "
            f"beta must be above {least.flat[bad[0]]:g}"
        )


def _transform(
    name: str,
    apply: Callable,
    log_z_above: Callable,
    *,
    smallest_beta: float = 0.0,
    complement: Callable | None = None,
    **rest: Any,
) -> Transform:
    """A transform whose log Z takes any number and refuses beta outside its domain.

    `log_z_above` gets beta - smallest_beta, which is beta itself for most.
    """

    def above(room: ArrayLike) -> Array:
        room = _floating(room)
        # A formula may go on to finite numbers where the integral is infinite.
        return log_z_above(jnp.where(room > 0, room, jnp.nan))

    def checked(beta: ArrayLike) -> Array:
        check_beta(beta, smallest_beta, name)
        return above(_room(_floating(beta), smallest_beta))

    return Transform(
        name,
        lambda t: apply(_floating(t)),
        checked,
        smallest_beta=smallest_beta,
        complement=None if complement is None else lambda s: complement(_floating(s)),
        log_z_above=above,
        **rest,
    )


def _floating(x: ArrayLike) -> Array:
    # Multiplying by a Python float keeps floating types and weak types as they are, and turns
    # integers into floats.
    return jnp.asarray(x) * 1.0


def _room(beta: Array, smallest: Any) -> Array:
    """beta - smallest, to the last digit of beta, though `smallest` may have more digits than beta's dtype holds."""
    if isinstance(smallest, jax.core.Tracer):
        return beta - smallest
    leading = np.float32(smallest) if np.ndim(smallest) else float(np.float32(smallest))
    return (beta - leading) - (smallest - leading)


identity = _transform("identity", lambda t: t, closed_forms.with_series(1, closed_forms.identity))
log = _transform("log", jnp.log, closed_forms.log, clamp="lower")
square = _transform("square", jnp.square, closed_forms.with_series(2, closed_forms.square))
sqrt = _transform("sqrt", jnp.sqrt, closed_forms.with_series(0.5, closed_forms.sqrt))
normal_icdf = _transform("normal-icdf", ndtri, closed_forms.normal_icdf, clamp="both", complement=lambda s: -ndtri(s))
exponential_icdf = _transform(
    "exponential-icdf",
    lambda t: -jnp.log1p(-t),
    closed_forms.exponential_icdf,
    clamp="upper",
    smallest_beta=1.0,
    complement=lambda s: -jnp.log(s),
)
logit = _transform(
    "logit",
    jax.scipy.special.logit,
    closed_forms.logit,
    clamp="both",
    smallest_beta=1.0,
    complement=lambda s: -jax.scipy.special.logit(s),
)


def _number(x: float) -> str:
    """x as short as it can be and still be x, so that a name made of it can be parsed again."""
    return f"{x:g}" if float(f"{x:g}") == x else repr(float(x))


@lru_cache(maxsize=64)
def power(p: float) -> Transform:
    """t^p, with Z = 1F1(1/p; 1 + 1/p; 1/beta), the incomplete gamma function of -1 / beta in another guise.

    `identity`, `square` and `sqrt` are the powers 1, 2 and 1/2, with their elementary closed forms. For other p no
    formula is accurate at every beta, and the integral itself is evaluated, to rounding.

    Args:
      p: > 0.

    Raises:
      ValueError: p is not a positive number.

    >>> round(float(power(3).log_z(0.1)), 4)
    6.6789
    """
    if not 0 < p < math.inf:
        raise ValueError(f"power is {p}; it must be positive and finite, such as power(0.7)")
    p = float(p)  # NumPy's numbers would widen float32
    name = f"power({_number(p)})"
    if p in (0.5, 1, 2):
        return {0.5: sqrt, 1: identity, 2: square}[p]._replace(name=name)
    # Next to 1, t^p = exp(p log(1 - s)) keeps the digits that t has lost.
    table = tabulate(lambda t: t**p, lambda s: jnp.exp(p * jnp.log1p(-s)))
    return _transform(name, lambda t: t**p, table.log_z, smallest_beta=table.smallest_beta)


def threshold(q: float) -> Transform:
    """The step 1{t >= q}: a reward of 1 for the best 1 - q, with Z = q + (1 - q) e^{1/beta}.

    Args:
      q: in (0, 1).

    Raises:
      ValueError: q is not in (0, 1).

    >>> round(float(threshold(0.8).log_z(0.5)), 4), float(threshold(0.8).apply(0.8))
    (0.8232, 1.0)
    """
    if not 0 < q < 1:
        raise ValueError(f"threshold is {q}; it must lie inside (0, 1), such as threshold(0.8)")
    q = float(q)

    def log_z(beta: Array) -> Array:
        # log1p(sum) is accurate near 0, and e^{1/beta} is not formed where it would overflow.
        near = 1 / beta < 60
        x = jnp.where(near, 1 / beta, 60.0)
        beta = jnp.where(near, 1 / 60.0, beta)
        return jnp.where(near, jnp.log1p((1 - q) * jnp.expm1(x)), 1 / beta + jnp.log((1 - q) + q * jnp.exp(-1 / beta)))

    def apply(t: Array) -> Array:
        return jnp.where(jnp.isnan(t), t, t >= q)  # NaN is not a quantile below q

    return _transform(f"threshold({_number(q)})", apply, log_z, breaks=(q,))


def piecewise_linear(*knots: tuple[float, float]) -> Transform:
    """f through the knots (t_i, f_i), straight between them.

    A piece of width w from a to b has int exp(f / beta) = w e^{m/beta} sinh(h/beta) / (h/beta), m = (a + b) / 2 its
    middle and h = (b - a) / 2 its half rise; Z is their sum.

    Args:
      knots: t from 0 to 1 in order; a t that stands twice is a jump, and f has the later value there.

    Raises:
      ValueError: fewer than two knots, t that do not run from 0 to 1, or f that are not finite.

    >>> round(float(piecewise_linear((0, 0), (1, 1)).log_z(0.1)), 4)
    7.6974
    """
    shaped = all(np.shape(knot) == (2,) for knot in knots)
    t, f = np.asarray(knots, float).T if knots and shaped else (np.zeros(0),) * 2
    if len(t) < 2 or t[0] != 0 or t[-1] != 1 or not (np.diff(t) >= 0).all() or not np.isfinite(f).all():
        raise ValueError(
            f"knots are {knots}; they must be pairs (t, f), t rising from 0 to 1, f finite, such as "
            "piecewise-linear((0, 0), (0.8, 0.1), (1, 1))"
        )
    parts = np.diff(t) > 0
    starts, ends = t[:-1][parts], t[1:][parts]
    low, high = f[:-1][parts], f[1:][parts]

    def apply(x: Array) -> Array:
        part = jnp.clip(jnp.searchsorted(jnp.asarray(starts, x.dtype), x, side="right") - 1, 0, len(starts) - 1)
        a, b, from_, to = (jnp.asarray(v, x.dtype)[part] for v in (starts, ends, low, high))
        share = (x - a) / (b - a)
        return jnp.where(x >= 1, jnp.asarray(f[-1], x.dtype), from_ * (1 - share) + to * share)

    def log_z(beta: Array) -> Array:
        return log_mean_exp((low + high) / 2, ends - starts, 1 / beta, (high - low) / 2)

    name = "piecewise-linear(" + ", ".join(f"({_number(a)}, {_number(b)})" for a, b in zip(t, f, strict=True)) + ")"
    return _transform(name, apply, log_z, breaks=tuple(float(x) for x in np.unique(t)[1:-1]))


def from_function(
    f: Callable[[Array], Array],
    name: str = "",
    *,
    complement: Callable[[Array], Array] | None = None,
    breaks: tuple[float, ...] = (),
    clamp: str = "none",
) -> Transform:
    """Any f, with log Z by quadrature in the log domain, to 1e-6 relative or better.

    Args:
      f: elementwise and traceable by JAX, finite inside (0, 1).
      name: for messages; f's own by default.
      complement: s -> f(1 - s); worth giving if f is infinite at 1, next to which t has no digits left.
      breaks: points inside (0, 1) where f jumps or bends.
      clamp: see `Transform`; needed where f is infinite at 0 or 1 and quantiles come from `quantiles.ecdf`.

    Returns:
      A transform whose `smallest_beta` is where Z becomes infinite, or is no longer resolved.

    Raises:
      ValueError: see `integrals.tabulate`.

    >>> round(float(from_function(lambda t: jnp.sin(3 * t)).log_z(0.5)), 4)
    1.4728
    """
    name = name or getattr(f, "__name__", "f")
    if clamp not in CLAMPS:
        raise ValueError(f"transform {name!r} has clamp {clamp!r}; allowed: {', '.join(CLAMPS)}")
    if not callable(f):
        raise ValueError(f"transform {name!r} is {f!r}; it must be a function of quantiles")
    try:
        table = tabulate(f, complement, breaks)
    except (ValueError, TypeError) as error:
        raise ValueError(f"transform {name!r}: {str(error).splitlines()[0]}") from error
    return _transform(
        name,
        f,
        table.log_z,
        clamp=clamp,
        smallest_beta=table.smallest_beta,
        breaks=tuple(sorted(breaks)),
        complement=complement,
    )


def affine(transform: Transform, shift: ArrayLike = 0.0, scale: ArrayLike = 1.0) -> Transform:
    """shift + scale f(t), with log Z(beta) = shift / beta + log Z_f(beta / scale).

    Args:
      transform: f.
      shift: added to f; broadcasts against quantiles and beta.
      scale: multiplies f, >= 0; broadcasts likewise and may be traced. 0 (a prompt whose reference
        rewards are all equal) gives the constant `shift`.

    Raises:
      ValueError: a scale below 0, a number that is none or not finite, or a transform scaled by each prompt's spread.

    >>> half = affine(identity, shift=0.25, scale=0.5)
    >>> round(float(half.apply(0.5)), 4), round(float(half.log_z(1.0)), 4)
    (0.5, 0.5104)
    """
    if transform.scaled:
        raise ValueError(f"transform {transform.name!r} differs from prompt to prompt; it cannot be shifted or scaled")
    a, b = _concrete("shift", shift), _concrete("scale", scale)
    known = not isinstance(b, jax.core.Tracer)
    if known and np.any(b < 0):
        raise ValueError(f"scale is {scale}; it must be at least 0 (give a falling f its own transform)")
    named = isinstance(a, float) and isinstance(b, float)
    name = f"affine({transform.name}, {_number(a)}, {_number(b)})" if named else f"affine({transform.name})"

    # beta / 0 would be an infinity with a NaN gradient; exp(0 / beta) integrates to 1 exactly.
    constant = b == 0
    divisor = (b or 1.0) if isinstance(b, float) else (np if known else jnp).where(constant, 1.0, b)

    def image(f: Callable[[ArrayLike], Array]) -> Callable[[ArrayLike], Array]:
        return lambda t: a + b * f(t)

    def above(room: Array, beta: Array) -> Array:
        """log Z, from what beta is above its smallest value by: beta / scale would lose that."""
        if transform.log_z_above is None:
            inner = transform.log_z(jnp.where(constant, transform.smallest_beta + 1.0, beta / divisor))
        else:
            inner = transform.log_z_above(jnp.where(constant, 1.0, room / divisor))
        return a / beta + jnp.where(constant, 0.0, inner)

    def log_z(beta: ArrayLike) -> Array:
        if known:
            check_beta(beta, transform.smallest_beta * b, name)
        beta = _floating(beta)
        return above(_room(beta, transform.smallest_beta * divisor), beta)

    smallest = transform.smallest_beta * (float(np.max(b)) if known else 1.0)
    one_edge = smallest == 0 or isinstance(b, float)
    return transform._replace(
        name=name,
        apply=image(transform.apply),
        log_z=log_z,
        smallest_beta=smallest,
        complement=None if transform.complement is None else image(transform.complement),
        log_z_above=(lambda room: above(_floating(room), smallest + _floating(room))) if one_edge else None,
    )


def _concrete(what: str, given: ArrayLike) -> Any:
    """One number as a Python float, which keeps its digits in every precision asked for later; arrays as NumPy's."""
    if isinstance(given, jax.core.Tracer):
        return given
    values = np.asarray(given)
    if values.dtype.kind not in "biuf" and not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"{what} is {given!r}; it must be a number")
    if values.ndim:
        return values
    if not np.isfinite(values):
        raise ValueError(f"{what} is {given}; it must be finite")
    return float(values)


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
    # Multiplied by each prompt's reward spread, see `scale_by`; this entry is its unit-scale form.
    "scaled-normal-icdf": normal_icdf._replace(name="scaled-normal-icdf", scaled=True),
    "exponential-icdf": exponential_icdf,
    "logit": logit,
}
MAKERS: dict[str, Callable[..., Transform]] = {
    "power": power,
    "threshold": threshold,
    "piecewise-linear": piecewise_linear,
    "affine": affine,
    "gaussian": gaussian,
}
ALLOWED = (
    f"{', '.join(TRANSFORMS)}, power(p), threshold(q), piecewise-linear((0, f), ..., (1, f)), affine(transform, shift, "
    "scale), gaussian(mean, std), or package.module:function"
)


@lru_cache(maxsize=64)
def parse(text: str) -> Transform:
    """The transform that a config names.

    Args:
      text: a key of `TRANSFORMS`; a maker with its numbers, such as "power(0.7)", "threshold(0.8)",
        "piecewise-linear((0, 0), (0.8, 0.1), (1, 1))" or "affine(log, 0.5, 2)"; or "package.module:function", a
        function of yours for `from_function`.

    Raises:
      ValueError: it is none of these, or its numbers are not allowed.

    >>> parse("affine(power(2), 0.5, 2)").name
    'affine(power(2), 0.5, 2)'
    """
    module, colon, function = text.partition(":")
    if colon:
        try:
            found = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise ValueError(f"transform is {text!r}; that function cannot be imported ({error})") from None
        made = found if isinstance(found, Transform) else from_function(found, text)
        return made._replace(name=text)
    try:
        # Names have hyphens, which Python would read as minus.
        tree = ast.parse(re.sub(r"(?<=[a-z])-(?=[a-z])", "_", text.strip()), mode="eval").body
        return _built(tree)
    except (SyntaxError, KeyError, TypeError, RecursionError, MemoryError):
        raise ValueError(f"transform is {text!r}; allowed: {ALLOWED}") from None
    except ValueError as error:
        raise ValueError(f"transform is {text!r}: {error}") from None


def _built(tree: ast.expr) -> Transform:
    """A name or a call of a maker; arguments are transforms and literals."""
    if isinstance(tree, ast.Name):
        return TRANSFORMS[tree.id.replace("_", "-")]
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.keywords:
        made = (_built(a) if isinstance(a, ast.Name | ast.Call) else ast.literal_eval(a) for a in tree.args)
        name, given = tree.func.id.replace("_", "-"), list(made)
        numbers = given[1:] if name == "affine" and given and isinstance(given[0], Transform) else given
        if name != "piecewise-linear" and not all(isinstance(x, int | float) for x in numbers):
            raise TypeError("not a number")
        if name == "affine" and len(numbers) == len(given):
            raise TypeError("affine begins with a transform")
        return MAKERS[name](*given)
    raise TypeError("neither a name nor a call")


def scale_by(transform: Transform, reward_scale: ArrayLike | None) -> Transform:
    """The transform times each prompt's reward spread, if it is one of those; otherwise the transform itself.

    Args:
      transform: f.
      reward_scale: each prompt's std of reference rewards (`quantiles.reward_std`) over its mean across prompts;
        broadcasts against quantiles and beta.

    Raises:
      ValueError: the transform needs `reward_scale` and there is none.
    """
    if not transform.scaled:
        return transform
    if reward_scale is None:
        raise ValueError(
            f"transform {transform.name!r} needs each prompt's std of reference rewards: pass reward_scale"
        )
    return affine(transform._replace(scaled=False), scale=reward_scale)._replace(name=transform.name)


def get(name: str, reward_scale: ArrayLike | None = None) -> Transform:
    """The transform of that name, ready to use: `parse`, then `scale_by`.

    Raises:
      ValueError: unknown name, or "scaled-normal-icdf" without `reward_scale`.

    >>> round(float(get("identity").log_z(0.1)), 4)
    7.6974
    >>> round(float(get("scaled-normal-icdf", reward_scale=0.5).log_z(0.5)), 4)
    0.5
    """
    return scale_by(parse(name), reward_scale)


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
