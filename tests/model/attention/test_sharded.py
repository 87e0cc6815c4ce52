"""Attention on a mesh is attention on one device, and each device gets its own rows, heads and part of the row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.model.attention import plain, sharded
from tests.helpers import backends, sequences, tiny

HEADS, KV_HEADS, K_DIM = 8, 4, 6


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
        mixed = sharded.attend(backend, mesh, q, k, v, layout, layout, 0, window, scale=None, cap=cap)
        return jnp.sum(weights * mixed), jnp.where((layout.groups_BxL > 0)[..., None, None], mixed, 0.0)

    run = jax.grad(total, (0, 1, 2), has_aux=True)
    if isinstance(window, jax.Array):
        return jax.jit(run)(*arrays, window)
    return jax.jit(lambda q, k, v: run(q, k, v, window))(*arrays)


# Sizes of the mesh (data, fsdp, tensor, context, replica), rows, length, window (traced or not), soft cap.
CASES = {
    "context": ((1, 1, 1, 8), 3, 40, None, None),
    "all axes": ((1, 2, 2, 2), 2, 24, jnp.int32(5), None),
    "window and cap": ((1, 1, 4, 2), 3, 26, 5, 2.0),
    "two slices": ((2, 1, 1, 2, 2), 4, 22, jnp.int32(7), 2.0),
    "neither rows nor length can be split": ((2, 1, 1, 4), 3, 23, None, None),
}


@pytest.mark.parametrize("backend, case", backends.crossed(CASES, "all axes"))
def test_values_and_gradients_are_those_of_one_device(backend, case):
    sizes, rows, length, window, cap = CASES[case]
    arrays, layout = given(rows, length)
    got = value_and_gradients(backends.ALL[backend], make_mesh(*sizes), arrays, layout, window, cap)
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
        lambda *x: sharded.attend(record, make_mesh(*sizes), *x, layout, layout, 0, None, scale=None, cap=None), *arrays
    )
    ((q, k, v, of_queries, of_keys, whole),) = received
    assert (q, k, v, whole) == (queries, keys, keys, not splits)
    assert {x.shape for x in of_queries} == {queries[:2]} and {x.shape for x in of_keys} == {keys[:2]}


@pytest.mark.parametrize("name", list(backends.ALL))
@pytest.mark.parametrize("sizes", [None, (2, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("window", [None, jnp.int32(7)], ids=["all", "window"])
def test_queries_may_begin_anywhere_in_the_rows_of_keys(name, sizes, window):
    """Pieces of prompts, whose length need not divide the rows; what follows them in the rows does not matter."""
    arrays, _ = given(4, 38)
    layout = sequences.layout(np.ones((4, 38), int), np.tile(np.arange(38), (4, 1)), np.zeros((4, 38), bool))
    whole = plain.attend(*arrays, layout, layout, 0, window, scale=None, cap=2.0)
    mesh = None if sizes is None else make_mesh(*sizes)

    @jax.jit
    def piece(start, q, k, v):
        queries = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, 14, 1), layout)
        written = jnp.arange(38)[:, None, None] < start + 14
        k, v = jnp.where(written, k, 1e3), jnp.where(written, v, 1e3)
        return sharded.attend(backends.ALL[name], mesh, q, k, v, queries, layout, start, window, scale=None, cap=2.0)

    q, k, v = arrays
    for start in (0, 11, 24):
        got = piece(jnp.int32(start), q[:, start : start + 14], k, v)
        np.testing.assert_allclose(got, whole[:, start : start + 14], rtol=1e-5, atol=1e-5, err_msg=str(start))
