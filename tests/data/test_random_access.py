"""Records by number: any of them, in any order, from files of any shape, without the others in memory."""

import json
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest

from qrpo_jax.data.tables import cursor, json_lines, parquet, saved, spans
from qrpo_jax.data.tables.cursor import Cursors
from qrpo_jax.errors import UserError
from tests.helpers.tables import write_json_lines, write_parquet, write_saved

RECORDS = [{"prompt": f"q{i} " + "ä" * (i % 7), "rewards": [float(i)] * (i % 3)} for i in range(211)]
BLANK = "\n  \n\t\n"


def tables(tmp_path):
    """The same records in files of three kinds, in two files each."""
    for i, part in enumerate((RECORDS[:97], RECORDS[97:])):
        write_parquet(tmp_path / f"{i}.parquet", part, row_group_size=31)
        write_json_lines(tmp_path / f"{i}.jsonl", part)
        text = BLANK.join(json.dumps(record, ensure_ascii=False) for record in part)
        (tmp_path / f"blank-{i}.jsonl").write_text(BLANK + text + BLANK)
        (tmp_path / f"{i}.json").write_text(json.dumps(part, indent=i, ensure_ascii=bool(i)))
    return {
        "parquet": parquet.open_table(f"{tmp_path}/*.parquet"),
        "jsonl": json_lines.open_table(f"{tmp_path}/?.jsonl"),
        "blank lines": json_lines.open_table(f"{tmp_path}/blank-?.jsonl"),
        "lists": json_lines.open_table(f"{tmp_path}/?.json"),
        "disk": saved.open_table(str(write_saved(tmp_path / "saved", train=RECORDS))),
    }


@pytest.mark.parametrize("name", ["parquet", "jsonl", "blank lines", "lists", "disk"])
def test_any_range_is_read_from_any_kind_of_file(tmp_path, monkeypatch, name):
    monkeypatch.setattr(cursor, "MOST_RECORDS", 7)
    monkeypatch.setattr(spans, "PART", 64)
    table = tables(tmp_path)[name]
    assert table.count == len(RECORDS) and table.columns == ("prompt", "rewards")
    generator = np.random.default_rng(3)
    for start in [0, 96, 97, 210, 211, *generator.integers(0, 211, 40).tolist()]:
        stop = start + int(generator.integers(0, 40))
        got = list(table.records(start, stop, ("prompt", "rewards")))
        assert [record.values for record in got] == RECORDS[start:stop], (start, stop)
        assert [record.place for record in got] == [table.place(i) for i in range(start, min(stop, 211))]


def test_lines_have_their_numbers_and_items_theirs(tmp_path):
    opened = tables(tmp_path)
    assert opened["blank lines"].place(3) == f"{tmp_path}/blank-0.jsonl, line {4 + 3 * 3}"
    assert opened["jsonl"].place(100) == f"{tmp_path}/1.jsonl, line 4"
    assert opened["lists"].place(100) == f"{tmp_path}/1.json, item 4"
    assert opened["parquet"].place(100) == f"{tmp_path}/1.parquet, row 4"


def test_reading_on_decodes_a_group_once(tmp_path, monkeypatch):
    """A reader in small units, another one elsewhere in the group, and a third from the start do not disturb it."""
    monkeypatch.setattr(cursor, "MOST_RECORDS", 5)
    file = pq.ParquetFile(write_parquet(tmp_path / "a.parquet", RECORDS, row_group_size=1000))
    cursors, moved = Cursors(file, ["prompt"]), []
    monkeypatch.setattr(cursor._Cursor, "move", lambda self, real=cursor._Cursor.move: moved.append(1) or real(self))

    def read(start, stop):
        got = []
        while start < stop:
            batch = cursors.batch(start, stop)
            got += batch.to_pylist()
            start += batch.num_rows
        return [record["prompt"] for record in got]

    assert read(150, 160) == [record["prompt"] for record in RECORDS[150:160]]
    to_150, moved[:] = len(moved), []
    assert to_150 == 31, "batches of 5 up to record 159"
    for start in range(0, 91, 7):
        assert read(start, start + 7) == [record["prompt"] for record in RECORDS[start : start + 7]]
        read(160 + start // 7, 161 + start // 7)
    assert len(moved) <= 98 // 5 + 14 // 5 + 2, len(moved)


def test_threads_share_cursors(tmp_path, monkeypatch):
    monkeypatch.setattr(cursor, "MOST_RECORDS", 3)
    table = parquet.open_table(str(write_parquet(tmp_path / "a.parquet", RECORDS, row_group_size=100)))
    wrong = []

    def read(seed):
        for start in np.random.default_rng(seed).integers(0, 200, 60).tolist():
            if [record.values for record in table.records(start, start + 9, table.columns)] != RECORDS[
                start : start + 9
            ]:
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{}, 5]", "holds no list of objects"),
        ("{}", "holds no list of objects"),
        ("5", "holds no list of objects"),
        ("", "a.json: not JSON .Expecting value"),
        ("[", "not JSON"),
        ("[{}", "not JSON .after item 1 stands ''"),
        ("[{},]", "item 2: not JSON .Expecting value"),
        ("[{} {}]", "not JSON .after item 1 stands '{'"),
        ("[{}] {}", "not JSON .Extra data"),
        ("[{}]]", "not JSON .Extra data"),
        ('[{"a": "' + "x" * 500 + '"}, {"b": }]', "item 2: not JSON"),
        ("[" * 100_000, "item 1: not JSON .maximum recursion"),
    ],
)
def test_files_that_are_no_list_are_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(spans, "PART", 64)
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        spans.of_items(path, path)
    assert caught.value.about == ("path",) and "\n" not in str(caught.value)


def test_a_list_begins_behind_a_mark_and_may_be_empty(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf [ {"prompt": "\xc3\xa4"} ,\r\n {"prompt": "b"}\n]\n')
    assert [record.values["prompt"] for record in json_lines.open_table(str(path)).records(0, 9, ())] == ["ä", "b"]
    path.write_text(" [ ] ")
    assert len(spans.of_items(path, path).starts_N) == 0
    path.write_bytes(b'[{"prompt": "caf\xe9"}]')
    with pytest.raises(UserError, match="a.json is not UTF-8"):
        spans.of_items(path, path)
