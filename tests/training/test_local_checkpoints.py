"""Checkpoints on the hosts: the newest whole one counts, wherever it is, and nothing else is ever restored."""

import re
import shutil

import jax
import numpy as np
import pytest

from qrpo_jax.data import loader
from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.errors import DamagedError
from qrpo_jax.training import local_checkpoints, local_steps
from qrpo_jax.training.local_checkpoints import LocalCheckpoints
from qrpo_jax.training.metrics import Written
from tests.helpers import tiny
from tests.helpers.faults import FAULTS, content, restored
from tests.helpers.runs import Killed, trainable
from tests.helpers.steps import OPTIMIZER
from tests.training.test_checkpoints import TABLE, state

PLAN = tiny.plan(TABLE, batch_units=2)


def two_copies():
    """Four devices, of which two and two hold each part."""
    return trainable(OPTIMIZER, make_mesh(2, 2, 1, devices=jax.devices()[:4]), tiny.parameters)


def on_mesh(step):
    return jax.device_put(state(step), two_copies().shardings())


def opened(folder, said=None, **options):
    options = {"local": folder / "disk", "local_every": 2, "every": 5, "metrics": folder / "metrics.jsonl"} | options
    return LocalCheckpoints(folder / "run" / "checkpoints", say=(said if said is not None else []).append, **options)


def trained(folder, steps, **options):
    """Saves as a run would that is killed after its last step, when that step is on disk."""
    batches = loader.batches(TABLE, PLAN)
    with pytest.raises(Killed), opened(folder, **options) as checkpoints:
        assert checkpoints.restore(two_copies().abstract(), batches) is None
        for step in range(1, steps + 1):
            next(batches)
            if checkpoints.due(step):
                checkpoints.save(on_mesh(step), batches, Written())
        raise Killed
    return next(batches)


def resume(folder, abstract=None, **options):
    """Where a run goes on, the batch that comes next, and what is said."""
    said, batches = [], loader.batches(TABLE, PLAN)
    with pytest.raises(Killed), opened(folder, said, **options) as checkpoints:
        resumed = checkpoints.restore(abstract or two_copies().abstract(), batches)
        raise Killed
    if resumed is not None:
        tiny.assert_trees_equal(jax.device_get(resumed.state), jax.device_get(state(resumed.step)))
    return (0 if resumed is None else resumed.step), next(batches), said


def kept(folder):
    """Steps on the disk of the host."""
    return sorted(int(step.name) for step in (folder / "disk").glob("*/*/*") if step.name.isdigit())


def test_a_run_goes_on_from_the_newest_step_of_both_tiers(tmp_path):
    expected = trained(tmp_path, 8)
    assert kept(tmp_path) == [6, 8]
    step, batch, said = resume(tmp_path)
    assert step == 8 and all(np.array_equal(a, b) for a, b in zip(batch, expected, strict=True))
    assert said == ["resuming from step 8 on the disks of the hosts; the work directory has step 5"]
    assert kept(tmp_path) == [8]  # the one it went on from stays until there are newer ones
    other = tmp_path / "newer"
    trained(other, 5)
    assert kept(other) == [2, 4] and resume(other)[0] == 5 and kept(other) == []


def test_the_last_step_is_in_the_work_directory_and_the_end_clears_the_hosts(tmp_path):
    batches = loader.batches(TABLE, PLAN)
    with opened(tmp_path) as checkpoints:
        checkpoints.restore(two_copies().abstract(), batches)
        checkpoints.save(on_mesh(2), batches, Written())
        checkpoints.save(on_mesh(3), batches, Written(), last=True)
        checkpoints._local._manager.wait_until_finished()
        assert kept(tmp_path) == [2] and checkpoints.latest == 3
    assert not list((tmp_path / "disk").iterdir())


def test_steps_of_an_earlier_start_stay_until_the_next_start_has_one(tmp_path):
    trained(tmp_path, 8)
    batches = loader.batches(TABLE, PLAN)
    with pytest.raises(Killed), opened(tmp_path, every=99) as checkpoints:
        checkpoints.restore(two_copies().abstract(), batches)
        for step, steps in ((10, [8, 10]), (12, [10, 12]), (14, [12, 14])):
            checkpoints.save(on_mesh(step), batches, Written())
            checkpoints._local._manager.wait_until_finished()
            assert kept(tmp_path) == steps
        raise Killed
    assert resume(tmp_path)[0] == 14


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed with steps 6 and 8 on the host, and step 5 in the work directory."""
    folder = tmp_path_factory.mktemp("killed")
    trained(folder, 8)
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_on_a_host_changes_nothing_or_falls_back(killed, fault):
    rng, ends = np.random.default_rng(len(fault)), []
    (newest,) = (killed / "disk").glob("*/*/8")
    names = sorted(content(newest))
    largest = max(names, key=lambda name: len((newest / name).read_bytes()))
    for name in [largest, *rng.permutation(names)[:3]]:
        with restored(killed):
            FAULTS[fault](newest / name, rng)
            step, _, said = resume(killed)  # which compares the state with what was saved
            ends.append(step)
            if step != 8:
                assert step == 6 and len(said) == 2 and said[0].startswith("WARNING: step 8 "), said
                assert re.search(r"passed over: process 0: .+", said[0]) and "\n" not in said[0], said
    assert ends[0] == 6, (largest, ends)


def test_without_a_whole_step_on_the_hosts_the_work_directory_counts(killed):
    with restored(killed):
        shutil.rmtree(killed / "disk")
        assert resume(killed)[::2] == (5, [])
    with restored(killed):
        for step in (killed / "disk").glob("*/*/*"):
            (step / "record" / "metadata").unlink()
        step, _, said = resume(killed)
        assert step == 5 and [line[:15] for line in said] == ["WARNING: step 8", "WARNING: step 6"], said
    with restored(killed):
        other = trainable(OPTIMIZER, make_mesh(1, 2, 2, devices=jax.devices()[:4]), tiny.parameters)
        step, _, said = resume(killed, other.abstract())
        assert step == 5 and "no host has some parts that this mesh needs" in said[0], said


def test_a_step_that_knows_metrics_which_are_gone_is_passed_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"line\n")
    batches = loader.batches(TABLE, PLAN)
    with pytest.raises(Killed), opened(tmp_path) as checkpoints:
        checkpoints.restore(two_copies().abstract(), batches)
        checkpoints.save(on_mesh(2), batches, Written())
        checkpoints.save(on_mesh(4), batches, Written(5, "no such sum"))
        raise Killed
    step, _, said = resume(tmp_path)
    assert step == 2 and "it is not what the hosts know of it at step 4" in said[0], said


def test_what_another_work_directory_or_another_run_left_is_never_restored(killed):
    with restored(killed):
        shutil.copytree(killed / "run", killed / "copy" / "run")
        step, _, _ = resume(killed / "copy", local=killed / "disk")
        assert step == 5 and kept(killed) == [6, 8]  # a copy starts from its own steps, and leaves the others
        shutil.rmtree(killed / "copy")
    with restored(killed):
        shutil.rmtree(killed / "run")
        assert resume(killed)[0] == 0
        shutil.rmtree(killed / "run")
    with restored(killed):
        (killed / "run" / "checkpoints" / local_checkpoints.IDENTITY).write_bytes(b"{}")
        assert resume(killed)[0] == 5


def test_steps_that_changed_places_are_refused(killed):
    with restored(killed):
        (newest,) = (killed / "disk").glob("*/*/8")
        folder = newest.parent
        (folder / "6").rename(folder / "x"), (folder / "8").rename(folder / "6"), (folder / "x").rename(folder / "8")
        steps = local_steps.LocalSteps(folder.parent)
        for step, other in ((8, 6), (6, 8)):
            with pytest.raises(DamagedError, match=f"it is step {other}"):
                steps.read(step, two_copies().abstract()._asdict())
        steps.close()
