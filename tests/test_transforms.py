"""Laws of the transforms: log Z is the log of the integral, at every beta, in both precisions."""

import json
import math
import pathlib
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrpo_jax import transforms
from qrpo_jax.errors import UserError
from tests.helpers.samples import sampled

VECTORS = json.loads((pathlib.Path(__file__).parent / "vectors" / "partition.json").read_text())
NAMES = sorted({case["transform"] for case in VECTORS})
POPULATION = ["identity", "log", "square", "sqrt", "normal-icdf"]

# From mpmath 1.3 with 60 digits, closed forms confirmed by quadrature. None of these betas is in VECTORS; some are on
# either side of beta = 1/2, where a series replaces the closed form.
DIGITS = [
    ("identity", 0.0001, "9990.78965962802381726392803418126254317"),
    ("square", 0.0001, "9990.096562453715414172995175084899052653"),
    ("sqrt", 0.0001, "9991.482706803583429215009932802706432773"),
    ("log", 0.0001, "-9.210440366976516044407298985418407961468"),
    ("identity", 0.00073, "1362.640547674808299695303521447030420163"),
    ("square", 0.00073, "1361.947765827912160577523518964388744649"),
    ("sqrt", 0.00073, "1363.33296458878850163429825021202191557"),
    ("log", 0.00073, "-7.223195757501438670164907010192115402013"),
    ("identity", 0.047, "18.21898806683374078254229776994843271426"),
    ("square", 0.047, "17.55091668416567131995720098523354785545"),
    ("sqrt", 0.047, "18.86399487266914235475853090935210766641"),
    ("log", 0.047, "-3.1035366091604782677737760896489917049"),
    ("identity", 0.44, "1.343012962607368034397429287653830191411"),
    ("square", 0.44, "1.009149518660339704500562815868660312987"),
    ("sqrt", 0.44, "1.642918256478054016615215383019871091087"),
    ("log", 0.44, "-1.185623665657739457563011138796275245624"),
    ("identity", 0.4999, "1.161702026681056754239073008436205404139"),
    ("square", 0.4999, "0.8607596395282901868323832790230347735443"),
    ("sqrt", 0.4999, "1.434085532220478950390671920747771775145"),
    ("identity", 0.5001, "1.161176812541696277213207657224896628781"),
    ("square", 0.5001, "0.8603346278588636478286297333683870008908"),
    ("sqrt", 0.5001, "1.433476256869008083266070751095030942748"),
    ("identity", 1.37, "0.3870654899118680072332835365883428490715"),
    ("square", 1.37, "0.2679920930039849150151704092482530418905"),
    ("sqrt", 1.37, "0.5009188111282042493820200457007005464453"),
    ("log", 1.37, "-0.5480792153070062702530006504240712362579"),
    ("identity", 7.3, "0.06927491373421052654208514970755339196545"),
    ("square", 7.3, "0.04650326260637216602020578734829632883581761"),
    ("sqrt", 7.3, "0.09184225774745826717164225415664229404515"),
    ("identity", 37.0, "0.01354394916949422717377682733018440311242"),
    ("square", 37.0, "0.009041529464604868572018827201709850971107"),
    ("sqrt", 37.0, "0.01803828416484430350255526488348909750653"),
    ("identity", 100.0, "0.005004166663194449955897955267790293199959"),
    ("square", 100.0, "0.003337780596818556329273505405882961156599"),
    ("sqrt", 100.0, "0.006669443209106407912013648741401753167536"),
    ("log", 100.0, "-0.00995033085316808284821535754426074168868"),
]


def transform_of(case: dict) -> transforms.Transform:
    if case["transform"] == "gaussian":
        return transforms.gaussian(case["mu"], case["sigma"])
    return transforms.get(case["transform"])


def worst(rows: list[tuple[float, str]]) -> tuple[float, str]:
    return max(rows, key=lambda row: row[0])


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-9), (False, 2e-6)])
@pytest.mark.parametrize("name", NAMES)
def test_log_z_is_the_log_of_the_integral(name, x64, tolerance):
    """Against every 60-digit quadrature of the vector file."""
    rows = []
    with jax.enable_x64(x64):
        for case in (case for case in VECTORS if case["transform"] == name):
            actual = float(transform_of(case).log_z(jnp.asarray(case["beta"], float)))
            error = abs(actual / float(case["log_z"]) - 1)
            rows.append((error, f"{case}: got {actual}"))
    assert worst(rows)[0] <= tolerance, worst(rows)


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-13), (False, 1e-6)])
def test_log_z_matches_sixty_digits_at_other_betas(x64, tolerance):
    rows = []
    with jax.enable_x64(x64):
        for name, beta, digits in DIGITS:
            actual = float(transforms.get(name).log_z(beta))
            rows.append((abs(actual / float(digits) - 1), f"{name} at beta {beta}: got {actual}"))
    assert worst(rows)[0] <= tolerance, worst(rows)


@pytest.mark.parametrize("name", POPULATION)
def test_float32_log_z_and_slope_agree_with_float64_at_every_beta(name):
    """Both finite from beta 1e-4 to 100; the slope in beta also equals a finite difference."""
    betas = np.geomspace(1e-4, 100, 1201)
    log_z = transforms.get(name).log_z
    both = jax.vmap(jax.value_and_grad(log_z))
    with jax.enable_x64(False):
        single = [np.asarray(a, np.float64) for a in both(jnp.asarray(betas, jnp.float32))]
    with jax.enable_x64(True):
        # At the float32 betas themselves, so that rounding beta does not count as an error of the formula.
        rounded = jnp.asarray(betas.astype(np.float32), float)
        double = [np.asarray(a) for a in both(rounded)]
        width = 1e-5 * rounded
        difference = (log_z(rounded + width) - log_z(rounded - width)) / (2 * width)
        slope_error = np.max(np.abs(np.asarray(difference) / double[1] - 1))
    assert all(np.isfinite(a).all() for a in single + double)
    errors = [np.max(np.abs(s / d - 1)) for s, d in zip(single, double, strict=True)]
    assert errors[0] < 1e-6 and errors[1] < 2e-6, errors
    assert slope_error < 1e-7, slope_error


@pytest.mark.parametrize("name", POPULATION)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(beta=st.floats(0.05, 20))
def test_exp_f_over_beta_minus_log_z_has_mean_one(name, beta):
    """E[exp(f(t) / beta - log Z)] = 1 for uniform t, the definition of Z, by quadrature over t = Phi(z)."""
    z, step = np.linspace(-8, 8, 4001, retstep=True)
    # For normal-icdf the mass is near z = 1 / beta, where t = Phi(z) would round to 1.
    beta = max(beta, 0.5) if name == "normal-icdf" else beta
    transform = transforms.get(name)
    with jax.enable_x64(True):
        t = jax.scipy.stats.norm.cdf(jnp.asarray(z))
        values = jnp.exp(transform.apply(t) / beta - transform.log_z(beta))
        mean = float(jnp.sum(values * jax.scipy.stats.norm.pdf(z)) * step)
    assert abs(mean - 1) < 1e-7, (beta, mean)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(low=st.floats(1e-4, 50), ratio=st.floats(1.01, 10))
def test_beta_log_z_falls_towards_the_mean_of_f(low, ratio):
    """beta log Z, the level of f above which completions gain probability, falls as beta grows."""
    with jax.enable_x64(True):
        for name in POPULATION:
            transform = transforms.get(name)
            at_low, at_high = (float(b * transform.log_z(b)) for b in (low, low * ratio))
            assert at_high < at_low, (name, low, at_low, at_high)


@pytest.mark.parametrize("name", POPULATION)
def test_f_is_increasing(name):
    t = jnp.linspace(0.001, 0.999, 211)
    assert bool(jnp.all(jnp.diff(transforms.get(name).apply(t)) > 0))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shift=st.floats(-2, 2), scale=st.floats(0.1, 3), beta=st.floats(0.01, 20))
def test_gaussian_is_the_affine_image_of_the_normal(shift, scale, beta):
    with jax.enable_x64(True):
        actual = float(transforms.gaussian(shift, scale).log_z(beta))
        expected = shift / beta + scale**2 / (2 * beta**2)
        assert abs(actual - expected) <= 1e-12 * (abs(shift) / beta + scale**2 / beta**2)


def test_scale_may_differ_by_prompt_and_be_zero():
    """A prompt with equal references has a constant transform, with log Z = 0 and finite slopes."""
    scale = jnp.array([0.0, 0.5, 2.0])

    def total(scale, beta):
        transform = transforms.get("scaled-normal-icdf", reward_scale=scale)
        return jnp.sum(transform.log_z(beta) + transform.apply(jnp.full(3, 0.7)))

    log_z = jax.jit(lambda s: transforms.get("scaled-normal-icdf", s).log_z(0.5))(scale)
    np.testing.assert_allclose(log_z, [0.0, 0.5, 8.0], rtol=1e-6)
    slopes = jax.grad(total, argnums=(0, 1))(scale, 0.5)
    assert all(np.isfinite(s).all() for s in slopes), slopes


@pytest.mark.parametrize("name", POPULATION)
def test_dtypes_are_kept(name):
    """float32 stays float32, float64 stays float64, integers become floats."""
    with jax.enable_x64(True):
        transform = transforms.affine(transforms.get(name), 0.5, 2.0)
        single = jnp.asarray([0.3, 0.7], jnp.float32)
        assert transform.apply(single).dtype == transform.log_z(single).dtype == jnp.float32
        assert transform.log_z(jnp.asarray([0.3, 0.7])).dtype == jnp.float64
    assert transforms.get(name).log_z(1) == transforms.get(name).log_z(1.0)


def test_log_z_has_the_shape_of_beta_under_jit_and_vmap():
    betas = jnp.geomspace(1e-3, 10, 35).reshape(5, 7)
    for name in POPULATION:
        log_z = transforms.get(name).log_z
        np.testing.assert_allclose(jax.jit(log_z)(betas), log_z(betas), rtol=1e-6)
        np.testing.assert_array_equal(jax.vmap(jax.vmap(log_z))(betas), log_z(betas))


def test_published_drops_its_term_from_identity_only():
    beta = 0.3
    with jax.enable_x64(True):
        gap = transforms.published(transforms.identity).log_z(beta) - transforms.identity.log_z(beta)
        np.testing.assert_allclose(gap, -np.log1p(-np.exp(-1 / beta)), rtol=1e-12)
    for name in set(POPULATION) - {"identity"}:
        assert transforms.published(transforms.get(name)) is transforms.get(name)


def test_unknown_name_and_missing_scale_are_refused():
    with pytest.raises(ValueError, match=r"'cubic'.*identity.*normal-icdf"):
        transforms.get("cubic")
    with pytest.raises(ValueError, match="reward_scale"):
        transforms.get("scaled-normal-icdf")


EVERY = [
    *POPULATION,
    "exponential-icdf",
    "logit",
    "power(0.07)",
    "power(7.5)",
    "threshold(0.83)",
    "piecewise-linear((0, -1), (0.3, -0.5), (0.3, 0.25), (0.7, 0.1), (1, 0.4))",
    "affine(affine(logit, 0.5, 2), -1, 0.25)",
]


@pytest.mark.parametrize("name", sampled(EVERY, 3))
def test_log_z_takes_every_kind_of_beta(name):
    """Numbers of Python and NumPy, arrays, jit, vmap and grad all give the same values."""
    log_z = transforms.parse(name).log_z
    with jax.enable_x64(True):
        for beta in (3, np.int64(3), 3.0, np.float64(3), np.float32(3), jnp.asarray(3), jnp.asarray(3.0)):
            np.testing.assert_allclose(log_z(beta), log_z(3.0), rtol=1e-6)
            assert jnp.issubdtype(log_z(beta).dtype, jnp.floating) and log_z(beta).shape == ()
        betas = np.array([[1.25, 1.7, 2.0], [5.0, 41.0, 99.0]])
        values, slopes = jax.vmap(jax.vmap(jax.value_and_grad(log_z)))(betas)
        np.testing.assert_allclose(jax.jit(log_z)(betas), values, rtol=1e-13)
        np.testing.assert_allclose(log_z(betas.tolist()), values, rtol=1e-13)
        np.testing.assert_allclose(jax.jit(jax.grad(log_z))(1.7), slopes[0, 1], rtol=1e-12)
        np.testing.assert_allclose(jax.grad(lambda b: jnp.sum(log_z(b)))(betas), slopes, rtol=1e-12)
        width = 1e-5 * betas
        difference = (log_z(betas + width) - log_z(betas - width)) / (2 * width)
        np.testing.assert_allclose(slopes, difference, rtol=1e-7)
        assert log_z(np.float32(3)).dtype == jnp.float32


@pytest.mark.parametrize("name", ["exponential-icdf", "logit", "affine(affine(logit, 0.5, 2), -1, 0.5)"])
def test_below_its_domain_log_z_is_refused_or_nan(name):
    transform = transforms.parse(name)
    assert transform.smallest_beta == 1
    for beta in (1.0, 1, 0.3, 0.0, -2.0, float("nan"), [2.0, 0.9], np.float32(1)):
        with pytest.raises(ValueError, match="no finite partition function.*must be above 1"):
            transform.log_z(beta)
    # Traced numbers cannot be checked; between 1/3 and 1/2 the formula of logit would be finite again.
    assert np.isnan(jax.jit(transform.log_z)(jnp.asarray([1.0, 0.7, 0.45, 0.4, 0.2, 0.0, -3.0]))).all()


def test_every_transform_refuses_a_beta_that_is_not_positive():
    for name in EVERY:
        for beta in (0, -1.0):
            with pytest.raises(ValueError, match=f"beta = {beta:g}"):
                transforms.parse(name).log_z(beta)
        assert np.isnan(jax.jit(transforms.parse(name).log_z)(-1.0)), name


def test_each_scale_has_its_smallest_beta():
    scale = np.array([0.0, 0.5, 2.0])
    transform = transforms.affine(transforms.logit, scale=scale)
    assert transform.smallest_beta == 2
    with pytest.raises(ValueError, match="beta = 1.5: beta must be above 2"):
        transform.log_z(1.5)
    np.testing.assert_allclose(
        transform.log_z(np.array([1e-3, 0.6, 2.5])), [0, *transforms.logit.log_z(np.array([1.2, 1.25]))], rtol=1e-5
    )
    slopes = jax.vmap(jax.grad(lambda b, s: transforms.affine(transforms.logit, 0.0, s).log_z(b)))(
        jnp.array([1e-3, 0.6, 2.5]), jnp.asarray(scale)
    )
    assert np.isfinite(slopes).all()


def test_an_affine_image_is_exact_next_to_its_smallest_beta():
    """affine(f, 0, 3) at beta = 3 (1 + 1e-4) in float32, where beta / 3 - 1 would have lost its digits."""
    for f in (transforms.exponential_icdf, transforms.logit):
        for scale in (3.0, 0.75):
            beta = np.float32(scale * 1.0001)
            with jax.enable_x64(True):
                exact = float(f.log_z(1 + (float(beta) - scale) / scale))
            nested = transforms.affine(transforms.affine(f, 0.0, scale / 0.25), 0.0, 0.25)
            for transform in (transforms.affine(f, 0.0, scale), nested):
                assert float(transform.log_z(jnp.float32(beta))) == pytest.approx(exact, rel=1e-6), transform.name


@pytest.mark.parametrize(
    "text", [*EVERY, "gaussian(0.5, 2)", "power(0.123456789)", "threshold(0.3333333333333333)", "affine(log, 1e-07, 3)"]
)
def test_a_name_can_be_parsed_again(text):
    first = transforms.parse(text)
    if first.name != "gaussian":
        again = transforms.parse(first.name)
        assert again.name == first.name
        assert float(again.log_z(1.5)) == float(first.log_z(1.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "allowed: identity"),
        ("cube", "allowed: identity"),
        ("power", "allowed"),
        ("power(0)", "positive"),
        ("power(-1)", "positive"),
        ("power('a')", "allowed"),
        ("power(p=2)", "allowed"),
        ("power(2)+1", "allowed"),
        ("power(1, 2)", "allowed"),
        ("power(2+3)", "allowed"),
        ("threshold(1)", "inside"),
        ("threshold(0, 1)", "allowed"),
        ("affine(0.5, 1)", "allowed"),
        ("affine()", "allowed"),
        ("affine(identity, 'a')", "allowed"),
        ("affine(identity, (1, 2))", "allowed"),
        ("affine(identity, identity)", "allowed"),
        ("affine(identity, None)", "allowed"),
        ("affine(identity, 0, -1)", "at least 0"),
        ("affine(identity, 1e999)", "finite"),
        ("gaussian(identity)", "allowed"),
        ("gaussian(0, -1)", "at least 0"),
        ("piecewise-linear()", "knots"),
        ("piecewise-linear((0, 0))", "knots"),
        ("piecewise-linear((0, 0), (0.5, 1))", "knots"),
        ("piecewise-linear((0, 0), (0.6, 1), (0.5, 1), (1, 1))", "knots"),
        ("piecewise-linear((0, 0), (1, 1e999))", "knots"),
        ("piecewise-linear(((0, 0), (1, 1)))", "knots"),
        ("piecewise-linear(0, 1)", "knots"),
        ("no_such_module:f", "cannot be imported"),
        ("math:no_such", "cannot be imported"),
        ("..x:y", "cannot be imported"),
        (":", "cannot be imported"),
        ("math:pi", "must be a function"),
        ("math:sin", "math:sin"),
        ("(" * 300, "allowed"),
    ],
)
def test_texts_that_name_no_transform_are_refused_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as error:
        transforms.parse(text)
    assert "\n" not in str(error.value) and error.value.about == ("transform",)


@pytest.mark.parametrize(
    ("call", "about"),
    [
        (lambda: transforms.get("cubic"), ("transform",)),
        (lambda: transforms.power(-0.5), ("p",)),
        (lambda: transforms.threshold(1.5), ("q",)),
        (lambda: transforms.piecewise_linear((0, 0)), ("knots",)),
        (lambda: transforms.affine(transforms.log, scale=-1), ("scale",)),
        (lambda: transforms.affine(transforms.log, shift=float("inf")), ("shift",)),
        (lambda: transforms.from_function(jnp.square, clamp="top"), ("clamp",)),
        (lambda: transforms.from_function(jnp.square, breaks=(2.0,)), ("breaks",)),
        (lambda: transforms.from_function(jnp.sum), ("f",)),
        (lambda: transforms.logit.log_z(0.7), ("transform", "beta")),
        (lambda: transforms.log.log_z(-1.0), ("beta",)),
    ],
)
def test_a_mistake_names_the_argument_at_fault(call, about):
    with pytest.raises(UserError) as error:
        call()
    assert error.value.about == about, error.value


def test_numbers_of_numpy_do_not_widen_float32():
    with jax.enable_x64(True):
        t, beta = jnp.float32(0.3), jnp.float32(0.5)
        for transform in (transforms.power(np.float64(0.65)), transforms.threshold(np.float64(0.7))):
            assert transform.apply(t).dtype == transform.log_z(beta).dtype == jnp.float32, transform.name


def test_steps_and_knots_take_their_values():
    """At a repeated knot f has the later value, at the ends too; NaN stays NaN."""
    f = transforms.piecewise_linear((0, -1), (0, 0), (0.5, 1), (0.5, 3), (1, 2), (1, 7)).apply
    np.testing.assert_allclose(f(jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])), [0, 0.5, 3, 2.5, 7])
    for name in ("piecewise-linear((0, 0), (1, 1))", "threshold(0.5)", "power(3)"):
        assert np.isnan(transforms.parse(name).apply(jnp.nan)), name
    with pytest.raises(ValueError, match="knots"):
        transforms.piecewise_linear((0, 0), (float("nan"), 1), (1, 1))


@pytest.mark.parametrize(
    "name", ["normal-icdf", "exponential-icdf", "logit", "affine(logit, 0.5, 2)", "gaussian(1, 3)"]
)
def test_complements_are_f_at_one_minus_s(name):
    transform = transforms.parse(name)
    with jax.enable_x64(True):
        s = jnp.array([1e-9, 0.01, 0.3, 0.5, 0.9])
        np.testing.assert_allclose(transform.complement(s), transform.apply(1 - s), rtol=1e-6, atol=1e-12)
        assert np.isfinite(transform.complement(1e-250))


def affine_logit(beta: float, shift: float, scale: float) -> float:
    """shift / beta + log(pi x / sin(pi x)), x = scale / beta, with 1 - x as a fraction, which does not cancel."""
    rest = float((Fraction(beta) - Fraction(scale)) / Fraction(beta))
    return shift / beta + math.log(math.pi * scale / beta / math.sin(math.pi * rest))


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-9), (False, 2e-6)])
def test_affine_keeps_the_digits_of_shift_and_scale_beyond_float32(x64, tolerance):
    """Although it is built without float64; also next to the smallest beta, which is no float32 number either."""
    shift, scale = -1.4543, 10.409195860329845
    transform = transforms.affine(transforms.logit, shift, scale)
    edge = float(np.nextafter(np.float32(scale), np.float32(np.inf)))
    for beta in (edge, scale * (1 + 1e-4), 23.7):
        with jax.enable_x64(x64):
            rounded = jnp.asarray(beta)
            actual, beta = float(transform.log_z(rounded)), float(rounded)
        expected = affine_logit(beta, shift, scale)
        assert abs(actual / expected - 1) < tolerance, (beta, actual, expected)


def test_a_transform_scaled_by_prompt_cannot_be_shifted():
    """The prompt's spread would multiply the shift too."""
    with pytest.raises(ValueError, match="differs from prompt to prompt; it cannot be shifted or scaled"):
        transforms.parse("affine(scaled-normal-icdf, 1, 1)")


def test_an_unknown_clamp_is_refused():
    with pytest.raises(ValueError, match="has clamp 'top'; allowed: none, lower, upper, both"):
        transforms.from_function(jnp.square, clamp="top")
