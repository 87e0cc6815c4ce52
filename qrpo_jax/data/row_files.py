"""Rows on disk: ArrayRecord files in the layout of TensorFlow Datasets.

`tfds.builder_from_directory(DIR).as_data_source(SPLIT)` opens what is written here; neither writing nor reading
imports TensorFlow. One file is a *unit*. How many units a split has is a setting, not a consequence of how many
processes write, so merging is reading all units in order.

A unit is complete or absent: its file appears by rename, and its sidecar (count, bytes, sha256) by a later
rename; without a sidecar that fits the file, the unit does not count as written.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, SupportsIndex

from array_record.python import array_record_data_source, array_record_module
from google.protobuf import json_format
from tensorflow_datasets.core.proto import dataset_info_pb2

from qrpo_jax.data.rows import Row, decode, encode, features

NAME = "rows"
VERSION = "1.0.0"
INFO_FILE = "dataset_info.json"
FEATURES_FILE = "features.json"
# Each record is its own chunk: random access then reads one row, not a group of rows.
_WRITER_OPTIONS = "group_size:1"
_TEMPORARY = ".tmp-"


@dataclass(frozen=True, slots=True)
class UnitInfo:
    """What the sidecar of a unit says: number of rows, and size and sha256 of its file."""

    count: int
    bytes: int
    sha256: str


def unit_path(directory: Path, unit: int, units: int, split: str = "train") -> Path:
    """The file of a unit, named as TFDS names it.

    Raises:
      ValueError: no such unit, or a split name that TFDS could not read back.
    """
    if not 0 <= unit < units:
        raise ValueError(f"unit is {unit}; allowed with units={units}: 0 to {units - 1}")
    if not split.isidentifier() or split == "all":
        raise ValueError(f"split is {split!r}; allowed: letters, digits and _, and not 'all'")
    return Path(directory) / f"{NAME}-{split}.array_record-{unit:05d}-of-{units:05d}"


def _write_atomic(path: Path, text: str) -> None:
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{uuid.uuid4().hex}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _records(path: Path) -> int:
    # A truncated ArrayRecord file opens without complaint and says it holds 0 records.
    reader = array_record_module.ArrayRecordReader(str(path))
    try:
        return int(reader.num_records())
    finally:
        reader.close()


def write_unit(directory: Path, unit: int, units: int, rows: Sequence[Row], split: str = "train") -> UnitInfo:
    """Writes one unit, complete or not at all; a unit already there is replaced.

    Equal rows give equal files. A file is at least 128 KiB, so units should not be tiny.

    Raises:
      ValueError: a row that `encode` refuses, or a unit or split that `unit_path` refuses.
      OSError: the file could not be written in full.
    """
    path = unit_path(directory, unit, units, split)
    records = [encode(row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{uuid.uuid4().hex}")
    try:
        writer = array_record_module.ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
        for record in records:
            writer.write(record)
        writer.close()
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if (count := _records(temporary)) != len(records):
            raise OSError(f"{path}: {count} of {len(records)} rows written; is the disk full?")
        info = UnitInfo(count, temporary.stat().st_size, _sha256(temporary))
        # An old sidecar must not vouch for the new file.
        _sidecar(path).unlink(missing_ok=True)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _write_atomic(_sidecar(path), json.dumps(asdict(info)))
    return info


def unit_info(directory: Path, unit: int, units: int, split: str = "train") -> UnitInfo | None:
    """What the sidecar says of a unit; None if the unit is not there in full."""
    path = unit_path(directory, unit, units, split)
    try:
        info = UnitInfo(**json.loads(_sidecar(path).read_text()))
        return info if path.stat().st_size == info.bytes else None
    except FileNotFoundError:
        return None


def unit_done(directory: Path, unit: int, units: int, split: str = "train") -> bool:
    """Whether a unit is there in full (its sha256 is for `finish` to check)."""
    return unit_info(directory, unit, units, split) is not None


def _described(directory: Path) -> dataset_info_pb2.DatasetInfo:
    path = Path(directory) / INFO_FILE
    info = dataset_info_pb2.DatasetInfo()
    return json_format.Parse(path.read_text(), info) if path.exists() else info


def finish(directory: Path, units: int, split: str = "train") -> None:
    """Describes a split of which all units are written, so that TFDS and `read` open it.

    Checks every file against its sidecar, sweeps what killed writers of this split left, and
    writes features.json and dataset_info.json; other splits stay described. Does nothing when
    the split is described already. Two splits of one directory must not be finished at the
    same moment.

    Raises:
      ValueError: a unit is not written, or its file is not what was written, or the directory
        holds units of the same split under another number of units.
    """
    directory = Path(directory)
    paths = [unit_path(directory, unit, units, split) for unit in range(units)]
    found = [unit_info(directory, unit, units, split) for unit in range(units)]
    infos = [info for info in found if info is not None]
    if len(infos) < units:
        absent = [unit for unit, info in enumerate(found) if info is None]
        raise ValueError(
            f"{directory}: split {split!r} lacks {len(absent)} of {units} units, the first is "
            f"{absent[0]}: run the stage that writes it again"
        )
    pattern = f"{NAME}-{split}.array_record-"
    others = {p.name for p in directory.glob(pattern + "?????-of-?????")} - {p.name for p in paths}
    if others:
        raise ValueError(
            f"{directory}: split {split!r} has units={units}, and also {min(others)} of another "
            "number of units: remove the older files or use an empty directory"
        )
    for name in (pattern, INFO_FILE, FEATURES_FILE):
        for leftover in directory.glob(f"{_TEMPORARY}{name}*"):
            leftover.unlink(missing_ok=True)
    described = _described(directory)
    split_info = dataset_info_pb2.SplitInfo(
        name=split,
        shard_lengths=[info.count for info in infos],
        num_bytes=sum(info.bytes for info in infos),
        filepath_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    if split_info in described.splits:
        return
    for path, info in zip(paths, infos, strict=True):
        if _sha256(path) != info.sha256:
            raise ValueError(f"{path}: not the file that was written: remove it and run again")
    _write_atomic(directory / FEATURES_FILE, _features_json())
    result = dataset_info_pb2.DatasetInfo(
        name=NAME,
        version=VERSION,
        file_format="array_record",
        splits=sorted([s for s in described.splits if s.name != split] + [split_info], key=lambda s: s.name),
    )
    _write_atomic(directory / INFO_FILE, json_format.MessageToJson(result, sort_keys=True))


@cache
def _features_json() -> str:
    as_dict = json_format.MessageToDict(features().to_proto())
    return json.dumps(as_dict, indent=4, sort_keys=True)


class _Shard(NamedTuple):
    """What ArrayRecordDataSource asks of a file: with it, opening reads no file."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class RowSource:
    """Random access to the rows of a split, unit after unit; picklable, and a Grain source."""

    def __init__(self, paths: Sequence[Path], lengths: Sequence[int]) -> None:
        shards = [_Shard(str(path), 0, length, length) for path, length in zip(paths, lengths, strict=True) if length]
        # The library refuses an empty list of files.
        self._records = array_record_data_source.ArrayRecordDataSource(shards) if shards else ()
        self._length = sum(lengths)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex) -> Row:
        position = index.__index__()
        if not 0 <= position < self._length:
            raise IndexError(f"row {position} of {self._length}")
        return decode(self._records[position])

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(self._length))

    def __repr__(self) -> str:
        # Grain compares this when it restores an iterator; a moved directory is the same source.
        return f"RowSource({self._length} rows)"


def read(directory: Path, split: str = "train") -> RowSource:
    """Opens a finished split.

    Raises:
      ValueError: the split is not finished, a file is missing or cut, or the directory was
        written with another layout of rows.
    """
    directory = Path(directory)
    described = _described(directory)
    splits = {s.name: s for s in described.splits}
    if split not in splits:
        raise ValueError(
            f"{directory}: split {split!r} is not complete; complete splits: {sorted(splits)}: "
            "run the stage that writes it"
        )
    if (directory / FEATURES_FILE).read_text() != _features_json():
        raise ValueError(
            f"{directory}: {FEATURES_FILE} is not the layout of this version's rows: run the "
            "stage that writes it again in an empty workdir"
        )
    lengths = list(splits[split].shard_lengths)
    paths = [unit_path(directory, i, len(lengths), split) for i in range(len(lengths))]
    size = sum(path.stat().st_size for path in paths if path.exists())
    if size != splits[split].num_bytes:
        raise ValueError(
            f"{directory}: the files of split {split!r} hold {size} bytes, not "
            f"{splits[split].num_bytes}: copy the directory again, or run its stage again"
        )
    return RowSource(paths, lengths)


def read_unit(directory: Path, unit: int, units: int, split: str = "train") -> RowSource:
    """Opens one unit, whether or not the others are written.

    Raises:
      ValueError: the unit is not written.
    """
    info = unit_info(directory, unit, units, split)
    path = unit_path(directory, unit, units, split)
    if info is None:
        raise ValueError(f"{path} is not complete: run the stage that writes it")
    return RowSource([path], [info.count])
