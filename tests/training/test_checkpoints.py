"""Checkpoints: what comes back is what was saved, on any mesh, and half a save does not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.data import loader
from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.training.checkpoints import Checkpoints, load_parameters, save_parameters
from qrpo_jax.training.state import State, initial_state, parameter_layout
from tests.helpers import tiny
from tests.helpers.runs import trainable
from tests.helpers.steps import OPTIMIZER

TABLE = tiny.examples(23)
PLAN = tiny.plan(TABLE, batch_units=5)


def state(step=3):
    """A state in which no two arrays are alike."""
    leaves, tree = jax.tree.flatten(initial_state(tiny.parameters(), OPTIMIZER, seed=5))
    rng = np.random.default_rng(0)
    filled = [jnp.asarray(rng.uniform(1, 9, x.shape)).astype(x.dtype) for x in leaves]
    return jax.tree.unflatten(tree, filled)._replace(step=jnp.asarray(step, jnp.int32))


def one():
    return make_mesh(1, 1, 1, devices=jax.devices()[:1])


def on(mesh):
    return trainable(OPTIMIZER, mesh, tiny.parameters)


def save(directory):
    """Saves a checkpoint after two batches, and returns the batch that comes next."""
    batches = loader.batches(TABLE, PLAN)
    next(batches), next(batches)
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(state(), batches)
    return next(batches)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_state_and_iterator_come_back_on_any_mesh(tmp_path, sizes):
    expected = save(tmp_path)
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    batches = loader.batches(TABLE, PLAN)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 3
        back = checkpoints.restore(on(mesh).abstract(), batches)
    assert isinstance(back, State)
    tiny.assert_trees_equal(jax.device_get(back), jax.device_get(state()))
    placed = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), back, on(mesh).shardings())
    assert all(jax.tree.leaves(placed))
    assert jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype, back, state()))
    assert all(np.array_equal(a, b) for a, b in zip(next(batches), expected, strict=True))


def test_a_state_saved_from_eight_devices_comes_back_on_one(tmp_path):
    mesh = make_mesh(2, 2, 2)
    with Checkpoints(tmp_path) as checkpoints:
        placed = jax.device_put(state(), on(mesh).shardings())
        checkpoints.save(placed, loader.batches(TABLE, PLAN))
    with Checkpoints(tmp_path) as checkpoints:
        back = checkpoints.restore(on(one()).abstract(), loader.batches(TABLE, PLAN))
    tiny.assert_trees_equal(jax.device_get(back), jax.device_get(state()))


def test_donating_the_state_after_a_save_does_not_touch_what_is_saved(tmp_path):
    """Orbax still writes in the background while the next step overwrites the state's memory."""
    overwrite = jax.jit(
        lambda s: jax.tree.map(lambda x: x * 0 - 1, s._replace(key=s.key.astype(jnp.int32))), donate_argnums=0
    )
    with Checkpoints(tmp_path) as checkpoints:
        live = jax.tree.map(lambda x: x.copy(), state())
        checkpoints.save(live, loader.batches(TABLE, PLAN))
        overwrite(live)
    with Checkpoints(tmp_path) as checkpoints:
        back = checkpoints.restore(on(one()).abstract(), loader.batches(TABLE, PLAN))
    tiny.assert_trees_equal(jax.device_get(back), jax.device_get(state()))


def test_only_the_latest_are_kept_and_half_a_save_does_not_count(tmp_path):
    batches = loader.batches(TABLE, PLAN)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest is None
        for step in (1, 4, 9):
            checkpoints.save(state(step), batches)
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [4, 9]
    # What a kill leaves behind.
    (tmp_path / "12.orbax-checkpoint-tmp-7").mkdir()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest == 9


def test_parameters_alone_come_back_with_the_type_of_the_layout(tmp_path):
    save_parameters(tmp_path / "parameters", tiny.parameters())
    save_parameters(tmp_path / "parameters", tiny.parameters())  # a stage that ran again writes over it
    for dtype in (jnp.float32, jnp.bfloat16):
        layout = parameter_layout(make_mesh(2, 2, 2), tiny.SETTINGS, dtype)
        back = load_parameters(tmp_path / "parameters", layout)
        assert jax.tree.all(jax.tree.map(lambda x, where: x.sharding == where.sharding, back, layout))
        expected = jax.tree.map(lambda x, where: x.astype(where.dtype), tiny.parameters(), layout)
        tiny.assert_trees_equal(jax.device_get(back), expected)
