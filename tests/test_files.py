"""Files and folders appear whole or not at all."""

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from qrpo_jax.files import TEMPORARY, sha256, sweep, whole_file, whole_folder, write_json, write_text
from tests.helpers.runs import Killed


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_text(path, "old")
    for error in (Killed, ValueError, OSError):
        with pytest.raises(error), whole_file(path) as temporary:
            temporary.write_text("half of the n")
            assert path.read_text() == "old"
            raise error
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_content_appears_at_once_and_parent_folders_are_created(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "page.html"
    with whole_file(path) as temporary:
        temporary.write_bytes(b"\x00\xff")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_bytes() == b"\x00\xff"
    write_json(tmp_path / "a" / "numbers.json", {"β": [1, 0.5, None], "nan": float("nan")})
    assert json.loads((tmp_path / "a" / "numbers.json").read_text(encoding="utf-8"))["β"] == [1, 0.5, None]


def test_files_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "whole", "x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "whole")]
    assert modes[0] == modes[1], [oct(mode) for mode in modes]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "export" / "model"
    with pytest.raises(Killed), whole_folder(folder) as temporary:
        (temporary / "config.json").write_text("{}")
        raise Killed
    assert not folder.exists() and list(folder.parent.iterdir()) == []
    with whole_folder(folder) as temporary:
        (temporary / "config.json").write_text("{}")
        assert not folder.exists()
    assert (folder / "config.json").read_text() == "{}"


def test_leftovers_of_a_kill_are_replaced_and_a_folder_with_content_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    leftover = tmp_path / f"{TEMPORARY}model-{'0' * 32}"
    leftover.mkdir()
    (leftover / "weights").write_text("half")
    with whole_folder(folder) as temporary:
        (temporary / "config.json").write_text("{}")
    assert sorted(os.listdir(tmp_path)) == ["model"]
    with pytest.raises(FileExistsError), whole_folder(folder):
        raise AssertionError("not reached")
    assert (folder / "config.json").read_text() == "{}"


def test_a_folder_that_is_being_written_beside_it_is_left_alone(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "a-2") as other:
        (other / "weights").write_text("half")
        with whole_folder(tmp_path / "a") as temporary:
            (temporary / "config.json").write_text("{}")
        assert (other / "weights").read_text() == "half"
    assert sorted(os.listdir(tmp_path)) == ["a", "a-2"]


def test_sweep_removes_leftovers_of_one_name_or_of_all(tmp_path: Path) -> None:
    for name in (f"{TEMPORARY}a-1", f"{TEMPORARY}b-2", "kept"):
        (tmp_path / name).write_text("x")
    sweep(tmp_path, "a")
    assert sorted(os.listdir(tmp_path)) == [f"{TEMPORARY}b-2", "kept"]
    sweep(tmp_path)
    assert os.listdir(tmp_path) == ["kept"]


def test_a_checksum_is_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4099
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
