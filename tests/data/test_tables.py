"""Tables: files, patterns, splits and parts of data sets, as other programs write them."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pytest

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import encode
from qrpo_jax.data.sources import SOURCES
from qrpo_jax.data.tables import json_lines, parquet, saved
from qrpo_jax.errors import UserError
from tests.helpers.sample_rows import make_row
from tests.helpers.tables import (
    opened,
    options,
    rows_of,
    text_features,
    write_json_lines,
    write_parquet,
    write_saved,
    write_tfds,
)

RECORDS = [{"prompt": f"q{i}", "completions": ["a", "b"], "rewards": [0.5, float(i)]} for i in range(23)]


def texts(name, part="train", **overrides):
    source = opened(name, part, **overrides)
    return [row.messages[0].content for row in source.rows(range(source.count))]


PACKED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}


@pytest.mark.parametrize("ending", PACKED)
def test_compressed_files_are_those_that_they_hold(tmp_path, ending):
    path = write_json_lines(tmp_path / "a.jsonl", RECORDS)
    packed = tmp_path / f"a.jsonl.{ending}"
    packed.write_bytes(PACKED[ending](path.read_bytes()))
    assert [encode(row) for row in rows_of(f"jsonl:{packed}")] == [encode(row) for row in rows_of(f"jsonl:{path}")]
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(UserError, match="is not whole, or not compressed as its name says"):
        rows_of(f"jsonl:{packed}")


def test_a_list_in_one_file_is_read_where_its_name_says_so(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(RECORDS, indent=1))
    assert texts(f"jsonl:{path}") == [f"q{i}" for i in range(23)]
    assert opened(f"jsonl:{path}").place(rows_of(f"jsonl:{path}")[6]) == f"{path}, item 7"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}')
    with pytest.raises(UserError, match=r"not JSON \(Extra data.*let the name of JSON lines end with .jsonl"):
        rows_of(f"jsonl:{path}")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_patterns_read_their_files_in_order_with_the_place_of_each_row(tmp_path, kind):
    write = {"jsonl": write_json_lines, "parquet": write_parquet}[kind]
    for i, part in enumerate((RECORDS[:7], RECORDS[7:8], RECORDS[8:])):
        write(tmp_path / f"part-{i}.{kind}", part)
    source = opened(f"{kind}:{tmp_path}/part-*.{kind}")
    assert texts(f"{kind}:{tmp_path}/part-*.{kind}") == [f"q{i}" for i in range(23)]
    word = {"jsonl": "line", "parquet": "row"}[kind]
    assert source.place(source.rows([8])[0]) == f"{tmp_path}/part-2.{kind}, {word} 1"
    assert [row.id for row in source.rows([0, 8])] == ["row-1", "row-9"]
    with pytest.raises(UserError, match="no file matches .*none-"):
        rows_of(f"{kind}:{tmp_path}/none-*.{kind}")


def hub_files(tmp_path):
    for split, part in {"train_prefs": RECORDS[:11], "test_prefs": RECORDS[11:18], "train_sft": RECORDS[18:]}.items():
        write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", part)
    return f"parquet:{tmp_path}/data/*.parquet"


def test_splits_of_files_are_words_of_their_names(tmp_path):
    name = hub_files(tmp_path)
    how = {"split": "train_prefs", "held_out": "test_prefs"}
    assert texts(name, **how) == [f"q{i}" for i in range(11)]
    assert texts(name, "eval", **how) == [f"q{i}" for i in range(11, 18)]
    assert len(texts(name, held_out="test_prefs")) == 16, "all files but the held-out ones"
    with pytest.raises(UserError, match="no file of split 'train'; it must be a word .* test_prefs-00000") as caught:
        rows_of(name, split="train")
    assert caught.value.about == ("split",)
    with pytest.raises(UserError, match="no file of split 'valid'") as caught:
        rows_of(name, split="train_prefs", held_out="valid")
    assert caught.value.about == ("held_out",)


def disk(tmp_path):
    return f"disk:{write_saved(tmp_path / 'saved', train=RECORDS[:17], test=RECORDS[17:])}"


def catalogue(tmp_path):
    features = text_features(RECORDS[0])
    write_tfds(tmp_path / "tfds", "little", features, train=RECORDS[:17], test=RECORDS[17:])
    return "tfds:little:1.0.0"


def rows_folder(tmp_path):
    tmp_path.mkdir(exist_ok=True)
    write_json_lines(tmp_path / "a.jsonl", RECORDS)
    rows = rows_of(f"jsonl:{tmp_path}/a.jsonl")
    for split, units in {"train": [rows[:5], rows[5:17]], "test": [rows[17:]]}.items():
        for unit, part in enumerate(units):
            row_files.write_unit(tmp_path / "rows", unit, len(units), part, split)
        row_files.finish(tmp_path / "rows", len(units), split)
    return f"rows:{tmp_path / 'rows'}"


@pytest.mark.parametrize("make", [disk, catalogue, rows_folder])
def test_splits_of_data_sets_go_by_name(tmp_path, monkeypatch, make):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    name = make(tmp_path)
    assert texts(name) == [f"q{i}" for i in range(17)]
    assert (
        texts(name, "eval", held_out="test") == [f"q{i}" for i in range(17, 23)]
        and len(texts(name, held_out="test")) == 17
    )
    assert texts(name, split="test", count=2, held_out=3) == ["q17", "q18"]
    assert texts(name, "eval", split="test", held_out=0.34) == ["q20", "q21", "q22"], "a third of six, rounded up"
    with pytest.raises(UserError, match="'valid'.*'test'.*'train'|'valid'.*'train'.*'test'"):
        rows_of(name, split="valid")


@pytest.mark.parametrize("make", [hub_files, disk, rows_folder])
def test_the_content_decides_the_identity_and_not_the_path(tmp_path, make):
    first, second, other = (tmp_path / name for name in "abc")
    names = [make(folder) for folder in (first, second)]
    RECORDS[0]["prompt"] = "another"
    try:
        names.append(make(other))
    finally:
        RECORDS[0]["prompt"] = "q0"
    one, same, changed = (SOURCES[name.partition(":")[0]].identity(options(name)) for name in names)
    assert one == same != changed


def test_only_the_columns_and_rows_that_are_needed_are_read(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", [record | {"big": "x" * 99} for record in RECORDS], row_group_size=4)
    seen = []
    monkeypatch.setattr(parquet, "_records", lambda *call, real=parquet._records: seen.append(call) or real(*call))
    assert texts(f"parquet:{path}", count=3, held_out=2) == ["q0", "q1", "q2"]
    assert [(start, stop) for _, _, start, stop, _ in seen] == [(0, 3), (21, 23), (0, 3)]
    assert {tuple(columns) for *_, columns in seen} == {("prompt", "completions", "rewards")}


def test_rows_of_another_run_keep_everything(tmp_path):
    rows = [make_row(i) for i in range(5)]
    row_files.write_unit(tmp_path / "score", 0, 1, rows)
    row_files.finish(tmp_path / "score", 1)
    assert [encode(row) for row in rows_of(f"rows:{tmp_path}/score")] == [encode(row) for row in rows]
    with pytest.raises(UserError, match="holds no rows .*name the folder of a stage"):
        rows_of(f"rows:{tmp_path}")


@pytest.mark.parametrize("table", [parquet, json_lines, saved])
def test_what_is_not_there_is_refused_by_its_path(tmp_path, table):
    with pytest.raises(UserError, match=f"{tmp_path}/none") as caught:
        table.open_table(f"{tmp_path}/none")
    assert caught.value.about == ("path",)


def test_broken_and_unlike_files_are_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", RECORDS)
    write_parquet(tmp_path / "b.parquet", [{"question": "q"}])
    with pytest.raises(UserError, match="a.parquet and .*b.parquet have different columns, such as 'completions'"):
        rows_of(f"parquet:{tmp_path}/*.parquet")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="a.parquet is no whole Parquet file"):
        rows_of(f"parquet:{path}")


def test_data_sets_that_are_not_prepared_say_how(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="data set no_such cannot be opened"):
        rows_of("tfds:no_such")


class TestDatasets:
    """With the library `datasets`, where it is installed (extra `hf`)."""

    def test_a_saved_data_set_is_what_the_tests_write(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        whole = datasets.DatasetDict({"train": datasets.Dataset.from_list(RECORDS)})
        whole.save_to_disk(tmp_path / "theirs", num_shards={"train": 2})
        write_saved(tmp_path / "ours", train=RECORDS)
        for folder in ("ours", "theirs"):
            assert len(datasets.load_from_disk(tmp_path / folder)["train"]) == 23
        theirs, ours = (rows_of(f"disk:{tmp_path}/{name}") for name in ("theirs", "ours"))
        assert [encode(row) for row in theirs] == [encode(row) for row in ours] and len(ours) == 23
        shuffled = whole["train"].shuffle(seed=3)
        shuffled.save_to_disk(tmp_path / "one")
        assert texts(f"disk:{tmp_path}/one") == shuffled["prompt"][:] != [f"q{i}" for i in range(23)]

    def test_a_folder_of_files_is_a_data_set(self, tmp_path, monkeypatch):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        for split, part in {"train": RECORDS[:17], "test": RECORDS[17:]}.items():
            write_parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet", part)
        name = f"hf:{tmp_path}/hub"
        assert texts(name) == [f"q{i}" for i in range(17)]
        assert texts(name, "eval", held_out="test") == [f"q{i}" for i in range(17, 23)]
        rows = rows_of(f"parquet:{tmp_path}/hub/data/train-*.parquet")
        assert [encode(row) for row in rows_of(name)] == [encode(row) for row in rows]
        assert SOURCES["hf"].identity(options(name))
        with pytest.raises(UserError, match="has no split 'valid'; has splits 'test', 'train'"):
            rows_of(name, split="valid")
        with pytest.raises(UserError, match="cannot be opened"):
            rows_of(f"hf:{tmp_path}/none")
