"""Where arrays of a compiled program lie, and parameters that are gathered where they are used."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from qrpo_jax.devices.constraints import constrain, gathered
from qrpo_jax.devices.mesh import make_mesh, spec

AXES = ("embed", "feed_forward")
SHAPE = (26, 34)


def placed(mesh, shape=SHAPE, dtype=jnp.float32):
    weight = np.random.default_rng(0).normal(size=shape).astype(dtype)
    return jax.device_put(weight, NamedSharding(mesh, spec(mesh, AXES, shape)))


def test_a_size_is_split_by_the_axes_that_divide_it():
    mesh = make_mesh(1, 2, 2, 2)
    assert spec(mesh, ("rows", "length", None), (6, 10, 7)) == PartitionSpec(
        ("replica", "data", "fsdp"), "context", None
    )
    assert spec(mesh, ("rows", "residual_length"), (3, 12)) == PartitionSpec(("replica", "data"), ("context", "tensor"))
    assert spec(mesh, ("rows", "residual_length"), (2, 6))[1] == "context"
    assert spec(mesh, ("length", "embed"), (29, 26)) == PartitionSpec(None, "fsdp")


@pytest.mark.parametrize("sizes, count", [((1, 1, 1), 1), (None, 0)])
def test_on_one_device_nothing_is_constrained_or_gathered(sizes, count):
    mesh = make_mesh(*sizes, devices=jax.devices()[:count]) if sizes else None
    x = jnp.ones(SHAPE)
    assert constrain(x, mesh, ("rows", "length")) is x
    program = jax.make_jaxpr(lambda x: gathered(x, mesh, AXES, jnp.bfloat16))(x)
    assert "sharding_constraint" not in str(program)


def test_a_constrained_array_lies_where_the_table_says():
    mesh = make_mesh(2, 1, 2, 2)
    x = np.arange(4 * 20 * 3.0).reshape(4, 20, 3)
    out = jax.jit(lambda x: constrain(x * 2, mesh, ("rows", "residual_length", None)))(x)
    assert out.sharding.shard_shape(x.shape) == (2, 5, 3)
    np.testing.assert_array_equal(out, x * 2)


@pytest.mark.parametrize("sizes", [(1, 2, 2, 2), (4, 2, 1), (1, 1, 2, 4), (2, 2, 1, 1, 2)])
def test_a_gathered_parameter_is_whole_where_only_storage_splits_it(sizes):
    mesh = make_mesh(*sizes)
    weight = placed(mesh)
    out = jax.jit(lambda w: gathered(w, mesh, AXES, jnp.bfloat16))(weight)
    assert out.dtype == jnp.bfloat16 and out.sharding.shard_shape(SHAPE) == (26, 34 // mesh.shape["tensor"])
    np.testing.assert_array_equal(np.asarray(out), np.asarray(weight).astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [(1, 2, 2, 2), (4, 2, 1), (1, 1, 2, 4), (2, 2, 1, 1, 2)])
def test_its_gradient_arrives_split_and_in_the_parameters_type(sizes, dtype):
    mesh = make_mesh(*sizes)
    weight = placed(mesh, dtype=dtype)
    x = np.random.default_rng(1).normal(size=(8, 26)).astype(jnp.bfloat16)

    def loss(weight, x):
        return jnp.sum(jnp.sin(x @ gathered(weight, mesh, AXES, jnp.bfloat16)).astype(jnp.float32))

    got = jax.jit(jax.grad(loss))(weight, jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp")))))
    assert got.dtype == dtype
    assert got.sharding.is_equivalent_to(weight.sharding, 2), got.sharding
    alone = jax.jit(jax.grad(lambda w: jnp.sum(jnp.sin(jnp.asarray(x) @ w.astype(jnp.bfloat16)).astype(jnp.float32))))(
        np.asarray(weight)
    )
    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(alone, np.float32), rtol=0.02, atol=0.05)


def test_a_parameter_is_converted_before_it_travels():
    """In the traced program: the conversion, then the split array, then the whole one."""
    mesh = make_mesh(1, 8, 1)
    text = jax.jit(lambda w: gathered(w, mesh, AXES, jnp.bfloat16)).lower(placed(mesh, (40, 34))).as_text()
    steps = re.findall(r"stablehlo\.convert|sdy\.sharding_constraint.*", text)
    assert len(steps) == 3 and steps[0] == "stablehlo.convert", text
    assert '"fsdp"' in steps[1] and '"fsdp"' not in steps[2] and "bf16" in steps[1], steps
