"""Writes random_partition.json: log Z by quadrature with 60 digits, for random transforms and beta. Needs mpmath.

    python tests/vectors/make_partition.py

The script is independent of qrpo_jax. It integrates Z = int_0^1 exp(f(t) / beta) dt directly, with f relative to its
largest value, over pieces between the points where f jumps or bends and increasingly close to both ends. If f is
infinite at an end, it integrates over L = -log of the distance to that end, or over z = Phi^{-1}(t). Where a closed
form exists, it must agree.
"""

import json
import math
import pathlib
import struct
from collections.abc import Callable

import mpmath as mp
import numpy as np

mp.mp.dps = 60
KEPT = 25
ENDS = [mp.mpf(10) ** -k for k in (60, 40, 25, 16, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1)]
INF = mp.inf


def single(x: float) -> float:
    """The float32 nearest to x, which is exact in both precisions."""
    return struct.unpack("f", struct.pack("f", x))[0]


def moments(f: Callable, beta, breaks=()) -> tuple:
    """log Z, E*[f] and E[f] of a bounded f(t, s), s = 1 - t."""
    beta = mp.mpf(beta)
    cuts = sorted({mp.mpf(b) for b in breaks} | {mp.mpf(0), mp.mpf("0.5"), mp.mpf(1)})
    pieces = []
    for a, b in zip(cuts, cuts[1:], strict=False):
        width = b - a
        # Inwards from either end of the piece, as distances to that end.
        for end, sign in ((a, 1), (b, -1)):
            near = [mp.mpf(0), *(width * e for e in ENDS), width / 2]
            pieces += [(end, sign, low, high) for low, high in zip(near, near[1:], strict=False)]
    at = [(end + sign * d) for end, sign, low, high in pieces for d in (low + (high - low) / 997, high)]
    top = max(f(t, 1 - t) for t in at)

    def integral(g):
        total = mp.mpf(0)
        for end, sign, low, high in pieces:
            total += mp.quad(lambda d, e=end, s=sign: g(f(e + s * d, (1 - e) - s * d)), [low, high])
        return total

    z = integral(lambda v: mp.exp((v - top) / beta))
    first = integral(lambda v: v * mp.exp((v - top) / beta)) / z
    return top / beta + mp.log(z), first, integral(lambda v: v)


def moments_on_line(f: Callable, log_density: Callable, beta, points) -> tuple:
    """The same for f(v), with v on the real line and its log-density for uniform t."""
    beta = mp.mpf(beta)
    middle = [v for v in points if abs(v) != INF]
    top = max(f(v) / beta + log_density(v) for v in middle)
    z = mp.quad(lambda v: mp.exp(f(v) / beta + log_density(v) - top), points)
    first = mp.quad(lambda v: f(v) * mp.exp(f(v) / beta + log_density(v) - top), points) / z
    return top + mp.log(z), first, mp.quad(lambda v: f(v) * mp.exp(log_density(v)), points)


def normal(beta):
    beta = mp.mpf(beta)
    centre, half = 1 / beta, mp.log(2 * mp.pi) / 2
    tilted = [centre + d for d in (-40, -20, -10, -5, -2, 0, 2, 5, 10, 20, 40)]
    log_z, first, _ = moments_on_line(lambda v: v, lambda v: -v * v / 2 - half, beta, tilted)
    assert mp.almosteq(log_z, centre**2 / 2, 1e-50)
    return log_z, first, mp.mpf(0)


def with_tails(f_of_low: Callable, f_of_high: Callable, beta, decay) -> tuple:
    """The same for f infinite at an end: f_of_low(L), L = -log t, for t < 1/2; f_of_high(L), L = -log(1 - t), above.

    decay: the slowest rate at which exp(f / beta - L) falls.
    """
    beta = mp.mpf(beta)
    start = mp.log(2)
    points = [start, *(start + mp.mpf(10) ** k for k in range(-2, 3)), *(k / decay for k in (200, 1000, 5000))]
    points = sorted(p for p in points if p >= start) + [INF]
    z = first = mean = mp.mpf(0)
    for f in (f_of_low, f_of_high):
        z += mp.quad(lambda v, f=f: mp.exp(f(v) / beta - v), points)
        first += mp.quad(lambda v, f=f: f(v) * mp.exp(f(v) / beta - v), points)
        mean += mp.quad(lambda v, f=f: f(v) * mp.exp(-v), points)
    return mp.log(z), first / z, mean


def log1m(v):
    """log(1 - e^{-v})"""
    return mp.log1p(-mp.exp(-v))


def step(q):
    q = mp.mpf(q)
    return lambda t, s: mp.mpf(1) if t >= q else mp.mpf(0)


def polygon(knots):
    def f(t, s):
        # From the last knot left of t; of two knots at the same t, the later one.
        for (a, low), (b, high) in reversed(list(zip(knots, knots[1:], strict=False))):
            if a <= t and a < b:
                a, b, low, high = (mp.mpf(x) for x in (a, b, low, high))
                return low + (high - low) * (t - a) / (b - a)
        raise ValueError(t)

    return f


def number(x: float) -> str:
    return repr(float(x))


# Functions as users would define them; tests/test_integrals.py has the same in JAX.
USER = {
    "sin3": (lambda t, s: mp.sin(3 * t), ()),
    "bump": (lambda t, s: t * s, ()),
    "kink": (lambda t, s: abs(t - mp.mpf(0.3)), (0.3,)),
    "steep": (lambda t, s: mp.tanh(20 * (t - mp.mpf(0.5))), ()),
    "waves": (lambda t, s: mp.cos(40 * t) - 0.5, ()),
    "falling_root": (lambda t, s: -mp.sqrt(t), ()),
    "root_of_rest": (lambda t, s: -mp.sqrt(s), ()),
    "minus_inverse": (lambda t, s: -1 / t if t else mp.mpf("-1e70"), ()),
}
# Infinite at an end: f as a function of -log of the distance to either end.
USER_TAILS = {
    "exponential": (lambda v: -log1m(v), lambda v: v, 1.0),
    "tilted_exponential": (lambda v: -log1m(v) + mp.exp(-v), lambda v: v + 1 - mp.exp(-v), 1.0),
    "half_logit": (lambda v: (-v - log1m(v)) / 2, lambda v: (log1m(v) + v) / 2, 0.5),
    "gumbel": (lambda v: -mp.log(v), lambda v: -mp.log(-log1m(v)), 1.0),
    "root_of_exponential": (lambda v: mp.sqrt(-log1m(v)), lambda v: mp.sqrt(v), 0.0),
    "falling_log": (lambda v: v / 2, lambda v: -log1m(v) / 2, 0.5),
}


def cases(rng: np.random.Generator):
    def betas(count, low=1e-4, high=100.0):
        return [single(math.exp(x)) for x in rng.uniform(math.log(low), math.log(high), count)]

    def above(smallest, count):
        room = [single(smallest * (1 + x)) for x in (1e-4, 1e-3, 1e-2, 0.1)]
        return room + betas(count, 1.02 * smallest, 100)

    plain = []  # (text, smallest beta, beta -> moments)
    for text, f in (("identity", lambda t, s: t), ("square", lambda t, s: t * t), ("sqrt", lambda t, s: mp.sqrt(t))):
        plain.append((text, 0, 10, lambda b, f=f: moments(f, b)))
    for p in [*np.exp(rng.uniform(math.log(0.02), math.log(50), 14)), 3.0, 1e-3, 1e3]:

        def of_power(b, p=float(p)):
            p, b = mp.mpf(p), mp.mpf(b)
            figures = moments(lambda t, s: t**p if t else mp.mpf(0), b)
            known = mp.log(mp.hyp1f1(1 / p, 1 + 1 / p, 1 / b)) if b > 1e-3 else None
            assert known is None or mp.almosteq(figures[0], known, 1e-30), (p, b, figures[0], known)
            return figures

        plain.append((f"power({number(p)})", 0, 5, of_power))
    for q in [*rng.uniform(0, 1, 5), 0.001, 0.999, 1e-6]:

        def of_step(b, q=float(q)):
            figures = moments(step(q), b, (q,))
            known = mp.log(mp.mpf(q) + (1 - mp.mpf(q)) * mp.exp(1 / mp.mpf(b)))
            assert mp.almosteq(figures[0], known, 1e-50)
            return figures

        plain.append((f"threshold({number(q)})", 0, 4, of_step))
    polygons = [((0.0, 0.0), (0.8, 0.1), (1.0, 1.0)), ((0.0, -1.0), (0.25, -0.2), (0.25, 0.3), (0.9, 0.3), (1.0, 0.1))]
    for inner in (1, 2, 3, 5, 7):
        t = [0.0, *sorted(rng.uniform(0, 1, inner)), 1.0]
        polygons.append(tuple((float(a), float(b)) for a, b in zip(t, rng.normal(0, 1, inner + 2), strict=True)))
    for knots in polygons:
        text = "piecewise-linear(" + ", ".join(f"({number(a)}, {number(b)})" for a, b in knots) + ")"
        breaks = tuple(a for a, _ in knots[1:-1])
        plain.append((text, 0, 7, lambda b, k=knots, br=breaks: moments(polygon(k), b, br)))

    def of_exponential(b):
        figures = with_tails(*USER_TAILS["exponential"][:2], b, 1 - 1 / mp.mpf(b))
        assert mp.almosteq(figures[0], mp.log(mp.mpf(b) / (mp.mpf(b) - 1)), 1e-40)
        return figures

    def of_logit(b):
        figures = with_tails(lambda v: -v - log1m(v), lambda v: log1m(v) + v, b, 1 - 1 / mp.mpf(b))
        assert mp.almosteq(figures[0], mp.log(mp.pi / mp.mpf(b) / mp.sin(mp.pi / mp.mpf(b))), 1e-40)
        return figures

    def of_log(b):
        figures = with_tails(lambda v: -v, lambda v: log1m(v), b, mp.mpf(1))
        assert mp.almosteq(figures[0], mp.log(mp.mpf(b) / (mp.mpf(b) + 1)), 1e-40)
        return figures

    plain += [("log", 0, 10, of_log), ("normal-icdf", 0, 10, normal)]
    plain += [("exponential-icdf", 1, 8, of_exponential), ("logit", 1, 8, of_logit)]
    for text, smallest, count, of in plain:
        for beta in above(1, count) if smallest else betas(count):
            yield text, beta, *of(beta)
        # Affine images a + b f; b is a float32 number, so both precisions evaluate the same beta / b.
        shift, scale = single(rng.normal()), single(math.exp(rng.normal(0, 0.7)))
        for beta in betas(2) if not smallest else betas(2, 1.02 * scale, 100):
            log_z, first, mean = of(mp.mpf(beta) / mp.mpf(scale))
            shifted = (mp.mpf(shift) / mp.mpf(beta) + log_z, shift + scale * first, shift + scale * mean)
            yield f"affine({text}, {number(shift)}, {number(scale)})", beta, *shifted

    for name, (f, breaks) in USER.items():
        for beta in betas(7):
            yield f"user:{name}", beta, *moments(f, beta, breaks)
    for name, (low, high, slope) in USER_TAILS.items():
        for beta in [*(above(slope, 0) if slope else []), *betas(6, max(1.02 * slope, 0.05), 100)]:
            decay = 1 - slope / mp.mpf(beta) if slope else mp.mpf(1) / 2
            yield f"user:{name}", beta, *with_tails(low, high, beta, decay)


def main() -> None:
    lines = []
    for text, beta, log_z, first, mean in cases(np.random.default_rng(20250708)):
        slope = -first / mp.mpf(beta) ** 2
        digits = {"log_z": log_z, "slope": slope, "mean": mean}
        row = {"transform": text, "beta": beta, **{k: mp.nstr(v, KEPT) for k, v in digits.items()}}
        lines.append(json.dumps(row))
        print(len(lines), text, beta, row["log_z"], flush=True)
    text = "[\n" + ",\n".join(lines) + "\n]\n"
    (pathlib.Path(__file__).parent / "random_partition.json").write_text(text)


if __name__ == "__main__":
    main()
