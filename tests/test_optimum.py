"""Laws of the optimum, against closed forms and an independent quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax import optimum, transforms
from qrpo_jax.errors import UserError
from tests.helpers.samples import sampled

POPULATION = ["identity", "log", "square", "sqrt", "normal-icdf"]
BETAS = [0.03, 0.1, 1.0, 7.0]


def grid():
    """Mid-points and weights on (0, 1) in t = z^2 (3 - 2 z), denser at both ends."""
    z = (np.arange(100_000) + 0.5) / 100_000
    return z * z * (3 - 2 * z), 6 * z * (1 - z) / 100_000


def test_figure_5_identity_at_beta_one_tenth_crosses_at_77_percent():
    assert float(optimum.crossing_share(0.1, transforms.identity)) == pytest.approx(0.7697, abs=5e-5)


@pytest.mark.parametrize("name", POPULATION)
def test_density_is_one_at_the_crossing_and_increasing(name):
    transform = transforms.get(name)
    with jax.enable_x64(True):
        betas = jnp.asarray([0.2, 0.5, 2.0, 20.0])
        crossing = optimum.crossing_share(betas, transform)
        np.testing.assert_allclose(optimum.density(crossing, betas, transform), 1, rtol=1e-9)
        t = jnp.linspace(0.01, 0.99, 101)
        assert bool(jnp.all(jnp.diff(optimum.density(t, 0.5, transform)) > 0))


def test_normal_crossing_is_the_normal_cdf_of_half_the_inverse_beta():
    """Phi^{-1}(t) <= beta / (2 beta^2)."""
    with jax.enable_x64(True):
        actual = optimum.crossing_share(0.5, transforms.normal_icdf)
        np.testing.assert_allclose(actual, jax.scipy.stats.norm.cdf(1.0), rtol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("name", ["identity", "log", "square", "sqrt"])
def test_kl_and_expected_quantile_are_their_integrals(name, beta):
    transform = transforms.get(name)
    with jax.enable_x64(True):
        t, weights = grid()
        p = optimum.density(t, beta, transform)
        # p log p is 0 where p underflows, as it does for `log` near t = 0.
        entropy = jnp.log(jnp.where(p > 0, p, 1))
        mass, mean, kl = (float(jnp.sum(weights * p * x)) for x in (1.0, t, entropy))
        assert mass == pytest.approx(1, abs=1e-8)
        assert float(optimum.expected_quantile(beta, transform)) == pytest.approx(mean, abs=1e-8)
        assert float(optimum.kl(beta, transform)) == pytest.approx(kl, rel=1e-6)


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize("beta", [1e-3, 0.1, 1.0, 20.0])
def test_expected_quantiles_with_closed_forms(beta, x64):
    """log: N / (N + 1), N = 1 + 1/beta; identity: 1 / (1 - e^{-1/beta}) - beta; normal: Phi(1 / (beta sqrt 2))."""
    expected = {
        "log": (1 + 1 / beta) / (2 + 1 / beta),
        "identity": -1 / np.expm1(-1 / beta) - beta,
        "normal-icdf": float(jax.scipy.stats.norm.cdf(1 / (beta * np.sqrt(2)))),
    }
    with jax.enable_x64(x64):
        for name, quantile in expected.items():
            actual = float(optimum.expected_quantile(beta, transforms.get(name)))
            assert actual == pytest.approx(quantile, abs=1e-7 if x64 else 1e-5), name


@pytest.mark.parametrize("beta", [0.05, 0.5, 1.0, 10.0])
def test_log_is_best_of_n_with_n_one_plus_inverse_beta(beta):
    """Density N t^(N-1), effective N, and KL = log N - (N - 1) / N."""
    n = 1 + 1 / beta
    with jax.enable_x64(True):
        quantile = optimum.expected_quantile(beta, transforms.log)
        assert float(optimum.effective_n(quantile)) == pytest.approx(n, rel=1e-9)
        assert float(optimum.kl(beta, transforms.log)) == pytest.approx(np.log(n) - (n - 1) / n)
        t = np.linspace(0.1, 0.9, 5)
        actual = optimum.density(t, beta, transforms.log)
        np.testing.assert_allclose(actual, n * t ** (n - 1), rtol=1e-10)


def test_kl_of_the_normal_is_half_the_squared_shift():
    """Tilting N(0, 1) by e^{z/beta} shifts it by 1/beta."""
    with jax.enable_x64(True):
        betas = jnp.asarray([0.01, 0.3, 5.0])
        np.testing.assert_allclose(optimum.kl(betas, transforms.normal_icdf), 0.5 / betas**2, rtol=1e-10)


@pytest.mark.parametrize("name", POPULATION)
def test_kl_and_expected_quantile_grow_as_beta_falls(name):
    """For large beta they are 0 and 1/2."""
    transform = transforms.get(name)
    with jax.enable_x64(True):
        betas = jnp.geomspace(0.2, 1000, 17)
        kl = optimum.kl(betas, transform)
        quantile = jax.jit(jax.vmap(lambda b: optimum.expected_quantile(b, transform)))(betas)
        assert bool(jnp.all(jnp.diff(kl) < 0)) and bool(jnp.all(jnp.diff(quantile) < 0))
        assert float(kl[-1]) < 1e-6 and float(quantile[-1]) == pytest.approx(0.5, abs=1e-3)


def test_everything_runs_under_jit_and_grad():
    def figures(beta):
        quantile = optimum.expected_quantile(beta, transforms.square)
        level = optimum.density(0.7, beta, transforms.square)
        return quantile + level + optimum.kl(beta, transforms.square)

    assert np.isfinite(jax.jit(jax.grad(figures))(0.3))
    with pytest.raises(ValueError, match="vmap over betas"):
        optimum.expected_quantile(jnp.ones(3), transforms.identity)


# With closed forms, by quadrature, with jumps, unbounded below, unbounded at 1; all non-decreasing.
EVERY = [
    "identity",
    "log",
    "square",
    "sqrt",
    "normal-icdf",
    "exponential-icdf",
    "logit",
    "power(0.7)",
    "power(7.5)",
    "threshold(0.8)",
    "piecewise-linear((0, 0), (0.8, 0.1), (1, 1))",
    "piecewise-linear((0, -1), (0.3, -0.5), (0.3, 0.1), (0.7, 0.1), (1, 0.4))",
    "affine(log, 0.5, 2)",
]


def fine_grid(transform, ends=1.0):
    """Mid-points and weights on (0, ends), dense at 0, 1 and the breaks."""
    z = (np.arange(20_000) + 0.5) / 20_000 * 2 - 1
    cuts = [0.0, *(b for b in transform.breaks if b < ends), ends]
    t, weights = [], []
    for a, b in zip(cuts, cuts[1:], strict=False):
        u = 7 * z
        share = 1 / (1 + np.exp(-2 * np.sinh(u) / 10))
        slope = share * (1 - share) * 2 * np.cosh(u) / 10 * 7 * 2 / 20_000
        t.append(np.clip(a + (b - a) * share, np.nextafter(a, 1), np.nextafter(b, 0)))
        weights.append((b - a) * slope)
    return np.concatenate(t), np.concatenate(weights)


@pytest.mark.parametrize("name", sampled(EVERY, 3))
def test_density_cdf_and_kl_agree_with_a_plain_sum(name):
    """int p = 1, cdf = int_0^t p, KL = int p log p, E t = int t p, as mid-point sums on an independent grid."""
    transform = transforms.parse(name)
    betas = [1.5, 7.0] if transform.smallest_beta else [0.6, 3.0] if name == "normal-icdf" else [0.02, 0.3, 5.0]
    with jax.enable_x64(True):
        for beta in betas:
            t, weights = fine_grid(transform)
            p = np.asarray(optimum.density(t, beta, transform))
            # 1 - t is at least 1e-16; at beta = 1.5 exponential-icdf has a mass of (1e-16)^(1/3) = 5e-6 beyond.
            close = 2e-5 if transform.smallest_beta else 1e-8
            assert weights @ p == pytest.approx(1, abs=close), beta
            kl = weights @ np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0)
            assert float(optimum.kl(beta, transform)) == pytest.approx(kl, rel=30 * close, abs=1e-9), beta
            quantile = float(optimum.expected_quantile(beta, transform))
            assert quantile == pytest.approx(weights @ (p * t), abs=close), beta
            levels = np.array([0.05, 0.3, 0.5, 0.69, 0.8, 0.83, 0.97])
            got = np.asarray(optimum.cdf(levels, beta, transform))
            for level, value in zip(levels, got, strict=True):
                t, weights = fine_grid(transform, level)
                assert value == pytest.approx(weights @ np.asarray(optimum.density(t, beta, transform)), abs=1e-9)
            assert (np.diff(got) >= 0).all()
            assert float(optimum.cdf(0.0, beta, transform)) == 0 and float(optimum.cdf(1.0, beta, transform)) == 1


@pytest.mark.parametrize("name", sampled(EVERY[1:] + EVERY[:1], 3))
def test_beta_for_is_the_inverse_of_every_figure(name):
    transform = transforms.parse(name)
    with jax.enable_x64(True):
        for figure in (optimum.kl, optimum.expected_quantile, optimum.best_of_n):
            for above in (0.11, 1.7):
                beta = transform.smallest_beta + above
                root = optimum.beta_for(figure, float(figure(beta, transform)), transform)
                # 1e-6, because a figure close to its limit hardly depends on beta.
                assert root == pytest.approx(beta, rel=1e-6), (figure.__name__, beta)


def test_unreachable_figures_are_refused():
    """All mass above a threshold q is the limit: KL < -log(1 - q), E t < (1 + q) / 2, N < (1 + q) / (1 - q)."""
    step = transforms.threshold(0.8)
    for figure, most in ((optimum.kl, -np.log(0.2)), (optimum.expected_quantile, 0.9), (optimum.best_of_n, 9)):
        with jax.enable_x64(True):
            beta = optimum.beta_for(figure, most * 0.99, step)
            assert float(figure(beta, step)) == pytest.approx(most * 0.99, rel=1e-9)
        for value in (most + 1e-9, most * 1.01, 1e9):
            with pytest.raises(UserError, match=rf"'threshold\(0.8\)'.*{figure.__name__}.*between") as error:
                optimum.beta_for(figure, value, step)
            assert error.value.about == ("value",)
    for figure, value in (
        (optimum.kl, 0.0),
        (optimum.kl, -1),
        (optimum.expected_quantile, 0.5),
        (optimum.best_of_n, 1),
    ):
        with pytest.raises(ValueError, match="between"):
            optimum.beta_for(figure, value, transforms.identity)
    with pytest.raises(ValueError, match="between"):
        optimum.beta_for(optimum.kl, float("nan"), transforms.identity)


def test_log_is_best_of_n_at_every_beta():
    """Effective N of `log` is 1 + 1 / beta within 1e-9, from beta 1e-4 to 100."""
    with jax.enable_x64(True):
        betas = jnp.geomspace(1e-4, 100, 41)
        n = jax.jit(jax.vmap(lambda beta: optimum.best_of_n(beta, transforms.log)))(betas)
        np.testing.assert_allclose(n, 1 + 1 / betas, rtol=1e-9)
        roots = [optimum.beta_for(optimum.best_of_n, 1 + 1 / beta, transforms.log) for beta in (1e-3, 0.1, 10.0)]
        np.testing.assert_allclose(roots, [1e-3, 0.1, 10.0], rtol=1e-9)


@pytest.mark.parametrize("beta", [0.03, 0.1, 0.5, 2.0])
def test_best_of_n_of_the_normal_reaches_far_into_the_tail(beta):
    """E*[1 - t] = Phi(-1 / (beta sqrt 2)), 3e-124 at beta = 0.03."""
    with jax.enable_x64(True):
        missing = float(jax.scipy.stats.norm.cdf(-1 / (beta * np.sqrt(2))))
        n = float(optimum.best_of_n(beta, transforms.normal_icdf))
        assert n == pytest.approx((1 - missing) / missing, rel=1e-9)
    with jax.enable_x64(True):
        for room in (1e-4, 0.01, 1.0):  # s = 1 - t has density (1 - x) s^{-x}, x = 1 / beta
            n = float(optimum.best_of_n(1 + room, transforms.exponential_icdf))
            x = 1 / (1 + room)
            assert n == pytest.approx(1 / (1 - x), rel=1e-9)


def test_expected_reward_has_its_closed_forms():
    """Normal rewards shift by sigma / beta, uniform rewards follow E t, exponential rewards have rate 1 - 1 / beta."""
    norm = jax.scipy.stats.norm
    with jax.enable_x64(True):
        for beta in (0.1, 0.4, 2.0):
            shifted = optimum.expected_reward(
                beta,
                transforms.normal_icdf,
                lambda r: norm.cdf((r - 3) / 2),
                (-80.0, 80.0),
                lambda r: norm.cdf((3 - r) / 2),
            )
            assert float(shifted) == pytest.approx(3 + 2 / beta, rel=1e-9)
        half = optimum.expected_reward(0.5, transforms.normal_icdf, lambda r: norm.cdf((r - 3) / 2), (-80.0, 80.0))
        assert float(half) == pytest.approx(7, rel=1e-6)
        # Nearly all of the optimum is where the cdf rounds to 1: NaN rather than a wrong figure.
        assert np.isnan(optimum.expected_reward(0.1, transforms.normal_icdf, norm.cdf, (-40.0, 40.0)))
        for name in EVERY:
            transform = transforms.parse(name)
            beta = 0.3 + transform.smallest_beta
            uniform = optimum.expected_reward(beta, transform, lambda r: (r + 5) / 10, (-5.0, 5.0))
            expected = 10 * float(optimum.expected_quantile(beta, transform)) - 5
            assert float(uniform) == pytest.approx(expected, abs=1e-9), name
        slower = optimum.expected_reward(
            1.5, transforms.exponential_icdf, lambda r: -jnp.expm1(-r), (0.0, 650.0), lambda r: jnp.exp(-r)
        )
        assert float(slower) == pytest.approx(3, rel=1e-9)


def test_reward_density_of_three_reward_distributions():
    norm = jax.scipy.stats.norm
    r = np.linspace(-2, 9, 45)
    with jax.enable_x64(True):
        for beta in (0.25, 1.0):
            plain = optimum.reward_density(r, beta, transforms.normal_icdf, norm.cdf)
            exact = optimum.reward_density(r, beta, transforms.normal_icdf, norm.cdf, lambda x: norm.cdf(-x))
            expected = norm.pdf(r, loc=1 / beta)
            np.testing.assert_allclose(exact, expected, rtol=1e-10)
            np.testing.assert_allclose(np.asarray(plain)[r < 5], expected[r < 5], rtol=1e-5)
        # Exponential rewards under exponential-icdf have rate 1 - 1 / beta; uniform rewards have density p.
        grown = optimum.reward_density(
            np.abs(r), 2.0, transforms.exponential_icdf, lambda x: -jnp.expm1(-x), lambda x: jnp.exp(-x)
        )
        np.testing.assert_allclose(grown[r != 0], 0.5 * np.exp(-0.5 * np.abs(r[r != 0])), rtol=1e-10)
        for name in EVERY:
            transform = transforms.parse(name)
            beta = 0.5 + transform.smallest_beta
            of_uniform = optimum.reward_density(
                np.array([-6.0, -4.9, 0.7, 4.2, 7.0]), beta, transform, lambda x: jnp.clip((x + 5) / 10, 0, 1)
            )
            within = np.asarray(optimum.density(np.array([0.01, 0.57, 0.92]), beta, transform)) / 10
            np.testing.assert_allclose(of_uniform, [0, *within, 0], rtol=1e-9)


def test_crossing_of_a_step_is_its_quantile_and_a_beta_without_z_is_refused():
    with jax.enable_x64(True):
        np.testing.assert_allclose(optimum.crossing_share(0.3, transforms.threshold(0.8)), 0.8, rtol=1e-12)
        assert float(optimum.crossing_level(0.1, transforms.identity)) == pytest.approx(0.7697, abs=5e-5)
        for figure in (optimum.kl, optimum.expected_quantile, optimum.best_of_n, optimum.crossing_level):
            with pytest.raises(ValueError, match="beta = 0.9: beta must be above 1"):
                figure(0.9, transforms.logit)


def test_every_figure_has_a_finite_slope_in_beta():
    for name in ("log", "normal-icdf", "logit", "power(0.7)", EVERY[-2]):
        transform = transforms.parse(name)
        beta = transform.smallest_beta + 0.4

        def figures(beta, transform=transform):
            return jnp.stack(
                [
                    optimum.kl(beta, transform),
                    optimum.expected_quantile(beta, transform),
                    optimum.best_of_n(beta, transform),
                    optimum.cdf(0.7, beta, transform),
                    optimum.crossing_level(beta, transform),
                ]
            )

        with jax.enable_x64(True):
            slope = jax.jit(jax.jacfwd(figures))(beta)
            difference = (figures(beta + 1e-5) - figures(beta - 1e-5)) / 2e-5
            np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-7, err_msg=name)
