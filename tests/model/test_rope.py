"""Rotations are those of the formula, and a CPU computes the sines of a position once for all heads."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.model.rope import frequencies, rotate, turns

B, L, H, K = 2, 11, 5, 14


def rotated(x: jax.Array, positions: jax.Array, interleaved: bool = False, scale: float = 1.0) -> jax.Array:
    return rotate(x, turns(positions, frequencies(10_000.0, 6), scale, jnp.float32), interleaved=interleaved)


@pytest.mark.parametrize("length", [1, L])
@pytest.mark.parametrize("interleaved", [False, True])
def test_pairs_of_dimensions_turn_by_position_times_frequency(length: int, interleaved: bool) -> None:
    rng = np.random.default_rng(2)
    x, positions = rng.normal(size=(B, length, H, K)), rng.integers(0, 97, (B, length))
    angles = positions[..., None, None] * frequencies(10_000.0, 6).astype(float)
    first, second = (x[..., 0:6:2], x[..., 1:6:2]) if interleaved else (x[..., :3], x[..., 3:6])
    turned = 1.5 * (first + 1j * second) * np.exp(1j * angles)
    expected = x.copy()
    if interleaved:
        expected[..., 0:6:2], expected[..., 1:6:2] = turned.real, turned.imag
    else:
        expected[..., :3], expected[..., 3:6] = turned.real, turned.imag
    found = jax.jit(rotated, static_argnums=(2, 3))(jnp.float32(x), jnp.asarray(positions), interleaved, 1.5)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of the CPU's compiler")
def test_no_sine_is_computed_where_heads_are() -> None:
    x, positions = jax.ShapeDtypeStruct((B, L, H, K), jnp.float32), jax.ShapeDtypeStruct((B, L), jnp.int32)
    text = jax.jit(rotated).lower(x, positions).compile().as_text()
    computations = [part for part in text.split("\n\n") if re.search(r" (sine|cosine)\(", part)]
    assert computations, text
    for part in computations:
        assert f"[{B},{L},{H}" not in part, part
