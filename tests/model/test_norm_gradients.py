"""The steps of a norm have the gradients of their formulas, over one and two axes, on a CPU and elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.model.norm_gradients import mean_of_features, sum_of_tokens, times_scale, unit_mean_square

EPSILON = 1e-5


def plain(x: jax.Array, scale: jax.Array) -> jax.Array:
    over = tuple(range(-scale.ndim, 0))
    return x * jax.lax.rsqrt((x * x).mean(over, keepdims=True) + EPSILON) * scale.reshape(1, 1, *scale.shape)


def here(x: jax.Array, scale: jax.Array) -> jax.Array:
    return times_scale(unit_mean_square(x, scale.ndim, EPSILON), scale)


@pytest.mark.parametrize("features", [(7,), (3, 5)])
def test_values_and_gradients_are_those_of_the_formula(features: tuple[int, ...]) -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        x, weight = (jnp.asarray(rng.normal(size=(2, 11, *features))) for _ in range(2))
        scale = jnp.asarray(rng.normal(size=features))
        for order in (0, 1):
            results = [
                jax.value_and_grad(lambda x, scale, f=f: (f(x, scale) * weight).sum(), order)(x, scale)
                for f in (plain, here)
            ]
            for expected, found in zip(*map(jax.tree.leaves, results), strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("axes", [1, 2])
def test_a_cpu_multiplies_where_others_sum(axes: int) -> None:
    x = jax.ShapeDtypeStruct((2, 11, 3, 5), jnp.float32)

    def lowered(platform: str) -> str:
        both = jax.jit(lambda x: (mean_of_features(x, axes), sum_of_tokens(x, axes)))
        return both.trace(x).lower(lowering_platforms=(platform,)).as_text()

    assert lowered("cpu").count("dot_general") == 2 and "stablehlo.reduce(" not in lowered("cpu")
    assert "dot_general" not in lowered("tpu") and lowered("tpu").count("stablehlo.reduce(") == 2
