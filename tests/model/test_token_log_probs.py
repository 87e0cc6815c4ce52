"""Log-softmax at targets in chunks of the vocabulary: the dense formula, on one device and on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.model.token_log_probs import NO_TARGET, Head, token_log_probs
from tests.helpers import tiny
from tests.helpers.programs import products
from tests.helpers.samples import sampled


def dense(hidden, columns, targets, temperature, cap):
    """The formula with all logits in memory; 0 where there is no target."""
    logits = hidden @ columns.T
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    each = jax.nn.log_softmax(logits / temperature)
    picked = jnp.take_along_axis(each, jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    return jnp.where(targets == NO_TARGET, 0.0, picked)


def value_and_gradients(score, hidden, columns, targets):
    """Values [B, L], and gradients of a weighted sum of them by hidden states and columns."""
    weights = np.random.default_rng(5).normal(size=targets.shape).astype(np.float32)

    def total(hidden, columns):
        each = score(hidden, columns, targets)
        return jnp.sum(weights * each), each

    return jax.jit(jax.grad(total, (0, 1), has_aux=True))(hidden, columns)


def arrays(rows, length, vocab=46, d_model=26):
    """Hidden states, columns, and targets of which a third are none; the first and last token are among them."""
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=(rows, length, d_model)).astype(np.float32)
    columns = rng.normal(size=(vocab, d_model)).astype(np.float32)
    targets = np.where(rng.integers(3, size=(rows, length)), rng.integers(vocab, size=(rows, length)), NO_TARGET)
    targets[0, :2] = 0, vocab - 1
    return hidden, columns, targets.astype(np.int32)


@pytest.mark.parametrize(
    "temperature, cap, chunk",
    sampled([(*form, chunk) for chunk in (1, 5, 23, 45, 46, 100) for form in ((1.0, None), (0.6, None), (0.6, 3.0))]),
)
def test_vocabulary_in_chunks_equals_all_at_once(chunk, temperature, cap):
    """Value and gradients, chunk dividing V = 46 or not; a soft cap comes before the temperature."""
    given = arrays(2, 3)[:2], np.asarray([[0, 45, 22], [23, 5, 44]])
    (*both, targets) = *given[0], given[1]
    head = Head(temperature, cap, chunk, None)
    got = value_and_gradients(lambda *x: token_log_probs(*x, head), *both, targets)
    want = value_and_gradients(lambda *x: dense(*x, temperature, cap), *both, targets)
    tiny.assert_trees_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("chunk", [0, 7])
def test_large_logits_stay_finite(chunk):
    hidden = np.full((1, 1, 26), 40.0, np.float32)
    columns = np.full((46, 26), 10.0, np.float32) * np.linspace(-1, 1, 46, dtype=np.float32)[:, None]
    got = token_log_probs(hidden, columns, np.asarray([[45]]), Head(1.0, None, chunk, None))
    np.testing.assert_allclose(got, 0.0, atol=1e-3)


def test_without_a_target_the_result_is_0_and_no_gradient_flows():
    hidden, columns, targets = arrays(3, 5)
    none = targets == NO_TARGET
    assert 0 < none.sum() < none.size
    score = functools.partial(token_log_probs, head=Head(0.7, 3.0, 11, None))
    (of_hidden, _), values = value_and_gradients(score, hidden, columns, targets)
    assert (values[none] == 0).all() and (np.abs(values[~none]) > 0).all()
    assert (of_hidden[none] == 0).all() and (np.abs(of_hidden[~none]).max(-1) > 0).all()
    _, (_, of_columns) = value_and_gradients(score, hidden, columns, np.full_like(targets, NO_TARGET))[::-1]
    assert (of_columns == 0).all()


# Sizes of `make_mesh`: data, fsdp, tensor, context, replica.
MESHES = [(1, 2, 2, 2), (2, 1, 4, 1), (1, 1, 4, 2), (1, 2, 1, 4), (2, 2, 2, 1), (1, 4, 1, 1, 2), (1, 1, 2, 1, 4)]
# Rows and length that all axes divide; that none does, so that devices compute copies; and that some do.
SHAPES = [(8, 16), (3, 7), (2, 12)]


@pytest.mark.parametrize("sizes, rows, length", sampled([(sizes, *shape) for shape in SHAPES for sizes in MESHES]))
def test_on_a_mesh_values_and_gradients_are_those_of_the_dense_formula(sizes, rows, length):
    """V = 44 in up to four parts, in chunks of which neither 44 nor a part is a multiple."""
    given, cap = arrays(rows, length, 44, 20), 3.0
    head = Head(0.7, cap, 7, make_mesh(*sizes))
    got = value_and_gradients(lambda *x: token_log_probs(*x, head), *given)
    want = value_and_gradients(lambda *x: dense(*x, 0.7, cap), *given)
    tiny.assert_trees_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("sizes", [None, (1, 2, 2, 2)])
def test_a_scale_of_logits_comes_before_cap_and_temperature(sizes):
    """As if the unembedding were larger by this factor."""
    given, scale = arrays(4, 8, 44, 20), 0.3
    head = Head(0.7, 3.0, 7, make_mesh(*sizes) if sizes else None, scale)
    got = value_and_gradients(lambda *x: token_log_probs(*x, head), *given)
    want = value_and_gradients(lambda hidden, columns, *x: dense(hidden, scale * columns, *x, 0.7, 3.0), *given)
    tiny.assert_trees_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("sizes", [None, (1, 2, 2, 2)])
def test_the_gradient_of_frozen_columns_is_not_computed(sizes):
    """It is the only product of the shape [chunk, D], of the 14 tokens of a chunk, or 7 in each part."""
    hidden, columns, targets = arrays(8, 16, 28, 20)
    head = Head(1.0, None, 14, make_mesh(*sizes) if sizes else None)

    def shapes(arguments):
        gradient = jax.grad(lambda *both: token_log_probs(*both, targets, head).sum(), arguments)
        return set(products(jax.make_jaxpr(gradient)(hidden, columns).jaxpr))

    of_columns = {(7, 20) if sizes else (14, 20)}
    assert shapes((0, 1)) - shapes((0,)) == of_columns, (shapes((0, 1)), shapes((0,)))
