"""E[exp(f(R_q) / beta - log Z)] = 1 under the reference policy exactly where `partition` claims it.

For rewards of few grades every (n + 1)-tuple is enumerated; for continuous rewards enumerating ranks is enough; Monte
Carlo adds prompts, masks and completions that are their own references.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax import partition, quantiles, transforms
from qrpo_jax.errors import UserError
from tests.helpers.samples import sampled

GRADES = np.array([0.0, 1.0, 2.0, 3.0])
SHARES = np.array([0.45, 0.1, 0.3, 0.15])
CASES = [("identity", 0.1), ("normal-icdf", 0.5), ("log", 0.3)]
KINDS = list(itertools.product(quantiles.ESTIMATORS, quantiles.TIES, partition.PARTITIONS))


def holds(ties, kind, tied):
    """Whether the mean is exactly 1, by the table of qrpo_jax/partition.py."""
    return {"population": False, "finite_sample": not tied or ties == "random", "empirical": True}[kind]


def mean_ratio(transform, beta, rewards, references, estimator, ties, kind, key=None):
    """exp(f(R_q) / beta - log Z) of each row: rewards [P], references [P, N] -> [P].

    With ties="random" and no key, the mean over the possible places of a tied reward.
    """

    def one(reward, row, key):
        log_z = partition.log_z(kind, transform, beta, reward, row, estimator=estimator, ties=ties)
        if ties == "random" and key is None:
            below, tied = jnp.sum(row < reward), jnp.sum(row == reward)
            places = jnp.arange(row.size + 1)
            counted = (places >= below) & (places <= below + tied)
            quantile = quantiles.of_rank(places, row.size, estimator, transform.clamp)
            ratios = jnp.exp(transform.apply(quantile) / beta - log_z)
            return jnp.sum(jnp.where(counted, ratios, 0)) / (tied + 1)
        quantile = quantiles.estimate(reward, row, estimator=estimator, ties=ties, clamped=transform.clamp, key=key)
        return jnp.exp(transform.apply(quantile) / beta - log_z)

    # Not jitted: most cases consist of operations of the same shapes, which are compiled once.
    if key is None:
        return jax.vmap(lambda r, row: one(r, row, None))(rewards, references)
    return jax.vmap(one)(rewards, references, jax.random.split(key, len(rewards)))


@pytest.mark.parametrize(("estimator", "ties", "kind"), sampled(KINDS))
def test_identity_on_tied_rewards_by_enumeration(estimator, ties, kind, count=4):
    """Over every tuple of grades with its probability, the mean is 1 to 1e-12, or differs by more than 1e-3."""
    tuples = np.array(list(itertools.product(range(4), repeat=count + 1)))
    probability = SHARES[tuples].prod(axis=1)
    off = []
    with jax.enable_x64(True):
        for name, beta in CASES:
            rewards = jnp.asarray(GRADES[tuples])
            ratios = mean_ratio(transforms.parse(name), beta, rewards[:, 0], rewards[:, 1:], estimator, ties, kind)
            off.append(abs(float(probability @ np.asarray(ratios)) - 1))
    print(estimator, ties, kind, count, off)
    if holds(ties, kind, tied=True):
        assert max(off) < 1e-12, off
    else:
        assert min(off) > 1e-3, off


@pytest.mark.parametrize("count", [7])
@pytest.mark.parametrize(("estimator", "kind"), itertools.product(quantiles.ESTIMATORS, partition.PARTITIONS))
def test_identity_on_continuous_rewards_by_enumeration(estimator, kind, count):
    """Without ties only a completion's rank matters, and each of 0..n is equally likely."""
    with jax.enable_x64(True):
        references = jnp.tile(jnp.asarray(np.random.default_rng(count).permutation(count) * 1.0), (count + 1, 1))
        rewards = jnp.arange(count + 1) - 0.5
        for name, beta in CASES:
            transform = transforms.parse(name)
            ratios = mean_ratio(transform, beta, rewards, references, estimator, "upper", kind)
            off = abs(float(jnp.mean(ratios)) - 1)
            assert off > 1e-4 if kind == "population" else off < 1e-12, (name, off)


def test_the_populations_error_falls_as_one_over_n():
    """Where f is bounded: doubling n halves log Z_n - log Z (`ecdf`), or quarters it and better (`midpoint`)."""
    with jax.enable_x64(True):
        for name, beta in (("identity", 0.3),):
            transform = transforms.parse(name)
            for estimator, rate in (("ecdf", 2), ("midpoint", 4)):
                gaps = partition.gap(transform, beta, [50, 100, 200], estimator)
                np.testing.assert_allclose(gaps[:-1] / gaps[1:], rate, rtol=0.05, err_msg=f"{name} {estimator}")


def draw(key, tied, shape):
    if tied:
        return jax.random.choice(key, jnp.asarray(GRADES), shape, p=jnp.asarray(SHARES))
    return jnp.exp(jax.random.normal(key, shape))


DRAWS = 40_000


@pytest.mark.parametrize(
    ("estimator", "ties", "kind", "tied"), sampled([(*kind, tied) for tied in (False, True) for kind in KINDS], 3)
)
def test_identity_by_monte_carlo(estimator, ties, kind, tied):
    """New completions with n = 3 references each: the mean is within 4.5 standard errors of 1, or beyond 6.

    An error of 2 % in Z would be at least 5 standard errors for these f / beta.
    """
    rewards = draw(jax.random.key(17), tied, (DRAWS, 4))
    ratios = mean_ratio(
        transforms.identity, 0.7, rewards[:, 0], rewards[:, 1:], estimator, ties, kind, jax.random.key(19)
    )
    ratios = np.asarray(ratios, np.float64)
    error = ratios.std(ddof=1) / np.sqrt(DRAWS)
    score = (ratios.mean() - 1) / error
    print(f"{estimator} {ties} {kind} tied={tied}: {ratios.mean() - 1:.5f} +- {error:.5f}, {score:.1f} standard errors")
    assert error < 0.02 / 5
    if holds(ties, kind, tied):
        assert abs(score) < 4.5
    elif (estimator, kind) != ("midpoint", "population"):  # too close for these draws; the enumeration covers it
        assert abs(score) > 6


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["finite_sample", "empirical"])
def test_identity_for_completions_that_are_their_own_references(kind, tied):
    """m completions of one prompt, each ranked among the other m - 1 by `exclude_own`; a mask makes m 2 to 7.

    `empirical` is then the same for a whole prompt, and the identity holds for every single prompt.
    """
    prompts, most = 20_000, 7
    ties = "random" if tied and kind == "finite_sample" else "upper"
    keys = jax.random.split(jax.random.key(5), 3)
    rewards = draw(keys[0], tied, (prompts, most))
    size = jax.random.randint(keys[1], (prompts,), 2, most + 1)
    transform, beta = transforms.identity, 0.5

    def one(row, size, key):
        present = jnp.arange(most) < size
        row = jnp.where(present, row, jnp.nan)

        def among_others(reward, key):
            mask = quantiles.exclude_own(reward, row, present)
            log_z = partition.log_z(kind, transform, beta, reward, row, mask, ties=ties)
            quantile = quantiles.estimate(reward, row, mask, ties=ties, key=key)
            return jnp.exp(transform.apply(quantile) / beta - log_z), log_z

        ratios, log_zs = jax.vmap(among_others)(row, jax.random.split(key, most))
        spread = jnp.where(present, log_zs, -jnp.inf).max() - jnp.where(present, log_zs, jnp.inf).min()
        return jnp.sum(jnp.where(present, ratios, 0)) / size, spread

    means, spread = jax.jit(jax.vmap(one))(rewards, size, jax.random.split(keys[2], prompts))
    means = np.asarray(means, np.float64)
    error = max(means.std(ddof=1) / np.sqrt(prompts), 1e-7)
    print(kind, tied, means.mean() - 1, error)
    assert abs(means.mean() - 1) < 4.5 * error
    assert float(jnp.max(spread)) < 1e-5
    if kind == "empirical" or not tied:
        np.testing.assert_allclose(means, 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("estimator", "ties"), sampled([("midpoint", "mid"), ("ecdf", "upper"), ("ecdf", "random")], 3)
)
def test_masked_references_have_no_effect(estimator, ties):
    """A mask equals slicing, whatever it hides, under vmap over prompts of different n; so do gradients in beta."""
    rng = np.random.default_rng(3)
    rewards, references = rng.integers(0, 4, 11) * 1.0, rng.integers(0, 4, (11, 7)) * 1.0
    mask = rng.random((11, 7)) < 0.6
    mask[:, 2:4] = True
    masked = np.where(mask, references, rng.choice([np.nan, np.inf, -np.inf, 1e30], (11, 7)))
    i = 4
    assert 2 < mask[i].sum() < 7

    def log_zs(beta, reward, row, mask=None):
        return jnp.stack(
            [
                partition.log_z(kind, transform, beta, reward, row, mask, estimator=estimator, ties=ties)
                for kind in partition.PARTITIONS
                for transform in (transforms.identity, transforms.normal_icdf)
            ]
        )

    def both(*arguments):
        return log_zs(*arguments), jax.jacfwd(log_zs)(*arguments)

    with jax.enable_x64(True):
        got, slope = jax.jit(jax.vmap(both, (None, 0, 0, 0)))(0.3, rewards, masked, mask)
        alone, alone_slope = jax.jit(both)(0.3, rewards[i], references[i][mask[i]])
        np.testing.assert_allclose(got[i], alone, rtol=1e-12)
        np.testing.assert_allclose(slope[i], alone_slope, rtol=1e-10)
        assert np.isfinite(slope).all()


def test_finite_samples_have_log_z_where_the_population_has_none():
    for name in ("exponential-icdf", "logit", "affine(logit, 0.5, 2)"):
        transform = transforms.parse(name)
        for beta in (1e-4, 0.3, 1.0):
            both = jax.value_and_grad(lambda b, t=transform: partition.finite_sample_log_z(t, b, 6))
            assert np.isfinite(both(beta)).all()
            with pytest.raises(ValueError, match=f"beta = {beta:g}"):
                partition.log_z("population", transform, beta, 1.0, [0.0, 1.0])
            assert np.isfinite(partition.log_z("empirical", transform, beta, 1.0, [0.0, 1.0, 1.0]))


@pytest.mark.parametrize("name", sampled(["log", "normal-icdf", "logit"], 3))
def test_finite_sample_log_z_is_its_sum_in_both_precisions(name):
    """Against NumPy's log-sum-exp in float64, from beta 1e-4 to 100.

    Relative to |log Z| + E|f| / beta, because an f of both signs is itself rounded, by this over 2^24.
    """
    transform = transforms.parse(name)
    for estimator, count in itertools.product(quantiles.ESTIMATORS, (2, 50)):
        with jax.enable_x64(True):
            quantile = quantiles.of_rank(jnp.arange(count + 1), count, estimator, transform.clamp)
            f = np.asarray(transform.apply(quantile))
        betas = np.geomspace(1e-4, 100, 41).astype(np.float32).astype(float)
        x = f[:, None] / betas
        expected = x.max(0) + np.log(np.mean(np.exp(x - x.max(0)), axis=0))
        size = np.abs(expected) + np.abs(x).mean(0)
        for x64, tolerance in ((True, 1e-12), (False, 1e-6)):
            with jax.enable_x64(x64):
                of = jax.vmap(lambda b, c=count, e=estimator: partition.finite_sample_log_z(transform, b, c, e))
                got, slope = jax.jit(lambda b, of=of: jax.jvp(of, (b,), (jnp.ones_like(b),)))(jnp.asarray(betas, float))
            error = np.abs(np.asarray(got, float) - expected)
            assert (error <= tolerance * size + 1e-15).all(), (estimator, count, betas[(error / size).argmax()])
            assert np.isfinite(slope).all()


def test_mistakes_are_refused():
    for call, message, about in (
        (lambda: partition.log_z("exact", transforms.identity, 0.1, 1.0, [0.0]), "'exact'.*population", ("partition",)),
        (
            lambda: partition.finite_sample_log_z(transforms.identity, 0.1, 3, "median"),
            "'median'.*midpoint",
            ("estimator",),
        ),
        (
            lambda: partition.empirical_log_z(transforms.identity, 0.1, 1.0, [0.0], ties="none"),
            "'none'.*mid",
            ("ties",),
        ),
        (lambda: partition.finite_sample_log_z(transforms.identity, 0.0, 3), "beta = 0", ("beta",)),
    ):
        with pytest.raises(UserError, match=message) as error:
            call()
        assert error.value.about == about
    with pytest.raises(ValueError, match="count is 7"):
        partition.finite_sample_log_z(transforms.identity, 0.1, 7, most=5)
    for kind in ("finite_sample", "empirical"):
        assert np.isnan(partition.log_z(kind, transforms.identity, 0.1, 1.0, [0.0, 1.0], [False, False]))
    assert np.isnan(partition.log_z("empirical", transforms.identity, 0.1, 1.0, [0.0, jnp.nan]))
