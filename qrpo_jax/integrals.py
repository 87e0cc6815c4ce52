"""log int_0^1 exp(f(t) / beta) dt by double-exponential quadrature, for every beta at once.

Nodes and weights follow Takahasi and Mori (1974): t = sigmoid(pi sinh u), nodes evenly spaced in u.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import Array
from jax.typing import ArrayLike

from qrpo_jax.errors import UserError
from qrpo_jax.exponential_sums import log_mean_exp

_REACH = 6.08  # largest |u|; the distance of t to an end of (0, 1) is then 1e-299
_NODES = 385
_MOST_NODES = 12_289  # of a piece
_SCANNED = 2_001  # evenly spaced points, among which extrema of f are located
_EXTREMA = 16  # maxima, and as many minima
_GOLDEN = (math.sqrt(5) - 1) / 2
_PROBED = np.geomspace(1e-4, 100, 49)  # beta
_TOLERANCE = 1e-6  # relative, of log Z


class Tail(NamedTuple):
    """f between the last node and an end of (0, 1) where f is infinite: value + slope (L - depth).

    L = -log of the distance to the end. This part of the integral is exp(value / beta - depth) / (1 - slope / beta).

    Attributes:
      value: f at the last node.
      depth: L at the last node.
      slope: df / dL.
      linear: True if f is linear in L; if False, the formula gives only the size of this part.
    """

    value: float
    depth: float
    slope: float
    linear: bool


class Table(NamedTuple):
    """Quadrature of a function f on (0, 1): int g(f) = (1 - cut) sum_i w_i g(f_i) + tails.

    Attributes:
      values: [N] float64, f_i.
      weights: [N] float64, w_i, with sum 1.
      cut: total width of the parts of (0, 1) next to its ends that the tails cover.
      tails: these parts.
      smallest_beta: log Z is finite, and resolved by the nodes, for every beta above it.
    """

    values: np.ndarray
    weights: np.ndarray
    cut: float = 0.0
    tails: tuple[Tail, ...] = ()
    smallest_beta: float = 0.0

    def log_z(self, room: ArrayLike) -> Array:
        """log int_0^1 exp(f(t) / beta) dt at beta = smallest_beta + room.

        Args:
          room: [...], > 0.

        Returns:
          [...]; infinite where a tail has an infinite integral.
        """
        room = jnp.asarray(room) * 1.0
        inverse = 1 / (self.smallest_beta + room)
        body = log_mean_exp(self.values, self.weights, inverse) + math.log1p(-self.cut)
        for tail in self.tails:
            # Close to the smallest beta, 1 - slope / beta and value / beta - depth would lose their digits.
            left = (room + (self.smallest_beta - tail.slope)) * inverse
            start = inverse * (tail.value - tail.slope * tail.depth) - tail.depth * left
            rest = start - jnp.log(jnp.where(left > 0, left, 1.0))
            body = jnp.where(left > 0, jnp.logaddexp(body, rest), jnp.inf)
        return body


def tabulate(
    f: Callable[[Array], Array], complement: Callable[[Array], Array] | None = None, breaks: tuple[float, ...] = ()
) -> Table:
    """Quadrature of exp(f / beta) over (0, 1) for all beta at once, with as many nodes as f needs.

    Args:
      f: elementwise and traceable by JAX, finite inside (0, 1).
      complement: s -> f(1 - s), for an f that is unbounded at 1: float64 resolves 1e-300 near 0 but only 1e-16 near 1.
      breaks: points inside (0, 1) where f jumps or bends.

    Returns:
      Nodes, tails and the smallest beta.

    Raises:
      UserError: f is not finite inside (0, 1) or not elementwise, or even at beta = 100 the integral is infinite or
        not resolved.

    >>> round(float(tabulate(lambda t: t).log_z(0.1)), 4)
    7.6974
    """
    if not all(0 < x < 1 for x in breaks) or len(set(breaks)) < len(breaks):
        raise UserError(f"breaks are {breaks}; they must be different points inside (0, 1)", about="breaks")
    with jax.enable_x64(True), jax.ensure_compile_time_eval():

        def evaluate(t: np.ndarray, s: np.ndarray) -> np.ndarray:
            """f at t = 1 - s, computed from the smaller of t and s, which is exact."""
            values = np.asarray(f(jnp.asarray(t)), np.float64)
            if values.shape != t.shape:
                message = f"f must be elementwise; it returned shape {values.shape} for shape {t.shape}"
                raise UserError(message, about="f")
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
        raise UserError(
            "the integral of exp(f / beta) is infinite, or not resolved, even at beta = 100: pass the points where f "
            "jumps or bends as breaks, or f near 1 as complement",
            about="f",
        )
    smallest = float(_PROBED[np.flatnonzero(unresolved)[-1] + 1]) if unresolved.any() else least
    return fine._replace(smallest_beta=smallest)


def _end(near: Callable[[np.ndarray], np.ndarray], exact: bool) -> tuple[float, Tail | None]:
    """The distance between the nodes and an end of (0, 1), and the tail of f beyond them.

    Args:
      near: f as a function of the distance s to the end.
      exact: True if f is computed from s, False if from 1 - s, which loses digits near the end.

    Returns:
      The distance, 0 where f is finite at the end; and the tail, None where f is finite or falls without one.
    """
    limit = near(np.zeros(1))[0]
    if np.isfinite(limit):
        return 0.0, None

    def tail(bits: int) -> Tail:
        # The distance of a power of 2 to 1 is exact too. Beyond the deepest of these, more digits are lost.
        gap = bits // 10
        value, middle, outer = near(0.5 ** np.array([bits, bits - gap, bits - 2.0 * gap]))
        slope, before = (value - middle) / (gap * math.log(2)), (middle - outer) / (gap * math.log(2))
        if slope > 1.1 * before > 0:
            raise _infinite()
        linear = abs(slope - before) < (1e-9 if exact else 1e-6) * abs(slope)
        # Round the slope, so that a true 1 is exactly 1: smallest_beta is derived from it.
        return Tail(float(value), bits * math.log(2), round(float(slope), 12 if exact else 7), bool(linear))

    # A tail that is linear in L is known exactly, so nodes may stop early.
    bits = 60 if exact else 30
    end = tail(bits)
    if not end.linear:
        bits = 960 if exact else 52
        _check_growth(near, bits)
        end = tail(bits)._replace(linear=False)
    # Where f falls nonlinearly, the omitted part is smaller than the cut.
    return 0.5**bits, end if end.linear or end.slope > 0 else None


def _infinite() -> UserError:
    message = "the integral of exp(f / beta) is infinite for every beta: f grows too fast at an end"
    return UserError(message, about="f")


def _check_growth(near: Callable[[np.ndarray], np.ndarray], bits: int) -> None:
    """Rejects f that grows faster than linearly in L, such as L^1.5 or L log L, so that exp(f / beta - L) diverges.

    Each doubling of L increases a slope that has a limit, such as that of L - log L, by less than the doubling before.

    Raises:
      UserError: exp(f / beta) has no integral at any beta.
    """
    doubled = near(0.5 ** (bits / 2.0 ** np.arange(5)))[::-1]
    slopes = np.diff(doubled) / 2.0 ** np.arange(4)
    before, growth = np.diff(slopes)[-2:]
    if growth > 0.9 * before > 1e-6 * abs(slopes[-1]):
        raise _infinite()


def _with_extrema(
    evaluate: Callable[[np.ndarray, np.ndarray], np.ndarray], breaks: tuple[float, ...]
) -> tuple[float, ...]:
    """The breaks, and between them the highest maxima and the lowest minima of f.

    At small beta all of Z comes from within sqrt(beta) of a maximum. Nodes are dense at the ends of a piece, so a
    maximum at an end is resolved at every beta.
    """
    t = np.unique(np.concatenate([np.linspace(0, 1, _SCANNED)[1:-1], breaks]))
    f = evaluate(t, 1 - t)
    with np.errstate(invalid="ignore"):  # `_nodes` rejects values that are not finite
        noise = 1e-9 * np.ptp(f)
        points = []
        for sign in (1, -1):
            left, right = sign * (f[1:-1] - f[:-2]), sign * (f[1:-1] - f[2:])
            at = 1 + np.flatnonzero((left >= 0) & (right >= 0) & (left + right > noise))
            at = at[np.argsort(-sign * f[at])][:_EXTREMA]
            low, high = t[at - 1], t[at + 1]
            for _ in range(60):  # golden section
                a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
                rising = sign * evaluate(a, 1 - a) < sign * evaluate(b, 1 - b)
                low, high = np.where(rising, a, low), np.where(rising, high, b)
            points.append((low + high) / 2)
    extrema = np.concatenate(points)
    apart = np.abs(extrema[:, None] - np.array([0.0, *breaks, 1.0])).min(axis=1) > 1e-9
    return (*breaks, *(float(x) for x in np.unique(extrema[apart])))


def _nodes(
    evaluate: Callable[[np.ndarray, np.ndarray], np.ndarray],
    low_cut: float,
    high_cut: float,
    breaks: tuple[float, ...],
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Values and weights of `count` nodes in each piece of (0, 1) between two breaks, [N] each."""
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
        # Rounding may move a node onto a break, where f may jump.
        t = np.clip(t, np.nextafter(a, 1) if i else t, np.nextafter(b, 0) if b < 1 else t)
        values.append(evaluate(t, s))
        weights.append(width * slope)
    f, w = np.concatenate(values), np.concatenate(weights)
    f, w = f[w > 0], w[w > 0]
    if not np.isfinite(f).all():
        raise UserError("f is not finite inside (0, 1)", about="f")
    # An f that falls without bound may reach -1e299, which would overflow; exp(f / beta) is 0 long before.
    order = np.argsort(f)
    rare = f[order[np.searchsorted(np.cumsum(w[order]), 1e-12)]]
    return np.maximum(f, min(rare, f.max() - 1e6)), w / w.sum()


def _resolved(coarse: Table, fine: Table) -> np.ndarray:
    """For each probed beta, whether log Z is stable under fewer nodes and under dropping the nonlinear tails, bool."""
    known = fine._replace(tails=tuple(tail for tail in fine.tails if tail.linear))
    log_z, *others = (_probe(table) for table in (fine, coarse, known))
    with np.errstate(invalid="ignore"):  # an infinite log Z is not resolved
        near = [np.abs(log_z - other) <= _TOLERANCE / 10 * np.abs(log_z) for other in others]
    return np.isfinite(log_z) & np.logical_and(*near)


def _probe(table: Table) -> np.ndarray:
    """log Z at the probed beta, to the digits that `_resolved` needs; in NumPy, because compilation would be slow."""
    x = 1 / _PROBED
    exponents, w = x[:, None] * table.values, table.weights
    # Where Z is close to 1, Z - 1 has digits that Z has lost.
    excess = np.expm1(np.minimum(exponents, 1)) @ w
    near = (exponents.max(axis=1) <= 1) & (excess > -0.5)
    far = scipy.special.logsumexp(exponents + np.log(w), axis=1)
    log_z = np.where(near, np.log1p(np.where(near, excess, 0)), far) + math.log1p(-table.cut)
    for tail in table.tails:
        left = 1 - x * tail.slope
        rest = x * tail.value - tail.depth - np.log(np.where(left > 0, left, 1))
        log_z = np.where(left > 0, np.logaddexp(log_z, rest), np.inf)
    return log_z
