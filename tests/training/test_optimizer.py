"""Adam's moments in bfloat16: half the memory, the same update on average, split like their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.errors import UserError
from qrpo_jax.training.optimizer import make_optimizer
from qrpo_jax.training.state import parameter_layout, state_shardings
from tests.helpers import steps, tiny

LOW = make_optimizer(steps.OPTIMIZATION._replace(moment_dtype="bfloat16", clip_norm=0.0), steps=1000)[0]
FULL = make_optimizer(steps.OPTIMIZATION._replace(clip_norm=0.0), steps=1000)[0]


def adam(state):
    parts = jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu"))
    return next(part for part in parts if hasattr(part, "mu"))


def test_moments_are_bfloat16_between_steps_and_split_like_their_parameters():
    layout = parameter_layout(make_mesh(2, 2, 2), tiny.SETTINGS)
    state = jax.eval_shape(LOW.init, layout)
    assert {leaf.dtype for leaf in jax.tree.leaves((adam(state).mu, adam(state).nu))} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(adam(jax.eval_shape(FULL.init, layout)).mu)} == {np.dtype("f4")}
    shardings = state_shardings(layout, LOW)
    assert adam(shardings.optimizer).mu == adam(shardings.optimizer).nu == shardings.parameters


def test_moments_of_a_constant_gradient_grow_on_average_as_in_float32():
    """Rounding to nearest would stop the second moment: at b2 = 0.95 it soon nears g² by less than 2^-9 a step.

    Over 997 weights the mean relative error of a rounded moment is 2^-9 / sqrt(997) or so.
    """
    weights = {"w": jnp.zeros((997, 1))}
    gradient = {"w": jnp.full((997, 1), 0.7)}
    states = {name: optimizer.init(weights) for name, optimizer in (("low", LOW), ("full", FULL))}
    for _ in range(137):
        for name, optimizer in (("low", LOW), ("full", FULL)):
            _, states[name] = jax.jit(optimizer.update)(gradient, states[name], weights)
    for moment in ("mu", "nu"):
        low = np.asarray(getattr(adam(states["low"]), moment)["w"], np.float64)
        full = np.asarray(getattr(adam(states["full"]), moment)["w"], np.float64)
        assert abs(low.mean() / full.mean() - 1) < 5e-4, (moment, low.mean(), full.mean())
        assert np.unique(low).size > 1, "rounded to nearest, all weights would have the same moment"


def test_an_update_with_low_moments_is_near_that_with_full_ones():
    gradient = {"w": jax.random.normal(jax.random.key(1), (61, 53))}
    weights = jax.tree.map(jnp.zeros_like, gradient)
    low, full = LOW.init(weights), FULL.init(weights)
    for _ in range(3):
        of_low, low = LOW.update(gradient, low, weights)
        of_full, full = FULL.update(gradient, full, weights)
    worst = float(jnp.max(jnp.abs(of_low["w"] - of_full["w"])) / jnp.max(jnp.abs(of_full["w"])))
    assert 0 < worst < 0.02, worst


def test_an_unknown_type_of_moments_is_refused():
    with pytest.raises(UserError, match="'float16'; allowed: float32, bfloat16") as caught:
        make_optimizer(steps.OPTIMIZATION._replace(moment_dtype="float16"), steps=3)
    assert caught.value.about == ("moment_dtype",)
