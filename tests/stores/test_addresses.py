"""Rows, prompts, models and exports by address are what they are on disk."""

from pathlib import Path

import numpy as np
import pytest

from qrpo_jax import files
from qrpo_jax.data import row_files, rows
from qrpo_jax.data.text import make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.hugging_face.tokenizer import open_text
from qrpo_jax.stores.path import StorePath
from qrpo_jax.stores.store import open_store
from tests.helpers.exports import CHARACTERS, TIED, assert_identical, fresh, one_device
from tests.helpers.faults import FAULTS
from tests.helpers.sample_rows import make_row
from tests.helpers.tables import rows_of, write_parquet

UNITS = [[make_row(0), make_row(1)], [], [make_row(i) for i in range(2, 7)]]


def write(directory: Path) -> None:
    for unit, content in enumerate(UNITS):
        row_files.write_unit(directory, unit, len(UNITS), content)
    row_files.finish(directory, len(UNITS))


def test_rows_in_a_store_are_the_rows_on_disk_whatever_its_listings_say(bucket: str, tmp_path: Path) -> None:
    stored, disk = StorePath(f"{bucket}/run/sample"), tmp_path / "sample"
    write(stored)
    write(disk)
    open_store.cache_clear()  # another process, to which nothing is listed yet
    read = row_files.read(stored)
    assert [rows.encode(row) for row in read] == [rows.encode(row) for row in row_files.read(disk)]
    assert len(row_files.read_unit(stored, 2, 3)) == 5
    wanted = {path.name: path.read_bytes() for path in disk.iterdir()}
    assert {name: (stored / name).read_bytes() for name in wanted} == wanted
    row_files.finish(stored, 3)  # a second shard may do so too


@pytest.mark.parametrize("fault", FAULTS)
def test_a_unit_that_changed_in_a_store_does_not_count(bucket: str, fault: str) -> None:
    directory = StorePath(f"{bucket}/run/sample")
    write(directory)
    path = row_files.unit_path(directory, 2, 3)
    if fault == "swap":
        path.write_bytes(row_files.unit_path(directory, 0, 3).read_bytes())
    else:
        FAULTS[fault](path, np.random.default_rng(0))
    open_store.cache_clear()
    assert not row_files.unit_whole(directory, 2, 3) and row_files.unit_whole(directory, 0, 3)
    row_files.write_unit(directory, 2, 3, UNITS[2])
    assert row_files.unit_whole(directory, 2, 3)


def test_prompts_are_read_by_address(bucket: str, tmp_path: Path) -> None:
    lines = "".join(f'{{"prompt": "How far is {i}?"}}\n' for i in range(13))
    (tmp_path / "prompts.jsonl").write_text(lines)
    path = StorePath(f"{bucket}/data/prompts.jsonl")
    files.write_text(path, lines)
    stored, disk = ([rows.encode(row) for row in rows_of(f"jsonl:{one}")] for one in (path, tmp_path / "prompts.jsonl"))
    assert stored == disk and len(disk) == 13
    files.write_text(path, lines + '{"prompt": "more"}\n')
    assert len(rows_of(f"jsonl:{path}")) == 14, "another version is read anew"
    with pytest.raises(UserError, match="no file fake://bucket/data/none.jsonl"):
        rows_of(f"jsonl:{bucket}/data/none.jsonl")


def test_parquet_files_and_patterns_are_read_by_address(bucket: str, tmp_path: Path) -> None:
    for i in range(2):
        content = write_parquet(
            tmp_path / f"part-{i}.parquet", [{"prompt": f"How far is {7 * i + j}?"} for j in range(7)]
        )
        with files.whole_file(StorePath(f"{bucket}/data/part-{i}.parquet")) as temporary:
            temporary.write_bytes(content.read_bytes())
    stored, disk = (rows_of(f"parquet:{home}/part-*.parquet") for home in (f"{bucket}/data", tmp_path))
    assert [rows.encode(row) for row in stored] == [rows.encode(row) for row in disk] and len(disk) == 14


def test_a_model_is_written_and_read_by_address(bucket: str, tmp_path: Path) -> None:
    tokenizer = vocabulary_tokenizer(CHARACTERS)
    text = make_text(tokenizer, "chat", (tokenizer.eos_token_id,))
    stored, disk = StorePath(f"{bucket}/export/model"), tmp_path / "model"
    for folder in (stored, disk):
        model_folder.save(folder, TIED, fresh(TIED, 3), text, max_shard_bytes=20_011)
    wanted = {path.name: path.read_bytes() for path in disk.iterdir()}
    assert {path.name: path.read_bytes() for path in stored.iterdir()} == wanted and len(wanted) > 6
    open_store.cache_clear()
    (stored / "config.json").read_bytes()  # a listing of the model's folder would show this object alone
    assert model_folder.check_folder(stored) == TIED
    assert_identical(model_folder.load(stored, one_device()), fresh(TIED, 3))
    opened = open_text(stored, "chat")
    assert opened.end_tokens == text.end_tokens and opened.tokenizer.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(UserError, match="fake://bucket/export/model exists"):
        model_folder.save(stored, TIED, fresh(TIED, 3), opened)
