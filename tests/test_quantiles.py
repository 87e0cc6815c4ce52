"""Laws of the quantile estimators: ranks, ties, masks, clamps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrpo_jax import quantiles, transforms
from qrpo_jax.errors import UserError

REFERENCES = jnp.array([0.0, 1.0, 1.0, 1.0, 2.0, 5.0, 5.0])
GRADES = st.lists(st.integers(0, 4), min_size=7, max_size=7)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(references=GRADES, reward=st.integers(-1, 5))
def test_upper_is_the_share_of_references_not_above(references, reward):
    references = np.array(references, np.float32)
    expected = np.mean(references <= reward)
    np.testing.assert_allclose(quantiles.ecdf(float(reward), references), expected, rtol=1e-6)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    references=GRADES,
    reward=st.integers(0, 4),
    present=st.lists(st.booleans(), min_size=7, max_size=7),
)
def test_masked_references_have_no_effect(references, reward, present):
    """Each estimator on a masked set, NaN under the mask, equals itself on the smaller set."""
    present[2] = True
    mask = np.array(present)
    references = np.array(references, np.float32)
    hidden = np.where(mask, references, np.nan)
    for ties in ("upper", "mid"):
        for estimate in (quantiles.ecdf, quantiles.midpoint):
            masked = estimate(float(reward), hidden, mask, ties=ties)
            np.testing.assert_allclose(masked, estimate(float(reward), references[mask], ties=ties), rtol=1e-6)
    share = quantiles.tied_share(float(reward), hidden, mask)
    np.testing.assert_allclose(share, np.mean(references[mask] == reward), rtol=1e-6)
    if mask.sum() > 1:
        std = quantiles.reward_std(hidden, mask)
        np.testing.assert_allclose(std, np.std(references[mask], ddof=1), rtol=1e-5, atol=1e-6)


def test_tie_rules_differ_only_where_there_are_ties():
    at = {ties: float(quantiles.ecdf(1.0, REFERENCES, ties=ties)) for ties in ("upper", "mid")}
    assert at == pytest.approx({"upper": 4 / 7, "mid": 2.5 / 7})
    for ties in quantiles.TIES:
        quantile = quantiles.ecdf(1.5, REFERENCES, ties=ties, key=jax.random.key(0))
        assert float(quantile) == pytest.approx(4 / 7), ties


def test_random_ties_make_the_rank_of_a_reference_sample_uniform():
    """With rewards of three grades only, the rank among n = 5 references is uniform on 0..5."""
    draws, count = 60_000, 5
    keys = jax.random.split(jax.random.key(11), draws)
    rewards = jax.random.randint(jax.random.key(7), (draws, count + 1), 0, 3).astype(float)

    def rank(ties):
        one = lambda r, k: quantiles.ecdf(r[0], r[1:], ties=ties, key=k)  # noqa: E731
        ranks = jnp.round(jax.vmap(one)(rewards, keys) * count).astype(int)
        return np.bincount(ranks, minlength=count + 1) / draws

    # A standard error is sqrt(1/6 * 5/6 / 60000) = 0.0015.
    np.testing.assert_allclose(rank("random"), 1 / 6, atol=0.007)
    assert rank("upper")[count] > 0.3, "the published rule ranks ties high"


def test_midpoints_of_all_ranks_have_mean_one_half_and_need_no_clamp():
    references = jnp.arange(5.0)
    rewards = jnp.arange(6) - 0.5
    middles = jax.vmap(quantiles.midpoint, (0, None))(rewards, references)
    np.testing.assert_allclose(middles, (np.arange(6) + 0.5) / 6, rtol=1e-6)
    assert bool(jnp.all(jnp.isfinite(transforms.normal_icdf.apply(middles))))


@pytest.mark.parametrize("name", sorted(transforms.TRANSFORMS))
@pytest.mark.parametrize("count", [2, 3, 7])
def test_clamped_ranks_have_finite_transforms(name, count):
    transform = transforms.TRANSFORMS[name]
    ranks = jnp.arange(count + 1) / count
    clamped = quantiles.clamp(ranks, count, transform.clamp)
    assert bool(jnp.all(jnp.isfinite(transform.apply(clamped)))), (
        clamped,
        transform.apply(clamped),
    )
    low = {"none": 0, "lower": 1 / count, "upper": 0, "both": 1 / count}[transform.clamp]
    high = {"none": 1, "lower": 1, "upper": (count - 1) / count, "both": (count - 1) / count}[transform.clamp]
    np.testing.assert_allclose(clamped, np.clip(ranks, low, high), rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_exclude_own_removes_one_equal_entry(seed):
    """Without a reference's own reward, the estimate is the quantile among the others."""
    rewards = np.random.default_rng(seed).integers(0, 4, 7).astype(np.float32)
    masks = jax.vmap(quantiles.exclude_own, (0, None))(rewards, rewards)
    assert masks.sum(1).tolist() == [6] * 7
    actual = jax.vmap(quantiles.ecdf, (0, None, 0))(rewards, rewards, masks)
    expected = [np.mean(np.delete(rewards, i) <= rewards[i]) for i in range(7)]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_exclude_own_leaves_masked_and_unequal_entries():
    mask = jnp.array([False, True, True, True, True, True, False])
    assert quantiles.exclude_own(0.0, REFERENCES, mask).tolist() == mask.tolist()
    assert quantiles.exclude_own(9.0, REFERENCES).tolist() == [True] * 7
    assert quantiles.exclude_own(1.0, REFERENCES, mask).tolist() == [False, False] + [True] * 4 + [False]


def test_a_nan_reward_has_no_quantile():
    assert np.isnan(quantiles.ecdf(jnp.nan, REFERENCES))
    assert np.isnan(quantiles.midpoint(1.0, REFERENCES.at[3].set(jnp.nan)))
    assert np.isnan(quantiles.ecdf(1.0, REFERENCES, jnp.zeros(7, bool))), "no reference, no quantile"


def test_equal_references_have_std_zero_and_a_single_one_has_nan():
    assert float(quantiles.reward_std(jnp.full(5, 2.0))) == 0
    assert np.isnan(quantiles.reward_std(jnp.array([2.0])))
    assert np.isfinite(jax.grad(quantiles.reward_std)(jnp.full(5, 2.0))).all()


def test_everything_runs_under_jit_and_vmap():
    rewards = jax.random.normal(jax.random.key(3), (11, 5))
    references = jax.random.normal(jax.random.key(5), (11, 7))
    one = jax.vmap(jax.vmap(quantiles.ecdf, (0, None)))
    batched = jax.jit(one)(rewards, references)
    np.testing.assert_allclose(batched, one(rewards, references), rtol=1e-6)
    assert batched.shape == (11, 5)
    alone = quantiles.ecdf(rewards[2, 3], references[2])
    np.testing.assert_allclose(batched[2, 3], alone, rtol=1e-6)


def test_dtypes_are_kept():
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            references = REFERENCES.astype(dtype)
            assert quantiles.ecdf(1.0, references).dtype == dtype
            assert quantiles.midpoint(1.0, references, ties="random", key=jax.random.key(0)).dtype == dtype
            assert quantiles.clamp(references / 5, jnp.array(7), "both").dtype == dtype
            assert quantiles.reward_std(references).dtype == dtype


def test_mistakes_are_refused():
    """Mistakes in data or settings are the user's; wrong shapes and missing keys are the caller's."""
    with pytest.raises(ValueError, match="vmap over completions"):
        quantiles.ecdf(jnp.ones(3), REFERENCES)
    with pytest.raises(ValueError, match="vmap over prompts"):
        quantiles.ecdf(1.0, jnp.ones((3, 5)))
    with pytest.raises(UserError, match="'lower'.*upper.*mid.*random") as error:
        quantiles.ecdf(1.0, REFERENCES, ties="lower")
    assert error.value.about == ("ties",)
    with pytest.raises(ValueError, match="needs a key"):
        quantiles.ecdf(1.0, REFERENCES, ties="random")
    with pytest.raises(ValueError, match="'middle'.*both"):
        quantiles.clamp(0.5, 3, "middle")
    with pytest.raises(UserError, match="'mean'.*ecdf.*midpoint") as error:
        quantiles.of_rank(1, 3, "mean")
    assert error.value.about == ("estimator",)


def test_too_few_references_are_refused():
    """With n = 1 a clamped quantile has one value, or none where f is finite; n = 0 has no quantile."""
    for name in ("normal-icdf", "scaled-normal-icdf", "logit", "log", "exponential-icdf"):
        transform = transforms.TRANSFORMS[name]
        quantiles.check_references([2, 6], transform)
        with pytest.raises(ValueError, match=f"n = 1 .*{name}.*at least 2"):
            quantiles.check_references([6, 1], transform)
        quantiles.check_references(1, transform, "midpoint")
    with pytest.raises(UserError, match="n = 0 .*identity.*at least 1") as error:
        quantiles.check_references(0, transforms.identity)
    assert error.value.about == ("references",)


def test_random_ties_are_uniform_by_chi_square():
    """Every possible place of a reward among 5 tied references is equally likely."""
    draws, references = 40_000, jnp.array([2.0] * 5 + [1.0, 3.0])
    keys = jax.random.split(jax.random.key(2), draws)
    quantile = jax.vmap(lambda key: quantiles.ecdf(2.0, references, ties="random", key=key))(keys)
    counts = np.bincount(np.round(np.asarray(quantile) * 7).astype(int), minlength=8)
    assert counts[0] == counts[7] == 0 and counts.sum() == draws
    expected = draws / 6
    chi_square = ((counts[1:7] - expected) ** 2 / expected).sum()
    print(counts, chi_square)
    assert chi_square < 25.7, "5 degrees of freedom: once in 10,000"


@pytest.mark.parametrize("estimator", list(quantiles.ESTIMATORS))
@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf])
def test_hidden_rewards_have_no_effect_under_jit_and_vmap(estimator, hidden):
    """Estimate, tied share and the mask without the completion itself, over prompts of different n."""
    rng = np.random.default_rng(7)
    rewards, references = rng.integers(0, 3, 5) * 1.0, rng.integers(0, 3, (5, 7)) * 1.0
    mask = np.arange(7) < np.array([2, 3, 5, 6, 7])[:, None]
    masked = np.where(mask, references, hidden)

    def figures(reward, row, mask, key):
        mask = quantiles.exclude_own(reward, row, mask)
        estimates = [
            quantiles.estimate(reward, row, mask, estimator=estimator, ties=ties, clamped="both", key=key)
            for ties in quantiles.TIES
        ]
        return jnp.stack([*estimates, quantiles.tied_share(reward, row, mask), jnp.sum(mask)])

    keys = jax.random.split(jax.random.key(1), 5)
    got = jax.jit(jax.vmap(figures))(rewards, masked, mask, keys)
    for i in range(5):
        alone = figures(rewards[i], references[i][mask[i]], None, keys[i])
        np.testing.assert_allclose(got[i], alone, rtol=1e-6)
