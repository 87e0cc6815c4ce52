"""A training run in a store resumes from the store alone, and ends like one on disk."""

from pathlib import Path

import jax
import numpy as np
import pytest

from qrpo_jax.data import loader
from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.errors import DamagedError, UserError
from qrpo_jax.stores.path import StorePath
from qrpo_jax.stores.store import open_store
from qrpo_jax.training import orbax_folders
from qrpo_jax.training.checkpoints import Checkpoints
from qrpo_jax.training.metrics import Written
from qrpo_jax.training.saved_parameters import load_parameters, save_parameters
from qrpo_jax.training.state import parameter_layout
from qrpo_jax.training.stored_steps import INDEX
from tests.helpers import tiny
from tests.helpers.faults import flip
from tests.helpers.runs import Killed, figures
from tests.training.test_checkpoints import PLAN, TABLE, on, one, state
from tests.training.test_fit import run


def test_a_run_that_is_killed_ends_like_an_undisturbed_one_on_disk(bucket: str, tmp_path: Path) -> None:
    stored, disk = StorePath(f"{bucket}/run/train"), tmp_path / "train"
    wanted = run(disk)
    for kill_at in (2, 4, 3):
        with pytest.raises(Killed):
            run(stored, kill_at=kill_at)
        open_store.cache_clear()  # another process, with nothing on its disk and late listings
    tiny.assert_trees_equal(run(stored), wanted)
    assert figures(stored) == figures(disk)
    open_store.cache_clear()
    assert (stored / "checkpoints" / INDEX).read_text().split() == ["[", "6,", "7", "]"]


def saved(bucket: str) -> StorePath:
    """A folder with the checkpoints of steps 3 and 5."""
    directory = StorePath(f"{bucket}/train/checkpoints")
    with Checkpoints(directory) as checkpoints:
        for step in (3, 5):
            checkpoints.save(state(step), loader.batches(TABLE, PLAN), Written())
    return directory


@pytest.mark.parametrize("fault", ["changed", "missing", "list"])
def test_a_damaged_checkpoint_is_set_aside_as_on_disk(bucket: str, fault: str) -> None:
    directory = saved(bucket)
    data = max((directory / "5" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    if fault == "changed":
        flip(data, np.random.default_rng(0))
    elif fault == "missing":
        data.unlink()
    else:
        directory.joinpath("5.objects.json").unlink()
        data.unlink()
    open_store.cache_clear()
    warnings: list[str] = []
    with Checkpoints(directory, warn=warnings.append) as checkpoints:
        resumed = checkpoints.restore(on(one()).abstract(), loader.batches(TABLE, PLAN))
    assert resumed is not None and resumed.step == 3
    tiny.assert_trees_equal(jax.device_get(resumed.state), jax.device_get(state(3)))
    (line,) = warnings
    assert f"{directory}/5 is damaged" in line and f"{bucket}/train/damaged-checkpoint-5" in line, line
    open_store.cache_clear()
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest == 3


def test_checkpoints_that_orbax_has_marked_are_found_without_an_index(bucket: str, monkeypatch) -> None:
    directory = saved(bucket)
    monkeypatch.setenv("FAKE_LATE", "0")
    for path in (directory / INDEX, directory / "3.objects.json", directory / "5.objects.json"):
        path.unlink()
    (directory / "7" / "state").joinpath("_METADATA").write_bytes(b"left by a process that was killed")
    with Checkpoints(directory) as checkpoints:
        resumed = checkpoints.restore(on(one()).abstract(), loader.batches(TABLE, PLAN))
    assert resumed is not None and resumed.step == 5


def test_several_processes_need_a_store_that_orbax_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    orbax_folders.check(StorePath("s3://bucket/run"))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    orbax_folders.check(StorePath("gs://bucket/run"))
    orbax_folders.check(Path("run"))
    with pytest.raises(UserError, match="s3://bucket/run: several processes save to a folder .* or to gs://"):
        orbax_folders.check(StorePath("s3://bucket/run"))


def test_parameters_come_back_and_damage_is_named(bucket: str) -> None:
    directory, parameters = StorePath(f"{bucket}/train/parameters"), tiny.parameters()
    layout = parameter_layout(make_mesh(1, 1, 1, devices=jax.devices()[:1]), tiny.SETTINGS)
    save_parameters(directory, tiny.parameters(seed=1))
    flip(max((directory / "arrays").rglob("*"), key=lambda path: path.stat().st_size), np.random.default_rng(0))
    with pytest.raises(DamagedError, match="fake://bucket/train/parameters"):
        load_parameters(directory, layout)
    save_parameters(directory, parameters)  # takes the place of the first
    open_store.cache_clear()
    for _ in range(2):
        tiny.assert_trees_equal(jax.device_get(load_parameters(directory, layout)), jax.device_get(parameters))
