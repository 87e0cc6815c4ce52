"""Laws of ownership in an object store: one run at a time, whatever became of earlier ones."""

import dataclasses
import os
import threading
import time

import pytest

from qrpo_jax.errors import UserError
from qrpo_jax.job import lease
from qrpo_jax.job.lease import Lease, as_bytes, owner_of, read_entry
from qrpo_jax.job.owner import Owner, new_record
from qrpo_jax.job.shard import Shard
from qrpo_jax.stores import store
from qrpo_jax.stores.path import StorePath
from qrpo_jax.stores.store import open_store
from tests.helpers.samples import sampled

WHOLE = Shard(0, 1)


@pytest.fixture
def run(bucket: str, monkeypatch: pytest.MonkeyPatch) -> StorePath:
    """A work directory in a store, with owners that count up often."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 2.0)
    return StorePath(f"{bucket}/run")


def dead(workdir: StorePath, shard: Shard = WHOLE, *, here: bool = False) -> None:
    """An owner that was killed: its process is on another machine, or was one of this machine."""
    one = Lease(workdir, shard)
    one.acquire()
    one._released.set()  # ends the thread, and tells nobody
    time.sleep(0.2)
    entry = read_entry(one._path(one._number))
    assert entry is not None
    host = {"pid": 2**22 + 1} if here else {"boot": "another machine's"}
    one._path(one._number).write_bytes(
        as_bytes(dataclasses.replace(entry, record=dataclasses.replace(entry.record, **host)))
    )


def refused(workdir: StorePath, shard: Shard = WHOLE) -> str:
    with pytest.raises(UserError) as error:
        Lease(workdir, shard).acquire()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_second_run_is_told_who_holds_the_address_and_a_released_one_holds_nothing(run: StorePath) -> None:
    for _ in range(3):
        first = owner_of(run, WHOLE)
        assert isinstance(first, Lease)
        first.acquire()
        message = refused(run)
        assert f"--workdir={run} is in use by process {os.getpid()} on {new_record().host}, since 2" in message, message
        first.release()
        first.release()
    assert [path.name for path in (run / "owners").iterdir()] == ["00000.json", "00001.json", "00002.json"]


def test_a_folder_on_disk_has_an_owner_with_locks(tmp_path) -> None:
    assert isinstance(owner_of(tmp_path, WHOLE), Owner)


@pytest.mark.parametrize("here", [True, False])
def test_a_dead_owner_expires_and_on_this_machine_at_once(run: StorePath, here: bool) -> None:
    dead(run, here=here)
    began = time.monotonic()
    mine = Lease(run, WHOLE)
    mine.acquire()
    waited = time.monotonic() - began
    assert waited < 2.0 if here else waited >= 2.0, waited
    assert "in use" in refused(run)
    mine.release()


def test_runs_of_other_shards_share_a_store_and_each_is_known_to_those_that_come_later(run: StorePath) -> None:
    half, third = Lease(run, Shard(0, 2)), Lease(run, Shard(1, 2))
    half.acquire()
    third.acquire()
    for shard in (Shard(0, 2), Shard(1, 2), WHOLE, Shard(2, 4)):
        refused(run, shard)
    third.release()
    refused(run, Shard(0, 2))  # its entry is not the last one
    again = Lease(run, Shard(1, 2))
    again.acquire()
    half.release()
    refused(run)
    again.release()
    Lease(run, WHOLE).acquire()


@pytest.mark.parametrize(
    "before, conditional", sampled([("nothing", True), ("dead", True), ("dead", False), ("nothing", False)])
)
def test_of_starters_at_the_same_moment_one_wins(
    run: StorePath, conditional: bool, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "CONDITIONAL", {"fake"} if conditional else set())
    monkeypatch.setattr(store, "SETTLE_SECONDS", 1.0)
    open_store.cache_clear()
    if before == "dead":
        dead(run)
    ready, won, lost = threading.Barrier(4), [], []

    def start() -> None:
        one = Lease(run, WHOLE)
        ready.wait()
        try:
            one.acquire()
            won.append(one)
        except UserError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(lost) == 3, (won, lost)
    won[0].release()


def test_an_owner_that_was_taken_for_dead_leaves(
    run: StorePath, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    left = threading.Event()

    def leave(status: int) -> None:
        left.set()
        time.sleep(3600)  # as a thread that ends with its process

    monkeypatch.setattr(lease.os, "_exit", leave)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 3600.0)  # as if it were suspended
    first = Lease(run, WHOLE)
    first.acquire()
    second = Lease(run, WHOLE)
    second._entry = dataclasses.replace(second._entry, record=dataclasses.replace(new_record(), boot="elsewhere"))
    second.acquire()
    assert not left.is_set()
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    threading.Thread(target=first._beat, daemon=True).start()
    assert left.wait(20), "it goes on"
    first.release()
    assert "was taken over by process" in capfd.readouterr().err
    second.release()


def test_the_last_of_many_starts_is_found_without_a_listing(run: StorePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAILS", "0.000001")
    one = Lease(run, WHOLE)
    entry = dataclasses.replace(one._entry, released=True)
    for count in range(40):
        assert one._last() == count - 1
        one._path(count).write_bytes(as_bytes(entry))
    before = open_store("fake")._files.calls
    assert one._last() == 39 and open_store("fake")._files.calls - before < 14
