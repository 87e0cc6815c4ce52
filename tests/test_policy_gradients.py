"""Losses of policy gradients: shapes, the edges of clipping, and what the k3 estimate and its gradient are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax import policy_gradients


def table(seed, size=11):
    """log π_θ as logits, and log π_ref, of a table."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=size)), jax.nn.log_softmax(jnp.asarray(rng.normal(size=size)))


def kl(a, b):
    return jnp.sum(jnp.exp(a) * (a - b))


def test_shapes_and_dtypes_are_kept():
    with jax.enable_x64(True):
        x = -jnp.ones((5, 3), jnp.float32)
        results = {
            "ratio": policy_gradients.ratio(x, x),
            "clipped_surrogate": policy_gradients.clipped_surrogate(-x, x, low=0.2, high=0.3),
            "k3": policy_gradients.k3(x, 2 * x),
            "value_loss": policy_gradients.value_loss(x, 2 * x, 3 * x, clip=0.2),
            "truncated_weight": policy_gradients.truncated_weight(x, 2 * x, cap=1.5),
        }
        acts = policy_gradients.clip_acts(-x, x, low=0.2, high=0.3)
    for name, result in results.items():
        assert (result.shape, result.dtype) == ((5, 3), jnp.float32), name
    assert (acts.shape, acts.dtype) == ((5, 3), bool)


def test_the_surrogate_is_the_minimum_of_the_paper():
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        ratio, advantage = np.exp(rng.normal(size=1009)), rng.normal(size=1009)
        got = policy_gradients.clipped_surrogate(ratio, advantage, low=0.2, high=0.28)
        want = -np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.28) * advantage)
        np.testing.assert_allclose(got, want, rtol=1e-13)


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_at_the_bounds_the_gradient_is_whole_and_beyond_them_it_is_zero(advantage):
    """float32 of 1 + high and 1 - low are the bounds; the next numbers beyond are clipped on the side where it acts."""
    low, high = 0.25, 0.5
    slope = jax.vmap(jax.grad(lambda r: policy_gradients.clipped_surrogate(r, advantage, low=low, high=high)))
    upper, lower = np.float32(1.5), np.float32(0.75)
    ratios = np.asarray([upper, np.nextafter(upper, np.float32(9)), lower, np.nextafter(lower, np.float32(0))])
    clipped = [False, advantage > 0, False, advantage < 0]
    np.testing.assert_array_equal(slope(jnp.asarray(ratios)), np.where(clipped, 0.0, -advantage))


def test_k3_is_never_negative_and_its_mean_is_the_kl():
    with jax.enable_x64(True):
        for seed in range(7):
            logits, reference = table(seed)
            log_policy = jax.nn.log_softmax(logits)
            each = policy_gradients.k3(log_policy, reference)
            assert (each >= 0).all()
            np.testing.assert_allclose(jnp.sum(jnp.exp(log_policy) * each), kl(log_policy, reference), rtol=1e-12)


def test_k3_keeps_its_digits_close_to_the_reference():
    """It is d²/2 there, which e^{-d} - 1 + d in float32 loses to cancellation."""
    d = np.float32(1e-3)
    np.testing.assert_allclose(policy_gradients.k3(d, np.float32(0)), float(d) ** 2 / 2, rtol=1e-3)


def test_the_gradient_of_k3_is_that_of_the_other_kl():
    """Exact expectation over samples held fixed: ∇KL(π_ref ‖ π_θ), and not ∇KL(π_θ ‖ π_ref)."""
    with jax.enable_x64(True):
        logits, reference = table(13)

        def expected(logits):
            log_policy = jax.nn.log_softmax(logits)
            return jnp.sum(jax.lax.stop_gradient(jnp.exp(log_policy)) * policy_gradients.k3(log_policy, reference))

        got = jax.grad(expected)(logits)
        other = jax.grad(lambda x: kl(reference, jax.nn.log_softmax(x)))(logits)
        same = jax.grad(lambda x: kl(jax.nn.log_softmax(x), reference))(logits)
        np.testing.assert_allclose(got, other, rtol=1e-10)
        assert np.abs(got - same).max() > 0.05, (got, same)


def test_a_value_that_moved_too_far_towards_the_return_has_no_gradient():
    slope = jax.grad(lambda v, old, target: policy_gradients.value_loss(v, old, target, clip=0.2))
    assert float(slope(0.5, 0.0, 1.0)) == 0  # towards it, beyond the clip
    assert float(slope(0.1, 0.0, 1.0)) == pytest.approx(-0.9)
    assert float(slope(-0.5, 0.0, 1.0)) == pytest.approx(-1.5)  # away from it
    free = jax.grad(lambda v: policy_gradients.value_loss(v, 0.0, 1.0, clip=0.0))
    assert float(free(0.5)) == pytest.approx(-0.5)


def test_the_weight_is_exact_below_its_cap():
    rng = np.random.default_rng(5)
    old, sampler = -rng.exponential(size=101), -rng.exponential(size=101)
    with jax.enable_x64(True):
        got = np.asarray(policy_gradients.truncated_weight(old, sampler, cap=1.5))
    exact = np.exp(old - sampler)
    np.testing.assert_allclose(got, np.where(exact < 1.5, exact, 1.5), rtol=1e-12)
    assert 0.1 < (exact > 1.5).mean() < 0.9
