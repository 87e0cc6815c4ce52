"""Two hosts with checkpoints on their disks: what a killed run resumes from, and that it ends as if nothing had been.

The hosts are processes of this machine that work in different folders, where each has its disk. Each has one of two
copies of the model.
"""

import re
import shutil
import signal
import time

import numpy as np
import pytest

from qrpo_jax.training.local_checkpoints import IDENTITY
from tests.helpers.faults import flip
from tests.helpers.runs import figures
from tests.job.test_processes import parameters, start

pytestmark = pytest.mark.slow
SAVED = 13  # steps between checkpoints of the work directory
SFT = (
    "--config.stages=sft",
    "--config.sft.epochs=2",
    f"--config.sft.checkpoint_every={SAVED}",
    "--config.mesh.replica=2",
)


def launched(folder):
    disk = "--config.checkpoints.local_directory=disk", "--config.checkpoints.local_every=3"
    for host in hosts(folder):
        host.mkdir(exist_ok=True)
    return start(folder / "run", 2, *SFT, *disk, folders=hosts(folder))


def hosts(folder):
    return [folder / f"host{i}" for i in range(2)]


def steps(folder):
    """Steps on the disk of each host, and in the work directory."""
    saved = [host.glob("disk/*/*/*") for host in hosts(folder)] + [(folder / "run/sft/checkpoints").glob("*")]
    *local, stored = [sorted(int(path.name) for path in paths if path.name.isdigit()) for paths in saved]
    return local, stored


def until(processes, true):
    end = time.monotonic() + 600
    while not true():
        assert time.monotonic() < end and all(process.poll() is None for process in processes), "it ended too early"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run without checkpoints on the hosts."""
    folder = tmp_path_factory.mktemp("whole")
    for process in start(folder / "run", 2, *SFT):
        assert process.communicate(timeout=600)[1] is None and process.returncode == 0
    return folder / "run/sft"


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of which every process was killed when both hosts had two steps after the last of the work directory."""
    folder = tmp_path_factory.mktemp("killed")
    processes = launched(folder)

    def far():
        local, saved = steps(folder)
        return saved and all(len(mine) > 1 and mine[-2] > max(saved) for mine in local)

    until(processes, far)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate(timeout=60)
    shutil.copytree(folder, folder.with_name("kept"))
    return folder


@pytest.fixture
def again(killed):
    """The killed run as it was left, at the same paths."""
    shutil.rmtree(killed)
    shutil.copytree(killed.with_name("kept"), killed)
    return killed


def resumed(folder, whole):
    """Ends a run, compares it with the undisturbed one, and returns what it said."""
    ended = [(process.communicate(timeout=600)[0], process.returncode) for process in launched(folder)]
    assert [status for _, status in ended] == [0, 0], ended[0][0][-3000:]
    old, new = parameters(whole), parameters(folder / "run/sft")
    assert all(np.array_equal(old[name], new[name]) for name in old) and old.keys() == new.keys()
    assert figures(whole) == figures(folder / "run/sft")
    assert not [left for host in hosts(folder) for left in (host / "disk").iterdir()], "the end clears the disks"
    return ended[0][0]


def resumed_from(said):
    found = re.findall(r"sft: resuming from step (\d+) on the disks of the hosts", said)
    return int(found[0]) if found else None


def damage(host, step):
    (folder,) = host.glob(f"disk/*/*/{step}")
    flip(max(folder.rglob("*"), key=lambda path: path.stat().st_size), np.random.default_rng(0))


def test_a_killed_run_resumes_from_the_disks_and_ends_like_an_undisturbed_one(again, whole):
    said = resumed(again, whole)
    assert resumed_from(said) == max(map(max, steps(again.with_name("kept"))[0])) and "WARNING" not in said, said


def test_what_one_host_has_lost_comes_from_the_other(again, whole):
    """The hosts are other processes than before, and the first has nothing but one step that is damaged."""
    first, second = hosts(again)
    newest = min(map(max, steps(again)[0]))
    for host in (first, second):
        for step in host.glob("disk/*/*/*"):
            if step.name.isdigit() and (int(step.name) > newest or host == second and int(step.name) < newest):
                shutil.rmtree(step)
    damage(second, newest)
    (first / "disk").rename(again / "moved"), (second / "disk").rename(first / "disk")
    (again / "moved").rename(second / "disk")
    said = resumed(again, whole)
    assert resumed_from(said) == newest, said
    assert re.search(rf"WARNING: step {newest} .* process 0: .*; another process has a whole copy", said), said


def test_steps_of_another_run_are_left_alone_and_sigterm_saves_in_the_work_directory(again):
    (again / "run/sft/checkpoints" / IDENTITY).unlink()
    left = steps(again)[0]
    saved = max(steps(again)[1])
    processes = launched(again)
    until(processes, lambda: steps(again)[0] != left)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs[0][-3000:]
    assert resumed_from(outputs[0]) is None
    (last,) = re.findall(r"the run stops after step (\d+)", outputs[0])
    assert saved < int(last) == max(steps(again)[1]), outputs[0][-3000:]


def test_a_folder_that_one_host_cannot_write_to_is_one_line(tmp_path):
    for host in hosts(tmp_path):
        host.mkdir()
    (hosts(tmp_path)[1] / "disk").write_text("")
    processes = launched(tmp_path)
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], outputs[0][-3000:]
    assert "cannot write to it" in outputs[0] and "Traceback" not in "".join(outputs), outputs
    assert not (tmp_path / "run").exists()
