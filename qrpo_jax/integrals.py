"""Logarithms of mean exponentials, log E[exp(f / beta)]: as sums over atoms, and as integrals over (0, 1).

Every log Z that has no closed form is one of these, the constants of finite samples included.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import Array
from jax.lax import broadcast_to_rank
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

# Where all exponents lie below this, Z - 1 is summed from positive terms, which keeps log Z exact near 0 too.
_SMALL = 8.0

# Double-exponential quadrature (Takahasi and Mori 1974): t = sigmoid(pi sinh u), nodes evenly spaced in u.
# At |u| = 6.08 the distance to an end of (0, 1) is 1e-299.
_REACH = 6.08
_NODES = 385
_MOST_NODES = 12_289  # a piece
_SCANNED = 2_001  # evenly spaced points, among which tops and bottoms of f are looked for
_EXTREMA = 16  # of each kind
_GOLDEN = (math.sqrt(5) - 1) / 2
_PROBED = np.geomspace(1e-4, 100, 49)  # beta
_TOLERANCE = 1e-6  # relative, of log Z


def log_mean_exp(values: Any, weights: Any, inverse_beta: ArrayLike, halves: Any = None) -> Array:
    """log sum_i w_i exp(f_i / beta), accurate relative to itself for large and for small beta.

    Args:
      values: [N], f_i; differences are taken in its own precision, so float64 NumPy arrays keep theirs.
      weights: [N], w_i >= 0, adding up to 1; a value of weight 0 is never looked at.
      inverse_beta: [...], 1 / beta >= 0; decides shape and dtype of the result.
      halves: [N], if f is not constant but rises linearly from f_i - h_i to f_i + h_i over the i-th part of the
        unit interval: then exp(f_i / beta) becomes its mean there, exp(f_i / beta) sinh(h_i / beta) / (h_i / beta).

    Returns:
      [...]
    """
    xp: Any = np if isinstance(values, np.ndarray) else jnp
    halves = xp.zeros_like(values) if halves is None else xp.abs(halves)
    counted = weights > 0
    mean = xp.sum(xp.where(counted, weights * values, 0))
    top = xp.max(xp.where(counted, values + halves, -xp.inf))
    centred = xp.where(counted, values - mean, 0)
    below = xp.where(counted, values + halves - top, 0)
    log_weights = xp.where(counted, xp.log(xp.where(counted, weights, 1)), -xp.inf)

    x = jnp.asarray(inverse_beta)[..., None] * 1.0
    weights, halves, centred, below, log_weights = (
        broadcast_to_rank(jnp.asarray(a).astype(x.dtype), x.ndim)
        for a in (weights, halves, centred, below, log_weights)
    )
    mean, top = (jnp.asarray(a).astype(x.dtype) for a in (mean, top))
    return _log_mean_exp(x, weights, halves, centred, below, log_weights, mean, top)


@jax.jit  # for those who call it outside of a program of their own, many times with tables of one shape
def _log_mean_exp(
    x: Array,
    weights: Array,
    halves: Array,
    centred: Array,
    below: Array,
    log_weights: Array,
    mean: Array,
    top: Array,
) -> Array:
    """x [..., 1]; mean and top []; the others [..., N]. Differences are taken; all have the dtype of the result."""
    small = jnp.max(x * (centred + halves) + log_weights, axis=-1, keepdims=True) <= _SMALL
    # Each branch sees only exponents it is made for: an overflow in the one not taken would make the gradient NaN.
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
    far = x[..., 0] * top + logsumexp(log_weights + x * below + _log_sinhc_minus_h(x * halves), axis=-1)
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
    """log(sinh(h) / h) - h for h >= 0, which never overflows."""
    near, far = jnp.minimum(h, 1.0), jnp.maximum(h, 1.0)
    return jnp.where(h < 1, jnp.log1p(_sinhc_minus_one(near)) - near, jnp.log(-jnp.expm1(-2 * far) / (2 * far)))


class Tail(NamedTuple):
    """What f does between the last node and an end of (0, 1) where it is infinite: value + slope (L - depth).

    L = -log of the distance to the end. This part of the integral is exp(value / beta - depth) / (1 - slope / beta).
    """

    value: float
    depth: float
    slope: float
    linear: bool  # f does rise so; otherwise this part is only known to be about as large


class Table(NamedTuple):
    """A function f on (0, 1) as quadrature sees it: int g(f) = (1 - cut) sum_i w_i g(f_i) + tails, float64 [N]."""

    values: np.ndarray
    weights: np.ndarray  # adding up to 1
    cut: float = 0.0  # the parts of (0, 1) next to its ends that are left to the tails
    tails: tuple[Tail, ...] = ()
    smallest_beta: float = 0.0  # log Z is finite and resolved above it

    def log_z(self, room: ArrayLike) -> Array:
        """log int_0^1 exp(f(t) / beta) dt at beta = smallest_beta + room, [...] -> [...]; infinite where a tail is."""
        room = jnp.asarray(room) * 1.0
        inverse = 1 / (self.smallest_beta + room)
        body = log_mean_exp(self.values, self.weights, inverse) + math.log1p(-self.cut)
        for tail in self.tails:
            # 1 - slope / beta would lose its digits where it is close to 0, and so would value / beta - depth.
            left = (room + (self.smallest_beta - tail.slope)) * inverse
            start = inverse * (tail.value - tail.slope * tail.depth) - tail.depth * left
            rest = start - jnp.log(jnp.where(left > 0, left, 1.0))
            body = jnp.where(left > 0, jnp.logaddexp(body, rest), jnp.inf)
        return body


def tabulate(
    f: Callable[[Array], Array], complement: Callable[[Array], Array] | None = None, breaks: tuple[float, ...] = ()
) -> Table:
    """Quadrature of exp(f / beta) over (0, 1), for all beta at once and as fine as f needs it.

    Args:
      f: elementwise and traceable by JAX, finite inside (0, 1).
      complement: s -> f(1 - s), for f without a bound at 1: next to 1 numbers lie 1e-16 apart, next to 0 1e-300.
      breaks: points inside (0, 1) where f jumps or bends.

    Raises:
      ValueError: f is not finite inside (0, 1) or not elementwise, or the integral is infinite or not resolved even
        at beta = 100.

    >>> round(float(tabulate(lambda t: t).log_z(0.1)), 4)
    7.6974
    """
    if not all(0 < x < 1 for x in breaks) or len(set(breaks)) < len(breaks):
        raise ValueError(f"breaks are {breaks}; they must be different points inside (0, 1)")
    with jax.enable_x64(True), jax.ensure_compile_time_eval():

        def evaluate(t: np.ndarray, s: np.ndarray) -> np.ndarray:
            """f at t = 1 - s, from whichever of the two is small and therefore exact."""
            values = np.asarray(f(jnp.asarray(t)), np.float64)
            if values.shape != t.shape:
                raise ValueError(f"f must be elementwise; it made shape {values.shape} of {t.shape}")
            if complement is not None:
                values = np.where(t > 0.5, np.asarray(complement(jnp.asarray(s)), np.float64), values)
            return values

        low_cut, low_tail = _end(lambda s: evaluate(s, 1 - s), exact=True)
        high_cut, high_tail = _end(lambda s: evaluate(1 - s, s), exact=complement is not None)
        tails = tuple(tail for tail in (low_tail, high_tail) if tail is not None)
        least = max((0.0, *(tail.slope for tail in tails if tail.linear)))
        needed = least * (1 + _TOLERANCE) < _PROBED
        pieces = _with_extrema(evaluate, breaks)
        nodes = _NODES
        fine = Table(*_nodes(evaluate, low_cut, high_cut, pieces, nodes), low_cut + high_cut, tails)
        unresolved = needed
        while unresolved.any() and nodes < _MOST_NODES:
            nodes, coarse = 2 * nodes - 1, fine
            fine = Table(*_nodes(evaluate, low_cut, high_cut, pieces, nodes), low_cut + high_cut, tails)
            unresolved = needed & ~_resolved(coarse, fine)
    if unresolved[-1]:
        raise ValueError(
            "the integral of exp(f / beta) is infinite, or not resolved, even at beta = 100: name the points where f "
            "jumps or bends as breaks, or give f near 1 as complement"
        )
    smallest = float(_PROBED[np.flatnonzero(unresolved)[-1] + 1]) if unresolved.any() else least
    return fine._replace(smallest_beta=smallest)


def _end(near: Callable[[np.ndarray], np.ndarray], exact: bool) -> tuple[float, Tail | None]:
    """How far from an end of (0, 1) the nodes stop (0: they need not), and what f does beyond if it grows there.

    Args:
      near: f as a function of the distance s to the end.
      exact: near the end s keeps its digits, which 1 - t does not.
    """
    limit = near(np.zeros(1))[0]
    if np.isfinite(limit):
        return 0.0, None

    def tail(bits: int) -> Tail:
        # Powers of 2: their distance to 1 is a number too. More digits are lost beyond the deepest of them.
        gap = bits // 10
        value, middle, outer = near(0.5 ** np.array([bits, bits - gap, bits - 2.0 * gap]))
        slope, before = (value - middle) / (gap * math.log(2)), (middle - outer) / (gap * math.log(2))
        if slope > 1.1 * before > 0:
            raise ValueError("the integral of exp(f / beta) is infinite for every beta: f grows too fast at an end")
        linear = abs(slope - before) < (1e-9 if exact else 1e-6) * abs(slope)
        # Rounding aside, slopes such as 1 are 1: the smallest beta is told by it.
        return Tail(float(value), bits * math.log(2), round(float(slope), 12 if exact else 7), bool(linear))

    # Where f goes on as a straight line in L the rest is known, and nodes may stop early.
    bits = 60 if exact else 30
    found = tail(bits)
    if not found.linear:
        bits = 960 if exact else 52
        _refuse_faster_than_lines(near, bits)
        found = tail(bits)._replace(linear=False)
    # Where f falls in another way, what is left out is less than the cut.
    return 0.5**bits, found if found.linear or found.slope > 0 else None


def _refuse_faster_than_lines(near: Callable[[np.ndarray], np.ndarray], bits: int) -> None:
    """Refuses f whose slope against L goes on growing, such as L^1.5 or L log L: exp(f / beta - L) then explodes.

    Each time that L doubles, a slope with a limit, such as that of L - log L, grows by less than the time before.

    Raises:
      ValueError: exp(f / beta) has no integral at any beta.
    """
    doubled = near(0.5 ** (bits / 2.0 ** np.arange(5)))[::-1]
    slopes = np.diff(doubled) / 2.0 ** np.arange(4)
    before, growth = np.diff(slopes)[-2:]
    if growth > 0.9 * before > 1e-6 * abs(slopes[-1]):
        raise ValueError("the integral of exp(f / beta) is infinite for every beta: f grows too fast at an end")


def _with_extrema(
    evaluate: Callable[[np.ndarray, np.ndarray], np.ndarray], breaks: tuple[float, ...]
) -> tuple[float, ...]:
    """The breaks, and the points between them where f has its highest tops and lowest bottoms.

    At small beta all of Z comes from within sqrt(beta) of a top. Nodes crowd at the ends of a piece, so a top that is
    an end is resolved at every beta.
    """
    t = np.unique(np.concatenate([np.linspace(0, 1, _SCANNED)[1:-1], breaks]))
    f = evaluate(t, 1 - t)
    with np.errstate(invalid="ignore"):  # what is not finite is refused later
        noise = 1e-9 * np.ptp(f)
        found = []
        for sign in (1, -1):
            left, right = sign * (f[1:-1] - f[:-2]), sign * (f[1:-1] - f[2:])
            at = 1 + np.flatnonzero((left >= 0) & (right >= 0) & (left + right > noise))
            at = at[np.argsort(-sign * f[at])][:_EXTREMA]
            low, high = t[at - 1], t[at + 1]
            for _ in range(60):  # golden section
                a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
                rising = sign * evaluate(a, 1 - a) < sign * evaluate(b, 1 - b)
                low, high = np.where(rising, a, low), np.where(rising, high, b)
            found.append((low + high) / 2)
    extrema = np.concatenate(found)
    apart = np.abs(extrema[:, None] - np.array([0.0, *breaks, 1.0])).min(axis=1) > 1e-9
    return (*breaks, *(float(x) for x in np.unique(extrema[apart])))


def _nodes(
    evaluate: Callable[[np.ndarray, np.ndarray], np.ndarray],
    low_cut: float,
    high_cut: float,
    breaks: tuple[float, ...],
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Values and weights of `count` nodes in each piece of (0, 1) between two breaks."""
    ends = [0.0, *sorted(breaks), 1.0]
    u, step = np.linspace(-_REACH, _REACH, count, retstep=True)
    stretched = np.pi * np.sinh(u)
    share, rest = np.exp(-np.logaddexp(0, -stretched)), np.exp(-np.logaddexp(0, stretched))
    slope = step * np.pi * np.cosh(u) * share * rest
    values, weights = [], []
    for i, (a, b) in enumerate(itertools.pairwise(ends)):
        before, after = (low_cut if i == 0 else 0.0), (high_cut if i == len(ends) - 2 else 0.0)
        width = (b - a) - before - after
        t, s = a + before + width * share, (1 - b) + after + width * rest
        # Rounding may put a node onto a break, where f may have another value.
        t = np.clip(t, np.nextafter(a, 1) if i else t, np.nextafter(b, 0) if b < 1 else t)
        values.append(evaluate(t, s))
        weights.append(width * slope)
    f, w = np.concatenate(values), np.concatenate(weights)
    f, w = f[w > 0], w[w > 0]
    if not np.isfinite(f).all():
        raise ValueError("f is not finite inside (0, 1)")
    # Where f falls without a bound, numbers such as -1e299 would overflow; exp(f / beta) is 0 long before.
    order = np.argsort(f)
    rare = f[order[np.searchsorted(np.cumsum(w[order]), 1e-12)]]
    return np.maximum(f, min(rare, f.max() - 1e6)), w / w.sum()


def _resolved(coarse: Table, fine: Table) -> np.ndarray:
    """At which of the probed beta twice the nodes and the unknown part of the tails change nothing, bool."""
    known = fine._replace(tails=tuple(tail for tail in fine.tails if tail.linear))
    log_z, *others = (_probe(table) for table in (fine, coarse, known))
    with np.errstate(invalid="ignore"):  # infinite is not resolved
        near = [np.abs(log_z - other) <= _TOLERANCE / 10 * np.abs(log_z) for other in others]
    return np.isfinite(log_z) & np.logical_and(*near)


def _probe(table: Table) -> np.ndarray:
    """log Z at the probed beta, to the digits that `_resolved` asks for: without compiling anything."""
    x = 1 / _PROBED
    exponents, w = x[:, None] * table.values, table.weights
    # Where Z is close to 1, Z - 1 has digits that Z has not.
    excess = np.expm1(np.minimum(exponents, 1)) @ w
    near = (exponents.max(axis=1) <= 1) & (excess > -0.5)
    far = scipy.special.logsumexp(exponents + np.log(w), axis=1)
    log_z = np.where(near, np.log1p(np.where(near, excess, 0)), far) + math.log1p(-table.cut)
    for tail in table.tails:
        left = 1 - x * tail.slope
        rest = x * tail.value - tail.depth - np.log(np.where(left > 0, left, 1))
        log_z = np.where(left > 0, np.logaddexp(log_z, rest), np.inf)
    return log_z
