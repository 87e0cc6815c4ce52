"""Laws of object stores: whole objects, calls that are repeated, listings that may be late, one creator."""

import threading
from pathlib import Path

import fsspec
import pytest

from qrpo_jax import files
from qrpo_jax.errors import DamagedError, UserError
from qrpo_jax.faults import storage
from qrpo_jax.stores import copies, store
from qrpo_jax.stores.path import StorePath, as_path
from qrpo_jax.stores.store import StoreError, open_store
from tests.helpers import fake_store
from tests.helpers.runs import Killed


def test_calls_that_fail_are_repeated_and_a_persistent_failure_is_one_line(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAILS", "0.5")
    paths = [StorePath(f"{bucket}/run/{i}") for i in range(41)]
    for path in paths:
        files.write_text(path, path.name)
    assert [path.read_text() for path in paths] == [path.name for path in paths]
    calls = open_store("fake")._files.calls
    assert calls > 120, f"{calls} calls: half of them should have failed"

    monkeypatch.setenv("FAKE_FAILS", "1")
    with pytest.raises(StoreError) as error:
        files.write_text(paths[3], "new")
    line = storage.explain(error.value, StorePath(f"{bucket}/run"))
    assert line is not None and "\n" not in line, line
    assert line.startswith("fake://bucket/run/3: UnavailableError: the ") and "run the same command" in line, line
    assert storage.refuses(error.value)


def test_what_is_not_there_is_answered_at_once(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAILS", "0.000001")
    missing = StorePath(f"{bucket}/missing")
    with pytest.raises(FileNotFoundError):
        missing.read_bytes()
    with pytest.raises(FileNotFoundError):
        missing.stat()
    assert not missing.exists() and not missing.is_dir() and list(missing.iterdir()) == []
    missing.unlink(missing_ok=True)
    assert open_store("fake")._files.calls == 6


def test_listings_have_what_this_process_put_read_or_removed_however_late_they_are(bucket: str) -> None:
    run = StorePath(f"{bucket}/run")
    for name in ("a/1.json", "a/2.json", "b.json"):
        files.write_text(run / name, name)
    assert run.store._files._listed() == {}, "the fake lists at once, so this test shows nothing"
    assert [path.name for path in run.iterdir()] == ["a", "b.json"]
    assert sorted(str(path.relative_to(run)) for path in run.rglob("*.json")) == ["a/1.json", "a/2.json", "b.json"]
    assert [path.name for path in run.glob("a/*.json")] == ["1.json", "2.json"]
    assert run.is_dir() and (run / "a").is_dir() and not (run / "a").is_file()
    (run / "a" / "1.json").unlink()
    assert [path.name for path in (run / "a").iterdir()] == ["2.json"]

    open_store.cache_clear()  # another process
    assert list(run.rglob("*")) == []
    assert (run / "a" / "2.json").read_text() == "a/2.json"
    assert [str(path) for path in run.rglob("*")] == [f"{run}/a/2.json"]


@pytest.mark.parametrize("server", ["with conditional puts", "without", "that ignores conditions"])
def test_of_many_creators_one_succeeds(bucket: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAILS", "0.2")
    monkeypatch.setattr(store, "CONDITIONAL", set() if server == "without" else {"fake"})
    if server == "that ignores conditions":
        put = fake_store.FakeStore.pipe_file
        monkeypatch.setattr(
            fake_store.FakeStore, "pipe_file", lambda self, path, value, mode="": put(self, path, value)
        )
    monkeypatch.setattr(store, "SETTLE_SECONDS", 1.0)
    address, ready, won = f"{bucket}/owner", threading.Barrier(5), []

    def create(content: bytes) -> None:
        ready.wait()
        if open_store("fake").create(address, content):
            won.append(content)

    threads = [threading.Thread(target=create, args=(f"start {i}".encode(),)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [StorePath(address).read_bytes()], won
    assert not open_store("fake").create(address, b"later")


def test_a_writer_that_is_killed_leaves_the_old_object_and_no_complete_folder(bucket: str) -> None:
    path, folder = StorePath(f"{bucket}/results.json"), StorePath(f"{bucket}/export/model")
    files.write_text(path, "old")
    with pytest.raises(Killed), files.whole_file(path) as temporary:
        temporary.write_text("half of the n")
        raise Killed
    assert path.read_text() == "old"

    with pytest.raises(Killed), files.whole_folder(folder) as temporary:
        (temporary / "config.json").write_text("{}")
        raise Killed
    assert not files.is_complete(folder)
    (folder / "config.json").write_text("left by a writer that was killed between two objects")
    assert not files.is_complete(folder)
    with files.whole_folder(folder) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "config.json").write_text("{}")
    assert files.is_complete(folder)
    with pytest.raises(FileExistsError), files.whole_folder(folder):
        raise AssertionError("not reached")
    local = files.local_folder(folder)
    assert files.local_folder(folder) == local, "it is fetched once"
    assert [path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()] == ["deep/config.json"]


@pytest.mark.parametrize("fault", ["changed", "cut", "missing"])
def test_a_folder_is_what_was_put_or_an_error_names_the_object(bucket: str, fault: str) -> None:
    folder = StorePath(f"{bucket}/parameters")
    with files.put_folder(folder) as local:
        for i in range(13):
            (local / f"array-{i}").write_bytes(bytes(range(i, i + 7)))
    open_store.cache_clear()
    path = folder / "array-5"
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(b"changed" if fault == "changed" else b"cut")
    with pytest.raises(DamagedError, match="fake://bucket/parameters/array-5 is damaged"):
        files.local_folder(folder)


def test_a_local_copy_is_fetched_once_for_each_version(bucket: str) -> None:
    path = StorePath(f"{bucket}/rows")
    path.write_bytes(b"one")
    first = copies.local(path)
    assert first.name == "rows" and first.read_bytes() == b"one" and copies.local(path) == first
    path.write_bytes(b"two")
    assert copies.local(path).read_bytes() == b"two" and files.sha256(path) == files.sha256(copies.local(path))
    assert first.read_bytes() == b"one", "a reader may have it open"
    with pytest.raises(FileNotFoundError):
        copies.local(StorePath(f"{bucket}/missing"))


def test_folders_are_moved_and_removed_by_object(bucket: str) -> None:
    step, aside = StorePath(f"{bucket}/checkpoints/7"), StorePath(f"{bucket}/damaged-checkpoint-7")
    with files.put_folder(step) as local:
        (local / "a").write_text("a")
        (local / "b").write_text("b")
    files.move_folder(step, aside)
    assert not files.is_complete(step) and list(step.iterdir()) == []
    assert {path.name: path.read_text() for path in aside.iterdir()} == {"a": "a", "b": "b"}


def test_paths_in_a_store_behave_like_paths_and_refuse_what_a_store_cannot_do(bucket: str) -> None:
    run = as_path(f"{bucket}/run")
    assert isinstance(run, StorePath) and isinstance(run, Path) and not isinstance(as_path("run"), StorePath)
    path = run / "sft" / "rows-0.json"
    assert str(path) == f"{run}/sft/rows-0.json" and path.parent.parent == run and path.is_relative_to(run)
    assert (path.stem, path.suffix, path.with_name("b").name) == ("rows-0", ".json", "b")
    assert str(run / "sft" / ".." / "results.json") == f"{run}/results.json"
    assert path.absolute() == path == path.resolve() and hash(path) == hash(run / "sft/rows-0.json")
    for call in (lambda: path.rename(run), lambda: path.replace(run), lambda: path.open("ab"), lambda: path.open("w")):
        with pytest.raises(OSError, match="fake://bucket/run/sft/rows-0.json"):
            call()


@pytest.mark.parametrize("protocol", ["gs", "s3"])
def test_a_store_whose_package_is_missing_says_what_to_install(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ImportError

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    open_store.cache_clear()
    with pytest.raises(UserError, match=f"{protocol}:// needs a package .* pip install {store.PACKAGES[protocol][0]}"):
        open_store(protocol)
    open_store.cache_clear()


def test_an_address_that_is_no_store_is_a_mistake(bucket: str) -> None:
    for protocol in ("nonsense", "file", "https"):
        with pytest.raises(UserError, match=f"{protocol}:// is no"):
            open_store(protocol)


def test_the_folder_of_copies_of_a_process_that_was_killed_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(copies.tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"{copies.PREFIX}0123"
    left.mkdir()
    (left / "object").write_text("x")
    copies.folder.cache_clear()
    mine = copies.folder()
    try:
        assert [path.name for path in tmp_path.iterdir()] == [mine.name]
        copies.folder.cache_clear()
        assert copies.folder() != mine and mine.exists(), "it belongs to a process that lives"
    finally:
        copies.folder.cache_clear()


def test_the_fake_is_a_store(bucket: str, tmp_path: Path) -> None:
    filesystem = open_store("fake")._files
    for call in (lambda: filesystem.mv("a", "b"), lambda: filesystem.open("a", "ab"), lambda: filesystem.open("a")):
        with pytest.raises((NotImplementedError, fake_store.UnavailableError)):
            call()
