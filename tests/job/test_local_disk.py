"""A folder for checkpoints on the hosts that is no use is refused in one line, before anything is written."""

import socket

import pytest

from qrpo_jax.job import local_disk
from tests.helpers.jobs import refused


@pytest.fixture
def two_hosts(monkeypatch):
    monkeypatch.setattr(local_disk, "fewest_holders", lambda mesh: 2)


def test_parts_that_one_process_alone_has_are_refused(tmp_path):
    message = "on one process alone.*set config.mesh.replica or config.mesh.data.*config.checkpoints.local_directory"
    refused(tmp_path, message, checkpoints__local_directory=str(tmp_path / "disk"))


@pytest.mark.parametrize("every", [7, 8])
def test_a_pace_that_is_no_faster_than_the_work_directorys_is_refused(tmp_path, two_hosts, every):
    disk = {"checkpoints__local_directory": str(tmp_path / "disk"), "checkpoints__local_every": every}
    message = rf"local_every is {every}; it must be below sft.checkpoint_every, which is 7 \(config.checkpoints.local_"
    refused(tmp_path, message, sft__checkpoint_every=7, **disk)
    assert not (tmp_path / "disk").exists()


def test_a_pace_below_1_is_refused_where_it_is_set(tmp_path):
    refused(tmp_path, "local_every is 0", checkpoints__local_every=0)


def test_a_folder_that_is_no_folder_of_a_disk_or_cannot_be_written_to_is_refused(tmp_path, two_hosts):
    (tmp_path / "file").write_text("")
    host = socket.gethostname()
    refused(tmp_path, f"{host} cannot write to it: .*Not a dir", checkpoints__local_directory=str(tmp_path / "file"))
    refused(tmp_path, f"{host} cannot write to it", checkpoints__local_directory=str(tmp_path / "file" / "below"))
    refused(tmp_path, "must be a folder on a disk of each host", checkpoints__local_directory="gs://bucket/disk")
