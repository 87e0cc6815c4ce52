"""Attention on a mesh is attention on one device, and each device gets its own rows, heads and part of the row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.model import attention
from qrpo_jax.model.attention import plain, sharded
from tests.helpers import sequences, tiny

HEADS, KV_HEADS, K_DIM = 8, 4, 6

EVERYWHERE = [name for name, platform in attention.BACKENDS.items() if platform is None]


def given(rows, length):
    """Queries, keys, values, and a layout with shared prompts and padding."""
    rng = np.random.default_rng(length)
    packed = sequences.pack([sequences.random_groups(rng, 2, 5)[1:] for _ in range(rows)], 40, rng)
    layout = jax.tree.map(lambda x: x[:, :length], packed.layout)
    q, k, v = (rng.normal(size=(rows, length, h, K_DIM)).astype(np.float32) for h in (HEADS, KV_HEADS, KV_HEADS))
    return (q, k, v), layout


def value_and_gradients(backend, mesh, arrays, layout, window, cap=None):
    weights = np.random.default_rng(1).normal(size=arrays[0].shape).astype(np.float32)
    weights *= (layout.groups_BxL > 0)[..., None, None]

    def total(q, k, v, window):
        mixed = sharded.attend(backend, mesh, q, k, v, layout, window, scale=None, cap=cap)
        return jnp.sum(weights * mixed), jnp.where((layout.groups_BxL > 0)[..., None, None], mixed, 0.0)

    run = jax.grad(total, (0, 1, 2), has_aux=True)
    if isinstance(window, jax.Array):
        return jax.jit(run)(*arrays, window)
    return jax.jit(lambda q, k, v: run(q, k, v, window))(*arrays)


@pytest.mark.parametrize("backend", EVERYWHERE)
@pytest.mark.parametrize(
    "sizes, rows, length, window, cap",
    [
        ((1, 1, 1, 8), 3, 40, None, None),
        ((1, 2, 2, 2), 2, 24, jnp.int32(5), None),
        ((1, 1, 4, 2), 3, 26, 5, 2.0),
        ((2, 1, 1, 2, 2), 4, 22, jnp.int32(7), 2.0),
        ((2, 1, 1, 4), 3, 23, None, None),  # neither rows nor length can be split
    ],
)
def test_values_and_gradients_are_those_of_one_device(sizes, rows, length, window, cap, backend):
    arrays, layout = given(rows, length)
    got = value_and_gradients(attention.backend(backend), make_mesh(*sizes), arrays, layout, window, cap)
    want = value_and_gradients(plain.attend, None, arrays, layout, window, cap)
    tiny.assert_trees_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "sizes, queries, keys, splits",
    [
        ((2, 2, 2, 1), (1, 24, 4, 6), (1, 24, 2, 6), False),
        ((1, 2, 2, 2), (2, 12, 4, 6), (2, 24, 2, 6), True),
        ((1, 1, 1, 8), (4, 3, 8, 6), (4, 24, 4, 6), True),
    ],
)
def test_a_device_gets_its_queries_and_the_keys_of_whole_rows(sizes, queries, keys, splits):
    """Where rows are whole, a backend knows it: they start at the int 0."""
    received = []

    def record(q, k, v, of_queries, of_keys, start, window, /, **options):
        received.append((q.shape, k.shape, v.shape, of_queries, of_keys, isinstance(start, int)))
        return plain.attend(q, k, v, of_queries, of_keys, start, window, **options)

    arrays, layout = given(4, 24)
    jax.eval_shape(
        lambda *x: sharded.attend(record, make_mesh(*sizes), *x, layout, None, scale=None, cap=None), *arrays
    )
    ((q, k, v, of_queries, of_keys, whole),) = received
    assert (q, k, v, whole) == (queries, keys, keys, not splits)
    assert {x.shape for x in of_queries} == {queries[:2]} and {x.shape for x in of_keys} == {keys[:2]}
