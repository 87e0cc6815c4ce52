"""Laws of the optimum in reward space, against closed forms and an independent quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax import optimum, transforms

POPULATION = ["identity", "log", "square", "sqrt", "normal-icdf"]
BETAS = [0.03, 0.1, 1.0, 7.0]


def grid():
    """Mid-points and weights on (0, 1) in t = z^2 (3 - 2 z), which thins out at both ends."""
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
    """log: N / (N + 1), N = 1 + 1/beta; identity: 1 / (1 - e^{-1/beta}) - beta;
    normal: Phi(1 / (beta sqrt 2)).
    """
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
def test_a_looser_leash_goes_further(name):
    """As beta falls, the KL and the expected quantile grow; for large beta they are 0 and 1/2."""
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
