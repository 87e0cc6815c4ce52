"""Parameters laid out for decoding: the same samples, and no weights on the network in a decode step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.devices.mesh import make_mesh, parameter_shardings, place, regrouped, row_sharding
from qrpo_jax.devices.program import hlo
from qrpo_jax.devices.program.collectives import collectives
from qrpo_jax.errors import UserError
from qrpo_jax.model import decoder
from qrpo_jax.model.compute import Compute
from qrpo_jax.sampling import sampler
from tests.helpers import tiny

PROMPTS = np.random.default_rng(7).integers(3, 46, (8, 7)).astype(np.int32)
LENGTHS = np.asarray([3, 7, 5, 1, 6, 2, 7, 4], np.int32)
NEW = 11
SETTINGS = dataclasses.replace(tiny.UNTIED, vocab_size=52, d_model=40, heads=8, kv_heads=4, d_ff=44)
GRAPH, PARAMETERS = decoder.graph(SETTINGS), tiny.parameters(SETTINGS)


def program(mesh, tensor, dtype):
    """The sampler and its arguments; weights are laid out for groups of `tensor` devices, or are as they lie if 0."""
    compute = Compute(dtype, mesh=mesh)
    if tensor:
        compute = compute._replace(mesh=regrouped(mesh, tensor), stored=mesh)
    sampling = sampler.make_sampler(
        GRAPH, completions=3, max_new_tokens=NEW, temperature=0.8, end_tokens=(2, 11), slots=4, compute=compute
    )
    shardings = parameter_shardings(mesh, decoder.logical_axes(SETTINGS), PARAMETERS)
    keys = jax.device_put(jax.random.split(jax.random.key(3), 8), row_sharding(compute.mesh))
    rows = place((PROMPTS, LENGTHS), row_sharding(compute.mesh))
    return jax.jit(sampling, out_shardings=sampler.sample_shardings(compute)), (
        jax.device_put(PARAMETERS, shardings),
        *rows,
        keys,
    )


def draw(*setup):
    sampling, arguments = program(*setup)
    return jax.device_get(sampling(*arguments))


@pytest.mark.parametrize(
    ("sizes", "tensor"), [((1, 4, 2), 2), ((1, 8, 1), 1), ((1, 8, 1), 4), ((2, 2, 1, 2), 2), ((1, 2, 2, 1, 2), 1)]
)
def test_samples_are_those_of_parameters_as_they_lie(sizes, tensor):
    mesh = make_mesh(*sizes)
    laid_out, as_they_lie = draw(mesh, tensor, jnp.float32), draw(mesh, 0, jnp.float32)
    np.testing.assert_array_equal(laid_out.tokens_PxnxT, as_they_lie.tokens_PxnxT)
    np.testing.assert_allclose(laid_out.log_probs_PxnxT, as_they_lie.log_probs_PxnxT, rtol=2e-5, atol=2e-5)


def test_in_bfloat16_log_probs_stay_close():
    """Products are split otherwise, so they round otherwise."""
    mesh = make_mesh(1, 4, 2)
    laid_out, as_they_lie = draw(mesh, 4, jnp.bfloat16), draw(mesh, 0, jnp.bfloat16)
    same = (laid_out.tokens_PxnxT == as_they_lie.tokens_PxnxT).all(-1)
    gap = np.abs(laid_out.log_probs_PxnxT - as_they_lie.log_probs_PxnxT)[same].max()
    assert same.mean() > 0.5 and gap < 0.15, (same.mean(), gap)


def received(*setup):
    """Bytes of weights that a device receives: in all decode steps, and once for the layout."""
    sampling, arguments = program(*setup)
    found = collectives(hlo.parse(sampling.lower(*arguments).compile().as_text()), 8)
    decoding = [one for one in found if "while/body/while/body" in one.source and "sharding_constraint" in one.source]
    once = [one for one in found if sampler.LAYOUT in one.source]
    assert all(one.times == 1 for one in once), once
    return tuple(sum(one.bytes * one.times for one in of) for of in (decoding, once))


@pytest.mark.parametrize("tensor", [2, 4])
def test_weights_cross_the_network_once_and_not_for_each_token(tensor):
    mesh = make_mesh(1, 4, 2)
    steps, none = received(mesh, 0, jnp.float32)
    nothing, once = received(mesh, tensor, jnp.float32)
    held = sum(leaf.size for leaf in jax.tree.leaves(PARAMETERS)) * 4
    assert none == nothing == 0 and steps > 10 * once, (steps, none, nothing, once)
    # Of a copy a device holds one in `tensor` parts already, or an eighth of that.
    assert 0.6 * held / tensor < once < 1.5 * held / tensor, (once, held)


def test_groups_must_fill_a_slice():
    with pytest.raises(UserError, match="3 devices a copy; fsdp, tensor and context together are 8"):
        regrouped(make_mesh(1, 4, 2), 3)
