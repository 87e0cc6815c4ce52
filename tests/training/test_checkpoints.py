"""Checkpoints: what comes back is what was saved, on any mesh, and half a save does not count."""

import errno
import itertools
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from qrpo_jax.data import loader
from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.errors import DamagedError
from qrpo_jax.training.checkpoints import Checkpoints
from qrpo_jax.training.metrics import Written
from qrpo_jax.training.saved_parameters import load_parameters, save_parameters
from qrpo_jax.training.state import State, initial_state, parameter_layout
from tests.helpers import tiny
from tests.helpers.faults import FAULTS, content, restored
from tests.helpers.runs import trainable
from tests.helpers.samples import sampled
from tests.helpers.steps import OPTIMIZER

TABLE = tiny.examples(23)
PLAN = tiny.plan(TABLE, batch_units=5)
RECORD = "record/metadata"  # a file of each checkpoint


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
        checkpoints.save(state(), batches, Written())
    return next(batches)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_state_and_iterator_come_back_on_any_mesh(tmp_path, sizes):
    expected = save(tmp_path)
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    batches = loader.batches(TABLE, PLAN)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 3
        back = checkpoints.restore(on(mesh).abstract(), batches).state
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
        checkpoints.save(placed, loader.batches(TABLE, PLAN), Written())
    with Checkpoints(tmp_path) as checkpoints:
        back = checkpoints.restore(on(one()).abstract(), loader.batches(TABLE, PLAN)).state
    tiny.assert_trees_equal(jax.device_get(back), jax.device_get(state()))


def test_donating_the_state_after_a_save_does_not_touch_what_is_saved(tmp_path):
    """Orbax still writes in the background while the next step overwrites the state's memory."""
    overwrite = jax.jit(
        lambda s: jax.tree.map(lambda x: x * 0 - 1, s._replace(key=s.key.astype(jnp.int32))), donate_argnums=0
    )
    with Checkpoints(tmp_path) as checkpoints:
        live = jax.tree.map(lambda x: x.copy(), state())
        checkpoints.save(live, loader.batches(TABLE, PLAN), Written())
        overwrite(live)
    with Checkpoints(tmp_path) as checkpoints:
        back = checkpoints.restore(on(one()).abstract(), loader.batches(TABLE, PLAN)).state
    tiny.assert_trees_equal(jax.device_get(back), jax.device_get(state()))


def test_only_the_latest_are_kept_and_half_a_save_does_not_count(tmp_path):
    batches = loader.batches(TABLE, PLAN)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest is None
        for step in (1, 4, 9):
            checkpoints.save(state(step), batches, Written())
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


def arrays_differ(a, b):
    return any(not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the checkpoints of steps 3 and 9."""
    directory = tmp_path_factory.mktemp("two") / "checkpoints"
    batches = loader.batches(TABLE, PLAN)
    with Checkpoints(directory) as checkpoints:
        for step in (3, 9):
            next(batches)
            checkpoints.save(state(step), batches, Written(step, "sum"))
    return directory


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("files", sampled([3, 11]))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_newest_checkpoint_changes_nothing_or_falls_back(two, fault, files):
    rng, ends = np.random.default_rng(len(fault)), []
    expected = {step: jax.device_get(state(step)) for step in (3, 9)}
    others = rng.permutation(sorted(content(two / "9").keys() - {RECORD}))
    for name in [RECORD, *others][:files]:  # any fault in the record is one
        with restored(two.parent):
            warnings = []
            FAULTS[fault](two / "9" / name, rng)
            with Checkpoints(two, warn=warnings.append) as checkpoints:
                resumed = checkpoints.restore(on(one()).abstract(), loader.batches(TABLE, PLAN))
            ends.append(resumed.step)
            assert not arrays_differ(jax.device_get(resumed.state), expected[resumed.step]), (name, resumed.step)
            assert resumed.metrics == Written(resumed.step, "sum")
            if resumed.step == 3:
                (warning,) = warnings
                assert "9 is damaged" in warning and "\n" not in warning and "going on from 3" in warning, warning
                assert (two.parent / "damaged-checkpoint-9").is_dir() and not (two / "9").exists()
        shutil.rmtree(two.parent / "damaged-checkpoint-9", ignore_errors=True)
    assert 3 in ends, ends


def test_checkpoints_that_changed_places_are_refused_and_after_a_fall_back_the_step_is_saved_again(two):
    with restored(two.parent):
        (two / "3").rename(two / "x"), (two / "9").rename(two / "3"), (two / "x").rename(two / "9")
        with Checkpoints(two) as checkpoints, pytest.raises(DamagedError, match="it is the checkpoint of step 3"):
            checkpoints.restore(on(one()).abstract(), loader.batches(TABLE, PLAN))
    with restored(two.parent):
        for file in (two / "9" / "state").rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
        batches = loader.batches(TABLE, PLAN)
        with Checkpoints(two) as checkpoints:
            assert checkpoints.restore(on(one()).abstract(), batches).step == 3
            checkpoints.save(state(9), batches, Written())
        with Checkpoints(two) as checkpoints:
            assert checkpoints.restore(on(one()).abstract(), batches).step == 9


def test_every_fault_in_parameters_is_refused_or_changes_nothing(tmp_path):
    directory, rng, refused = tmp_path / "sft" / "parameters", np.random.default_rng(0), set()
    save_parameters(directory, tiny.parameters())
    save_parameters(tmp_path / "train" / "parameters", jax.tree.map(lambda x: x + 1, tiny.parameters()))
    layout = parameter_layout(one(), tiny.SETTINGS)
    files = content(directory)
    numbers = max(files, key=lambda name: len(files[name]))
    for fault, name in itertools.product(FAULTS, [numbers, *rng.permutation(sorted(files))[:1]]):
        with restored(tmp_path):
            FAULTS[fault](directory / name, rng)
            try:
                back = load_parameters(directory, layout)
            except DamagedError as error:
                assert "parameters is damaged" in str(error) and "\n" not in str(error), error
                refused.add((fault, name))
                continue
            assert not arrays_differ(jax.device_get(back), tiny.parameters()), (fault, name)
    assert {("cut", numbers), ("delete", numbers)} <= refused, refused
    directory.rename(tmp_path / "kept"), (tmp_path / "train" / "parameters").rename(directory)
    with pytest.raises(DamagedError, match="not what was written here"):
        load_parameters(directory, layout)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, os.strerror(errno.EIO), "state/d/0"),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES), "state/d/0"),
        ValueError(f"UNKNOWN: reading state/d/0: {os.strerror(errno.EIO)}"),
        MemoryError(),
        JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"),
    ],
    ids=repr,
)
def test_what_fails_for_another_reason_than_the_files_leaves_a_good_checkpoint_in_its_place(two, monkeypatch, error):
    def restore(*_, **__):
        raise error

    before = content(two)
    with Checkpoints(two) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "restore", restore)
        with pytest.raises(type(error)) as raised:
            checkpoints.restore(on(one()).abstract(), loader.batches(TABLE, PLAN))
    assert raised.value is error and content(two) == before
