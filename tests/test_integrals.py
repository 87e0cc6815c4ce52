"""log Z against quadrature with 60 digits, for random transforms of every kind, and the limits of the quadrature."""

import collections
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import ndtri

from qrpo_jax import integrals, transforms
from tests.helpers.samples import sampled

ROWS = json.loads((pathlib.Path(__file__).parent / "vectors" / "random_partition.json").read_text())
BY_KIND = collections.defaultdict(list)
for row in ROWS:
    head, _, rest = row["transform"].partition("(")
    BY_KIND[f"affine({rest.split('(')[0].split(',')[0]})" if head == "affine" else head].append(row)

# The functions of tests/vectors/make_partition.py, in t and, where precision requires it, in s = 1 - t.
USER = {
    "sin3": (lambda t: jnp.sin(3 * t), {}),
    "bump": (lambda t: t * (1 - t), {}),
    "kink": (lambda t: jnp.abs(t - 0.3), {"breaks": (0.3,)}),
    "steep": (lambda t: jnp.tanh(20 * (t - 0.5)), {}),
    "waves": (lambda t: jnp.cos(40 * t) - 0.5, {}),
    "falling_root": (lambda t: -jnp.sqrt(t), {}),
    "root_of_rest": (lambda t: -jnp.sqrt(1 - t), {}),
    "minus_inverse": (lambda t: -1 / t, {}),
    "exponential": (lambda t: -jnp.log1p(-t), {}),
    "tilted_exponential": (lambda t: -jnp.log1p(-t) + t, {}),
    "half_logit": (lambda t: 0.5 * jnp.log(t / (1 - t)), {"complement": lambda s: 0.5 * jnp.log((1 - s) / s)}),
    "gumbel": (lambda t: -jnp.log(-jnp.log(t)), {}),
    "root_of_exponential": (lambda t: jnp.sqrt(-jnp.log1p(-t)), {"complement": lambda s: jnp.sqrt(-jnp.log(s))}),
    "falling_log": (lambda t: -0.5 * jnp.log(t), {}),
}
ONE_SIGN = {"identity", "square", "sqrt", "log", "power", "threshold", "normal-icdf", "exponential-icdf", "logit"}
CACHE: dict[str, transforms.Transform] = {}


def transform_of(text):
    if text not in CACHE:
        if text.startswith("user:"):
            name = text.removeprefix("user:")
            f, options = USER[name]
            CACHE[text] = transforms.from_function(f, name, **options)
        else:
            CACHE[text] = transforms.parse(text)
    return CACHE[text]


@pytest.mark.parametrize("kind, x64", sampled(itertools.product(sorted(BY_KIND), [True, False]), 3))
def test_log_z_and_its_slope_match_sixty_digits(kind, x64):
    """At every beta of the file; these are float32 numbers, so rounding beta does not count as an error of the formula.

    For an f of both signs every formula computes log Z = E f / beta + (log Z - E f / beta), the second term >= 0, and
    near a zero of log Z the error is that of these terms. Tolerances are therefore relative to |log Z| + |E f| / beta,
    or to |log Z| alone if f has one sign or log Z a closed form. A slope adds the rounding of this sum over beta.
    """
    tolerance, slope_tolerance = (1e-9, 1e-8) if x64 else (1e-6, 3e-6)
    worst, worst_slope = (0.0, ""), (0.0, "")
    by_text = collections.defaultdict(list)
    for row in BY_KIND[kind]:
        by_text[row["transform"]].append(row)
    with jax.enable_x64(x64):
        for text, rows in by_text.items():
            transform = transform_of(text)
            beta, log_z, slope, mean = (
                np.array([float(row[k]) for row in rows]) for k in ("beta", "log_z", "slope", "mean")
            )
            # One shape for the betas of all transforms, so that operations are compiled once.
            padded = jnp.asarray(np.resize(beta, 16), float)
            size = np.abs(log_z) + (0 if kind in ONE_SIGN else np.abs(mean) / beta)
            got, got_slope = jax.vmap(jax.value_and_grad(transform.log_z))(padded)
            got, got_slope = np.asarray(got, float)[: beta.size], np.asarray(got_slope, float)[: beta.size]
            error = np.abs(got - log_z) / size
            slope_error = np.abs(got_slope - slope) / (np.abs(slope) + size / beta)
            bad = ~(np.isfinite(error) & np.isfinite(slope_error))
            assert not bad.any(), (text, beta[bad])
            i, j = error.argmax(), slope_error.argmax()
            worst = max(worst, (error[i], f"{text} at beta {beta[i]}: {got[i]}, not {log_z[i]}"))
            worst_slope = max(worst_slope, (slope_error[j], f"{text} at {beta[j]}: {got_slope[j]}, not {slope[j]}"))
    print(kind, worst, worst_slope)
    assert worst[0] <= tolerance, worst
    assert worst_slope[0] <= slope_tolerance, worst_slope


def test_the_file_covers_every_kind_and_the_whole_range_of_beta():
    kinds = {"identity", "square", "sqrt", "log", "normal-icdf", "exponential-icdf", "logit", "power", "threshold"}
    assert kinds | {"piecewise-linear"} | {f"user:{name}" for name in USER} <= set(BY_KIND)
    assert {f"affine({kind})" for kind in kinds | {"piecewise-linear"}} <= set(BY_KIND)
    betas = np.array([row["beta"] for row in ROWS])
    assert len(ROWS) > 400 and betas.min() < 2e-4 and betas.max() > 90
    assert all(np.float32(beta) == beta for beta in betas)


@pytest.mark.parametrize("x64", [True, False])
def test_log_mean_exp_takes_any_size_of_exponent(x64):
    """Against the form with the largest term factored out, or cumulants where that cancels; weight 0 hides NaN."""
    values = np.array([-3.0, 0.5, 0.5, 2.0, np.nan])
    weights = np.array([0.1, 0.2, 0.3, 0.4, 0.0])
    with jax.enable_x64(x64):
        for x in (1e-9, 1e-3, 0.3, 2.0, 9.0, 1e4):
            # log(0.4) + 2 x + log1p(the smaller terms), or the first cumulants for tiny x.
            rest = 0.5 / 0.4 * np.exp(-1.5 * x) + 0.1 / 0.4 * np.exp(-5 * x)
            expected = np.log(0.4) + 2 * x + np.log1p(rest)
            if x < 1e-2:
                mean, second = 0.75, 0.1 * 9 + 0.5 * 0.25 + 0.4 * 4
                third = -0.1 * 27 + 0.5 * 0.125 + 0.4 * 8
                cumulant = third - 3 * mean * second + 2 * mean**3
                expected = mean * x + (second - mean**2) * x**2 / 2 + cumulant * x**3 / 6
            got, slope = jax.value_and_grad(
                lambda x: integrals.log_mean_exp(jnp.asarray(values), jnp.asarray(weights), x)
            )(jnp.asarray(x, float))
            assert float(got) == pytest.approx(expected, rel=1e-9 if x64 else 1e-6), x
            assert np.isfinite(slope)


@pytest.mark.parametrize(
    ("f", "complement"),
    [
        (lambda t: 1 / (1 - t), None),
        (lambda t: jnp.square(jnp.log1p(-t)), None),
        (lambda t: 1 / t, None),
        (lambda t: 1 / jnp.sqrt(1 - t), lambda s: 1 / jnp.sqrt(s)),
        (lambda t: (-jnp.log1p(-t)) ** 1.5, lambda s: (-jnp.log(s)) ** 1.5),
        (lambda t: (-jnp.log1p(-t)) ** 1.5, None),
        (lambda t: (-jnp.log(t)) ** 1.1, None),
        (lambda t: -jnp.log(t) * jnp.log1p(-jnp.log(t)), None),
    ],
)
def test_an_integral_infinite_at_every_beta_is_refused(f, complement):
    with pytest.raises(ValueError, match="infinite"):
        integrals.tabulate(f, complement)


@pytest.mark.parametrize(
    ("f", "smallest"),
    [
        (lambda t: -3 * jnp.log1p(-t), 3),
        (lambda t: -0.25 * jnp.log(t), 0.25),
        (lambda t: jnp.log(t) - 2 * jnp.log1p(-t), 2),
        (lambda t: jnp.log1p(-t) - 0.5 * jnp.log(t), 0.5),
    ],
)
def test_the_smallest_beta_of_a_function_is_detected_and_reported(f, smallest):
    transform = transforms.from_function(f, "mine")
    assert transform.smallest_beta == pytest.approx(smallest, rel=1e-6)
    with pytest.raises(ValueError, match=rf"'mine'.*beta = {0.9 * smallest:g}.*above {smallest:g}"):
        transform.log_z(0.9 * smallest)
    assert np.isfinite(transform.log_z(1.01 * smallest))
    assert not np.isfinite(jax.jit(transform.log_z)(0.9 * smallest))


def test_an_unresolved_jump_is_refused_and_breaks_resolve_it():
    def jump(t):
        return jnp.where(t < 0.37, 0.0, t)

    with pytest.raises(ValueError, match="breaks"):
        transforms.from_function(jump)
    resolved = transforms.from_function(jump, breaks=(0.37,))
    knots = transforms.piecewise_linear((0, 0), (0.37, 0), (0.37, 0.37), (1, 1))
    with jax.enable_x64(True):
        betas = jnp.geomspace(1e-4, 100, 31)
        np.testing.assert_allclose(resolved.log_z(betas), knots.log_z(betas), rtol=1e-12)
    for breaks in ((0.0,), (1.0,), (0.5, 0.5), (float("nan"),)):
        with pytest.raises(ValueError, match="inside"):
            transforms.from_function(jump, breaks=breaks)


def test_invalid_functions_are_refused_in_one_line():
    for f, message in (
        (lambda t: 1.0, "elementwise"),
        (lambda t: jnp.sum(t), "elementwise"),
        (lambda t: jnp.where(jnp.abs(t - 0.5) < 0.1, jnp.nan, t), "not finite"),
        (3.0, "function"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            transforms.from_function(f, "mine")
        assert "mine" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "f, complement, same",
    sampled(
        [
            (jnp.log, None, transforms.log),
            (jnp.sqrt, None, transforms.sqrt),
            (ndtri, lambda s: -ndtri(s), transforms.normal_icdf),
            (lambda t: t, None, transforms.identity),
            (jax.scipy.special.logit, None, transforms.logit),
        ],
        4,
    ),
)
def test_a_function_agrees_with_the_closed_form_of_the_same_f(f, complement, same):
    """Within 1e-6 in both precisions, from the smallest resolved beta up."""
    mine = transforms.from_function(f, complement=complement)
    for x64 in (True, False):
        with jax.enable_x64(x64):
            betas = jnp.geomspace(max(1e-4, 1.01 * mine.smallest_beta), 100, 41)
            np.testing.assert_allclose(mine.log_z(betas), same.log_z(betas), rtol=1e-7 if x64 else 1e-6)
    assert same is not transforms.logit or mine.smallest_beta == 1, mine.smallest_beta
