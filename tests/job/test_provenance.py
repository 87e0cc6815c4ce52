"""Starts of a stage: each is on record with time, machine and command; one that was killed has no end."""

import json
from pathlib import Path

import pytest
from ml_collections import FrozenConfigDict

import qrpo_jax
from configs import default
from qrpo_jax.job import integrity, provenance
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.stages import STAGES


def job_in(workdir: Path, shard: tuple[int, int] = (0, 1)) -> Job:
    return Job(FrozenConfigDict(default.get_config()), workdir, Shard(*shard), STAGES)


def test_each_start_is_on_record_and_a_failing_one_too(tmp_path):
    job = job_in(tmp_path)
    with provenance.recorded(job, "train"):
        (begun,) = provenance.starts(job.folder("train"))
    with pytest.raises(KeyError), provenance.recorded(job, "train"):
        raise KeyError
    first, second = provenance.starts(job.folder("train"))
    assert begun["seconds"] is None and first["started"] == begun["started"]
    for one in (first, second):
        assert one["seconds"] >= 0 and one["peak_bytes"] > 1e7 and one["version"] == qrpo_jax.__version__, one
        assert one["command"] and "cores" in one["hardware"] and one["libraries"]["jax"], one


def test_shards_have_records_of_their_own(tmp_path):
    for index in (1, 0):
        with provenance.recorded(job_in(tmp_path, (index, 2)), "score"):
            pass
    assert len(provenance.starts(tmp_path / "score")) == 2
    assert len(list((tmp_path / "score" / provenance.FOLDER).iterdir())) == 2


def test_records_are_no_part_of_what_a_stage_wrote(tmp_path):
    job = job_in(tmp_path)
    with provenance.recorded(job, "train"):
        (job.folder("train") / "rows").write_text("x")
    assert list(integrity.listing(job.folder("train"))) == ["rows"]


@pytest.mark.parametrize("content", [b"", b"[{]", b"7", json.dumps([{"started": 1}]).encode()])
def test_a_record_that_is_not_whole_is_left_out(tmp_path, content):
    path = tmp_path / provenance.FOLDER / "0-of-1.json"
    path.parent.mkdir()
    path.write_bytes(content)
    assert provenance.starts(tmp_path) == [] and provenance.starts(tmp_path / "absent") == []
