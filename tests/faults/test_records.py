"""Records: a file that changed, was cut or took another's place is refused."""

import json
from pathlib import Path

import pytest

from qrpo_jax.errors import DamagedError
from qrpo_jax.faults.records import read_record, write_record

CONTENT = {"b": [1, 0.1, None, float("inf")], "a": {"β": "x"}, "train.beta": 1e-7, "t": (1, 2)}


def test_a_record_comes_back_without_its_checksum_and_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "sft" / "settings.json"
    write_record(path, CONTENT)
    assert read_record(path) == CONTENT | {"t": [1, 2]}
    assert json.loads(path.read_text())["train.beta"] == 1e-7
    # The work directory may move, and white space may change.
    (tmp_path / "moved").mkdir()
    moved = path.parent.rename(tmp_path / "moved" / "sft") / "settings.json"
    moved.write_text(json.dumps(json.loads(moved.read_text())))
    assert read_record(moved) == CONTENT | {"t": [1, 2]}


def test_every_changed_byte_is_the_same_content_or_damage(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    write_record(path, CONTENT)
    whole, unnoticed = path.read_bytes(), 0
    for place in range(len(whole)):
        for flip in (1, 4, 32, 128):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            try:
                assert read_record(path) == CONTENT | {"t": [1, 2]}
                unnoticed += 1
            except DamagedError:
                continue
    assert unnoticed < len(whole) / 4, (unnoticed, len(whole))  # white space


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b'{"a": 1}', b"\xff\x00", b"[" * 100_000])
def test_what_is_no_record_is_damage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="settings.json is damaged"):
        read_record(path)


def test_records_that_change_places_are_damage(tmp_path: Path) -> None:
    paths = [tmp_path / folder / name for folder in ("sft", "train") for name in ("settings.json", "rows.json")]
    for path in paths:
        write_record(path, CONTENT)
    for path in paths:
        for other in paths:
            if path != other:
                kept = path.read_bytes()
                path.write_bytes(other.read_bytes())
                with pytest.raises(DamagedError):
                    read_record(path)
                path.write_bytes(kept)
        assert read_record(path)["a"] == {"β": "x"}


def test_an_absent_record_is_absent_and_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "settings.json")
