"""Laws of the Row on disk: nothing is lost, nothing is half written, TFDS can read it."""

import dataclasses
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2

from qrpo_jax.data import row_files, rows
from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.errors import DamagedError, UserError
from tests.helpers.sample_rows import make_row

ROOT = Path(__file__).resolve().parents[2]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=13)
FLOATS = st.floats(width=32)
INT32 = np.iinfo(np.int32)
COMPONENTS = st.dictionaries(TEXT, st.floats(width=32, allow_nan=False), max_size=3)
COMPLETIONS = st.builds(
    Completion,
    text=TEXT,
    tokens=st.lists(st.integers(INT32.min, INT32.max), max_size=7).map(lambda ids: np.array(ids, np.int32)),
    finished=st.booleans(),
    source=st.sampled_from(rows.COMPLETION_SOURCES),
    reward=FLOATS,
    log_prob=FLOATS,
    reference_log_prob=FLOATS,
    components=COMPONENTS.map(lambda found: tuple(found.items())),
)
ROWS = st.builds(
    Row,
    id=TEXT,
    messages=st.lists(st.builds(Message, TEXT, TEXT), max_size=3).map(tuple),
    payload=TEXT,
    completions=st.lists(COMPLETIONS, max_size=5).map(tuple),
    reference_rewards=st.lists(FLOATS, max_size=3).map(lambda xs: np.array(xs, np.float32)),
    preferences=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=3).map(tuple),
)


def assert_same(got: Row, want: Row) -> None:
    """Field by field, so that a fault of `encode` cannot hide behind itself."""
    assert (got.id, got.messages, got.payload) == (want.id, want.messages, want.payload)
    assert got.preferences == want.preferences
    np.testing.assert_array_equal(got.reference_rewards, want.reference_rewards)
    assert got.reference_rewards.dtype == np.float32
    assert len(got.completions) == len(want.completions)
    for g, w in zip(got.completions, want.completions, strict=True):
        assert (g.text, g.source) == (w.text, w.source)
        assert g.finished is w.finished
        np.testing.assert_array_equal(g.tokens, w.tokens)
        assert g.tokens.dtype == np.int32
        for name in ("reward", "log_prob", "reference_log_prob"):
            np.testing.assert_array_equal(getattr(g, name), getattr(w, name), err_msg=name)
        assert dict(g.components) == dict(w.components)  # in the order of the row's first completion that has them


def write(directory: Path, wanted: list[Row], units: int, split: str = "train") -> None:
    for unit in range(units):
        row_files.write_unit(directory, unit, units, wanted[unit::units], split)
    row_files.finish(directory, units, split)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_decode_inverts_encode(row: Row) -> None:
    record = rows.encode(row)
    assert_same(rows.decode(record), row)
    assert rows.encode(rows.decode(record)) == record


@settings(max_examples=30, deadline=None)
@given(ROWS)
def test_tfds_writes_what_we_read(row: Row) -> None:
    """The hand-written protocol buffer is the one TFDS writes for the same features."""
    elsewhere = ("tokens", "components", "token_log_probs")  # the last ones are in no file
    names = [f.name for f in dataclasses.fields(Completion) if f.name not in elsewhere]
    component_names, components = rows.component_table(row)
    spec = rows.features()
    serialized = spec.serialize_example(
        spec.encode_example(
            {
                "id": row.id,
                "payload": row.payload,
                "messages": [dataclasses.asdict(m) for m in row.messages],
                "completions": [{n: getattr(c, n) for n in names} | {"length": len(c.tokens)} for c in row.completions],
                "tokens": [int(t) for c in row.completions for t in c.tokens],
                "reference_rewards": row.reference_rewards,
                "preferences": [index for pair in row.preferences for index in pair],
                "component_names": component_names,
                "components": [number for of_completion in components for number in of_completion],
            }
        )
    )
    assert_same(rows.decode(serialized), row)


@settings(max_examples=30, deadline=None)
@given(ROWS)
def test_tfds_reads_what_we_write(row: Row) -> None:
    example = rows.features().deserialize_example_np(rows.encode(row))
    assert example["id"].decode() == row.id
    assert [t.decode() for t in example["completions"]["text"]] == [c.text for c in row.completions]
    assert list(example["tokens"]) == [t for c in row.completions for t in c.tokens]
    assert list(example["completions"]["length"]) == [len(c.tokens) for c in row.completions]
    rewards = np.array([c.reward for c in row.completions], np.float32)
    np.testing.assert_array_equal(np.array(example["completions"]["reward"], np.float32), rewards)
    assert [name.decode() for name in example["component_names"]] == rows.component_table(row)[0]


@settings(max_examples=30, deadline=None)
@given(ROWS)
def test_rows_of_older_runs_are_read_as_rows_without_components(row: Row) -> None:
    bare = dataclasses.replace(row, completions=tuple(dataclasses.replace(c, components=()) for c in row.completions))
    example = tf_example_pb2.Example.FromString(rows.encode(bare))
    for name in rows.COMPONENTS:
        del example.features.feature[name]
    assert_same(rows.decode(example.SerializeToString()), bare)


def test_a_folder_of_an_older_run_is_read_and_one_of_another_layout_is_refused(tmp_path: Path) -> None:
    wanted = [make_row(i) for i in range(5)]
    write(tmp_path, wanted, units=2)
    older = {key for key in rows.features() if key not in rows.COMPONENTS}
    assert set(rows.features(components=False)) == older and len(older) == len(rows.features()) - 2
    described = tmp_path / row_files.FEATURES_FILE
    now = described.read_text()
    described.write_text(row_files._features_json(components=False))
    assert described.read_text() != now and len(row_files.read(tmp_path)) == 5
    described.write_text(now.replace("component_names", "other_names"))
    with pytest.raises(UserError, match="not the layout of this version's rows"):
        row_files.read(tmp_path)


def test_tfds_opens_a_finished_directory_without_tensorflow(tmp_path: Path) -> None:
    wanted = [make_row(i, completions=i % 4) for i in range(11)]
    write(tmp_path, wanted, units=3)
    write(tmp_path, wanted[:2], units=1, split="test")
    code = (
        "import importlib.util, sys\n"
        "assert importlib.util.find_spec('tensorflow') is None\n"
        "import tensorflow_datasets as tfds\n"
        "builder = tfds.builder_from_directory(sys.argv[1])\n"
        "print(len(builder.as_data_source('test')))\n"
        "print(*[e['id'].decode() for e in builder.as_data_source('train')])\n"
        "from qrpo_jax.data import row_files\n"
        "print(*[row.id for row in row_files.read(sys.argv[1])])\n"
        "heavy = {'tensorflow', 'jax', 'torch', 'pandas', 'grain'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    ids = " ".join(row.id for unit in range(3) for row in wanted[unit::3])
    assert done.stdout.splitlines()[-3:] == ["2", ids, ids]
    assert tfds.builder_from_directory(str(tmp_path)).info.splits["train"].num_examples == 11


@pytest.mark.parametrize("units", [1, 2, 5, 13])
def test_reading_gives_units_in_order_whatever_their_number(tmp_path: Path, units: int) -> None:
    """11 rows in up to 13 units: some units are empty."""
    wanted = [make_row(i) for i in range(11)]
    for unit in reversed(range(units)):  # the order of writing must not matter
        part = wanted[unit * 11 // units : (unit + 1) * 11 // units]
        info = row_files.write_unit(tmp_path, unit, units, part)
        assert info.count == len(part)
    row_files.finish(tmp_path, units)
    source = row_files.read(tmp_path)
    assert len(source) == 11
    for got, want in zip(source, wanted, strict=True):
        assert_same(got, want)


def test_a_split_without_rows_reads_as_empty(tmp_path: Path) -> None:
    write(tmp_path, [], units=2)
    assert list(row_files.read(tmp_path)) == []


def test_equal_rows_give_equal_files_and_finish_is_idempotent(tmp_path: Path) -> None:
    wanted = [make_row(i) for i in range(7)]
    infos = [row_files.write_unit(tmp_path / d, 0, 1, wanted) for d in "ab"]
    assert infos[0] == infos[1]
    row_files.finish(tmp_path / "a", 1)
    before = {p.name: (p.read_bytes(), p.stat().st_ino) for p in (tmp_path / "a").iterdir()}
    row_files.finish(tmp_path / "a", 1)
    after = {p.name: (p.read_bytes(), p.stat().st_ino) for p in (tmp_path / "a").iterdir()}
    assert before == after


def test_source_is_random_access_and_picklable(tmp_path: Path) -> None:
    wanted = [make_row(i) for i in range(7)]
    row_files.write_unit(tmp_path, 0, 2, wanted[:3])
    row_files.write_unit(tmp_path, 1, 2, wanted[3:])
    row_files.finish(tmp_path, 2)
    source = row_files.read(tmp_path)
    assert_same(source[3], wanted[3])
    assert_same(pickle.loads(pickle.dumps(source))[5], wanted[5])
    assert_same(pickle.loads(pickle.dumps(source[5])), wanted[5])
    for index in (-1, 7):
        with pytest.raises(IndexError):
            source[index]


def test_grain_streams_a_source(tmp_path: Path) -> None:
    wanted = [make_row(i) for i in range(7)]
    write(tmp_path, wanted, units=1)
    dataset = grain.MapDataset.source(row_files.read(tmp_path)).shuffle(seed=3).map(lambda row: row.id)
    ids = list(dataset.to_iter_dataset())
    assert sorted(ids) == [row.id for row in wanted]
    assert ids != sorted(ids), "seed 3 must shuffle seven rows"


# In every round it writes the unit anew, with other rows, until it is killed.
WRITER = """
import sys
from tests.helpers.sample_rows import make_row
from qrpo_jax.data import row_files
from qrpo_jax.data import rows
bank = [make_row(i) for i in range(211)]
print("ready", flush=True)
for count in range(1, 10**6):
    row_files.write_unit(sys.argv[1], 0, 1, bank[: 60 + count % 150])
"""


@pytest.mark.parametrize("delay", [0.0, 0.011, 0.023, 0.037, 0.053])
def test_a_killed_writer_leaves_a_whole_unit_or_none(tmp_path: Path, delay: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        # Waiting for the first temporary file puts the kill inside a write.
        deadline = time.monotonic() + 60
        while not any(tmp_path.glob(".tmp-*")) and time.monotonic() < deadline:
            pass
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    path = row_files.unit_path(tmp_path, 0, 1)
    if row_files.unit_done(tmp_path, 0, 1):
        info = row_files.unit_info(tmp_path, 0, 1)
        assert info is not None
        row_files.finish(tmp_path, 1)  # checks the sha256
        assert [row.id for row in row_files.read(tmp_path)] == [f"row-{i}" for i in range(info.count)]
    else:
        with pytest.raises(UserError, match="lacks 1 of 1 units"):
            row_files.finish(tmp_path, 1)
    row_files.write_unit(tmp_path, 0, 1, [make_row(5)])
    row_files.finish(tmp_path, 1)
    assert [row.id for row in row_files.read(tmp_path)] == ["row-5"]
    assert not list(tmp_path.glob(".tmp-*")), "finish sweeps what the killed writer left"
    assert path.exists()


def test_a_unit_is_absent_until_its_sidecar_fits_its_file(tmp_path: Path) -> None:
    assert not row_files.unit_done(tmp_path, 0, 1)
    row_files.write_unit(tmp_path, 0, 1, [make_row(0)])
    assert row_files.unit_done(tmp_path, 0, 1)
    path = row_files.unit_path(tmp_path, 0, 1)
    sidecar = path.with_name(path.name + ".json")
    kept = sidecar.read_text()
    sidecar.unlink()
    assert not row_files.unit_done(tmp_path, 0, 1), "a file without a sidecar"
    sidecar.write_text(kept)
    assert row_files.unit_done(tmp_path, 0, 1)
    os.truncate(path, path.stat().st_size - 1)
    assert not row_files.unit_done(tmp_path, 0, 1), "a cut file"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    bad = dataclasses.replace(make_row(0), payload="\ud800")
    with pytest.raises(UserError, match="row 'row-0': payload"):
        row_files.write_unit(tmp_path, 0, 1, [make_row(1), bad])
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_or_damaged_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split 'train' is not complete"):
        row_files.read(tmp_path)
    row_files.write_unit(tmp_path, 1, 2, [make_row(0)])
    with pytest.raises(UserError, match="lacks 1 of 2 units, the first is 0"):
        row_files.finish(tmp_path, 2)
    row_files.write_unit(tmp_path, 0, 2, [make_row(1)])
    path = row_files.unit_path(tmp_path, 1, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert row_files.unit_done(tmp_path, 1, 2) and not row_files.unit_whole(tmp_path, 1, 2)
    with pytest.raises(DamagedError, match="not what was written"):
        row_files.finish(tmp_path, 2)
    path.write_bytes(whole)
    assert row_files.unit_whole(tmp_path, 1, 2)
    row_files.finish(tmp_path, 2)
    with pytest.raises(UserError, match=re.escape("complete splits: ['train']")):
        row_files.read(tmp_path, "test")
    os.truncate(path, len(whole) // 2)
    with pytest.raises(UserError, match="bytes, not"):
        row_files.read(tmp_path)
    path.write_bytes(whole)
    (tmp_path / row_files.FEATURES_FILE).write_text("{}")
    with pytest.raises(UserError, match="not the layout"):
        row_files.read(tmp_path)


def test_a_unit_in_the_place_of_another_does_not_count(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        for unit in range(2):
            row_files.write_unit(tmp_path / folder, unit, 2, [make_row(unit)])
    names = [row_files.unit_path(Path(), unit, 2).name for unit in range(2)]
    for ending in ("", ".json"):  # of one unit to the other's place, and of one folder's to the other's
        (tmp_path / "a" / (names[1] + ending)).write_bytes((tmp_path / "a" / (names[0] + ending)).read_bytes())
        (tmp_path / "b" / (names[0] + ending)).write_bytes((tmp_path / "a" / (names[0] + ending)).read_bytes())
    whole = {(folder, unit): row_files.unit_whole(tmp_path / folder, unit, 2) for folder in "ab" for unit in range(2)}
    assert whole == {("a", 0): True, ("a", 1): False, ("b", 0): False, ("b", 1): True}


def test_units_of_another_number_are_refused(tmp_path: Path) -> None:
    write(tmp_path, [make_row(0)], units=1)
    for unit in range(2):
        row_files.write_unit(tmp_path, unit, 2, [make_row(unit)])
    with pytest.raises(UserError, match="also rows-train.array_record-00000-of-00001"):
        row_files.finish(tmp_path, 2)


@pytest.mark.parametrize(("unit", "split"), [(-1, "train"), (2, "train"), (0, "a-b"), (0, "all")])
def test_unit_path_refuses_what_tfds_cannot_name(unit: int, split: str) -> None:
    with pytest.raises(ValueError, match="allowed"):
        row_files.unit_path(Path(), unit, 2, split)


def replace_completion(row: Row, i: int, **fields: Any) -> Row:
    completions = list(row.completions)
    completions[i] = dataclasses.replace(completions[i], **fields)
    return dataclasses.replace(row, completions=tuple(completions))


EMPTY = np.zeros(0, np.int32)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (dataclasses.replace(make_row(7), messages=()), "row 'row-7': the prompt is empty"),
        (
            dataclasses.replace(make_row(7), messages=(Message("user", " \n"),)),
            "row 'row-7': the prompt is empty",
        ),
        (make_row(7, completions=0), "row 'row-7': no completion"),
        (
            replace_completion(make_row(7), 1, text="", tokens=EMPTY),
            "row 'row-7', completion 1: neither",
        ),
    ],
)
def test_check_row_names_the_row(row: Row, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows.check_row(row)


def test_check_row_accepts_text_without_tokens_and_tokens_without_text() -> None:
    rows.check_row(replace_completion(make_row(7), 0, text=""))
    rows.check_row(replace_completion(make_row(7), 0, tokens=EMPTY))


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_check_scored_names_the_completion(reward: float) -> None:
    rows.check_scored(make_row(8))
    with pytest.raises(UserError, match=f"row 'row-8', completion 2: the reward is {reward}"):
        rows.check_scored(replace_completion(make_row(8), 2, reward=reward))
    references = np.array([0.5, reward], np.float32)
    with pytest.raises(UserError, match=f"row 'row-8', reference reward 1: .* {reward}"):
        rows.check_scored(dataclasses.replace(make_row(8), reference_rewards=references))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("source", "magpie", "source is 'magpie'; allowed"),
        ("tokens", np.zeros((1, 3), np.int32), r"shape \(1, 3\)"),
        ("tokens", np.zeros(3, np.int64), "tokens are int64"),
    ],
)
def test_encode_refuses_what_it_could_not_give_back(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"row 'row-0', completion 1: .*{message}"):
        rows.encode(replace_completion(make_row(0), 1, **{field: value}))
