"""A small model without training, its tokenizer, and comparison bit by bit, for tests of model folders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.model import decoder

# Twice a prime where the mesh splits by two, so that a transposed or wrongly split axis shows.
TIED = decoder.DecoderSettings(
    vocab_size=94, d_model=42, layers=3, heads=6, kv_heads=2, head_dim=10, d_ff=58, max_positions=61
)
CHARACTERS = [chr(33 + i) for i in range(80)]


@functools.cache
def fresh(settings: decoder.DecoderSettings, seed: int) -> decoder.Parameters:
    """Random parameters, drawn without compiling an initialisation, which takes seconds."""
    rng = np.random.default_rng(seed)
    shapes = decoder.abstract_parameters(settings)
    return jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32), shapes)


def one_device() -> jax.sharding.Mesh:
    return make_mesh(1, 1, 1, devices=jax.devices()[:1])


def assert_identical(first: decoder.Parameters, second: decoder.Parameters) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for (path, a), b in zip(jax.tree.leaves_with_path(first), jax.tree.leaves(second), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape, (path, a.dtype, b.dtype, a.shape, b.shape)
        assert a.tobytes() == b.tobytes(), f"{path}: max difference {np.abs(a - b).max()}"
