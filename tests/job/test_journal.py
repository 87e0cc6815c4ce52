"""The journal says what runs, where it stands and how it ended; a run does not depend on it."""

import time
from pathlib import Path

import pytest

from qrpo_jax.faults.interruption import RUN, Place
from qrpo_jax.job import journal
from qrpo_jax.job.journal import Journal, journal_path, kept, read_journal
from qrpo_jax.job.shard import Shard

PART = Shard(1, 3)


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RUN, "place", Place())
    monkeypatch.setattr(RUN, "_farewells", [])


def read(folder: Path) -> journal.Entry:
    entry = read_journal(journal_path(folder, PART))
    assert entry is not None
    return entry


def test_it_follows_the_run_and_ends_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "BEAT_SECONDS", 0.01)
    written = Journal(tmp_path, PART, ("sample", "score"))
    assert (read(tmp_path).state, read(tmp_path).stage, read(tmp_path).shard) == ("running", "", [1, 3])
    RUN.stage("sample")
    RUN.progress(2, 7, "units of sample")
    end = time.monotonic() + 20
    while read(tmp_path).total == 0 and time.monotonic() < end:
        time.sleep(0.01)
    RUN.progress(5, 7, "units of sample")
    while read(tmp_path).complete < 5 and time.monotonic() < end:
        time.sleep(0.01)
    entry = read(tmp_path)
    assert (entry.stage, entry.complete, entry.total, entry.stage_first) == ("sample", 5, 7, 2), entry
    written.end("done")
    written.end("failed", "too late")
    assert (read(tmp_path).state, read(tmp_path).message) == ("done", "")


def test_earlier_starts_are_remembered_and_a_broken_file_is_not_missed(tmp_path: Path) -> None:
    for state in ("stopped", "failed"):
        Journal(tmp_path, PART, ("sample",)).end(state)
    assert [state for *_, state in read(tmp_path).earlier] == ["stopped"]
    journal_path(tmp_path, PART).write_text("{")
    Journal(tmp_path, PART, ("sample",)).end("done")
    assert read(tmp_path).earlier == []


def test_errors_and_signals_are_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError), kept(Journal(tmp_path, PART, ("sample",))):
        raise KeyError("x")
    assert (read(tmp_path).state, read(tmp_path).message) == ("failed", "'x'")
    with kept(Journal(tmp_path, PART, ("sample",))):
        monkeypatch.setattr(RUN, "signal", "SIGTERM")
        RUN.take_leave()
    assert (read(tmp_path).state, read(tmp_path).message) == ("stopped", "by SIGTERM")


def test_a_silent_one_and_a_folder_that_is_gone_disturb_nobody(tmp_path: Path) -> None:
    Journal(tmp_path, PART, ("sample",), silent=True).end("done")
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    Journal(tmp_path / "file", PART, ("sample",)).end("done")
