"""The norm's own backward pass against the formula differentiated by jax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.model.rms_norm import rms_norm


def formula(x, scale, epsilon):
    over = tuple(range(-scale.ndim, 0))
    return x / jnp.sqrt(jnp.mean(x * x, over, keepdims=True) + epsilon) * jax.lax.broadcast_to_rank(scale, x.ndim)


@pytest.mark.parametrize("shape, axes", [((3, 7, 13), 1), ((3, 7, 5, 11), 1), ((2, 7, 5, 11), 2), ((7, 13), 1)])
def test_values_and_gradients_are_those_of_the_formula(shape, axes):
    rng = np.random.default_rng(0)
    with jax.enable_x64():
        x, g, scale = (jnp.asarray(rng.normal(size=s)) for s in (shape, shape, shape[-axes:]))
        x = x.at[0, 0].multiply(1e-4)  # where epsilon counts
        value, pull = jax.vjp(lambda x, scale: rms_norm(x, scale, 1e-5, False), x, scale)
        expected, expected_pull = jax.vjp(lambda x, scale: formula(x, scale, 1e-5), x, scale)
        for got, want in zip((value, *pull(g)), (expected, *expected_pull(g)), strict=True):
            assert got.dtype == jnp.float64
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rounds", [False, True])
def test_in_bfloat16_sums_are_float32(rounds):
    rng = np.random.default_rng(1)
    x, g = (jnp.asarray(rng.normal(size=(331, 17)), jnp.bfloat16) for _ in range(2))
    scale = jnp.asarray(1 + 0.1 * rng.normal(size=17), jnp.float32)
    value, pull = jax.vjp(lambda x, scale: rms_norm(x, scale, 1e-6, rounds), x, scale)
    expected, expected_pull = jax.vjp(lambda x, scale: formula(x, scale, 1e-6), x.astype(jnp.float32), scale)
    of_x, of_scale = pull(g)
    expected_of_x, expected_of_scale = expected_pull(g.astype(jnp.float32))
    assert (value.dtype, of_x.dtype, of_scale.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(value.astype(jnp.float32), expected, rtol=0.01, atol=1e-6)
    np.testing.assert_allclose(of_x.astype(jnp.float32), expected_of_x, rtol=0.01, atol=0.01)
    # Without rounding, the sum over 331 positions is as exact as float32; in bfloat16 it would be off by percents.
    np.testing.assert_allclose(of_scale, expected_of_scale, rtol=0.01 if rounds else 1e-5, atol=0.1 if rounds else 1e-4)
