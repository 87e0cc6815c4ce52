"""Rows on disk: ArrayRecord files in the layout of TensorFlow Datasets.

`tfds.builder_from_directory(DIR).as_data_source(SPLIT)` opens these files; neither writing nor reading imports
TensorFlow. One file is a *unit*. The number of units of a split is a setting and does not depend on how many
processes write them, so reading all units in order needs no merge step.

A unit is complete or absent. Its file appears whole, and its sidecar (count, bytes, sha256) after it;
without a sidecar that fits the file, the unit does not count as written. A sidecar belongs to one place: a unit that
took another one's place, in its folder or another, does not count either.
"""

import errno
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, SupportsIndex

from array_record.python import array_record_data_source, array_record_module
from google.protobuf import json_format
from tensorflow_datasets.core.proto import dataset_info_pb2

from qrpo_jax.data.rows import Row, decode, encode, features
from qrpo_jax.errors import DamagedError, UserError
from qrpo_jax.faults.records import read_record, write_record
from qrpo_jax.files import sha256, sweep, whole_file, write_text
from qrpo_jax.stores.copies import local
from qrpo_jax.stores.path import as_path

NAME = "rows"
VERSION = "1.0.0"
INFO_FILE = "dataset_info.json"
FEATURES_FILE = "features.json"
# Each record is its own chunk: random access then reads one row, not a group of rows.
_WRITER_OPTIONS = "group_size:1"


@dataclass(frozen=True, slots=True)
class UnitInfo:
    """The sidecar of a unit: number of rows, size and sha256 of the unit's file."""

    count: int
    bytes: int
    sha256: str


def unit_path(directory: Path, unit: int, units: int, split: str = "train") -> Path:
    """The file of a unit, named as TFDS names it.

    Raises:
      ValueError: a bug: no such unit, or a split name that TFDS could not read back.
    """
    if not 0 <= unit < units:
        raise ValueError(f"unit is {unit}; allowed with units={units}: 0 to {units - 1}")
    if not split.isidentifier() or split == "all":
        raise ValueError(f"split is {split!r}; allowed: letters, digits and _, and not 'all'")
    return as_path(directory) / f"{NAME}-{split}.array_record-{unit:05d}-of-{units:05d}"


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _records(path: Path) -> int:
    # A truncated ArrayRecord file opens without an error and reports 0 records.
    reader = array_record_module.ArrayRecordReader(str(path))
    try:
        return int(reader.num_records())
    finally:
        reader.close()


def write_unit(directory: Path, unit: int, units: int, rows: Sequence[Row], split: str = "train") -> UnitInfo:
    """Writes one unit, complete or not at all; a unit already there is replaced.

    Equal rows give equal files. A file is at least 128 KiB, so units should not be tiny.

    Raises:
      UserError: from `encode`.
      OSError: the file could not be written in full.
    """
    path = unit_path(directory, unit, units, split)
    records = [encode(row) for row in rows]
    with whole_file(path) as temporary:
        writer = array_record_module.ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
        for record in records:
            writer.write(record)
        writer.close()
        if (count := _records(temporary)) != len(records):
            raise OSError(errno.EIO, f"{count} of {len(records)} rows written", str(path))
        info = UnitInfo(count, temporary.stat().st_size, sha256(temporary))
        _sidecar(path).unlink(missing_ok=True)  # an old sidecar must not vouch for the new file
    write_record(_sidecar(path), asdict(info))
    return info


def unit_info(directory: Path, unit: int, units: int, split: str = "train") -> UnitInfo | None:
    """The sidecar of a unit; None if the unit is not complete, or the sidecar is damaged."""
    path = unit_path(directory, unit, units, split)
    try:
        info = UnitInfo(**read_record(_sidecar(path)))
        return info if path.stat().st_size == info.bytes else None
    except (FileNotFoundError, DamagedError):
        return None


def unit_done(directory: Path, unit: int, units: int, split: str = "train") -> bool:
    """Whether a unit is complete, judged by its size; `unit_whole` and `finish` check the sha256."""
    return unit_info(directory, unit, units, split) is not None


def unit_whole(directory: Path, unit: int, units: int, split: str = "train") -> bool:
    """Whether a unit is complete and is what was written; reads its file."""
    info = unit_info(directory, unit, units, split)
    return info is not None and sha256(unit_path(directory, unit, units, split)) == info.sha256


def _read_info(directory: Path) -> dataset_info_pb2.DatasetInfo:
    path = as_path(directory) / INFO_FILE
    info = dataset_info_pb2.DatasetInfo()
    try:
        return json_format.Parse(path.read_text(), info) if path.exists() else info
    except (json_format.ParseError, UnicodeDecodeError):
        raise DamagedError(path, "it does not describe rows", "remove it and run again") from None


def finish(directory: Path, units: int, split: str = "train") -> None:
    """Describes a split whose units are all written, so that TFDS and `read` can open it.

    Checks every file against its sidecar, removes what killed writers of this split left, and writes features.json
    and dataset_info.json. Other splits keep their description. Does nothing if the split is described already. Two
    splits of one directory must not be finished at the same time.

    Raises:
      UserError: about `directory`: a unit is not written, its file has changed since, or there are units of this
        split under another number of units.
    """
    directory = as_path(directory)
    paths = [unit_path(directory, unit, units, split) for unit in range(units)]
    infos = _unit_infos(directory, units, split)
    pattern = f"{NAME}-{split}.array_record-"
    others = {p.name for p in directory.glob(pattern + "?????-of-?????")} - {p.name for p in paths}
    if others:
        raise UserError(
            f"{directory}: split {split!r} has units={units}, and also {min(others)} of another number of units: "
            "remove the older files or use an empty directory",
            about="directory",
        )
    # Not what describes the split: another shard that sees all units may be writing the same content at this moment.
    sweep(directory, pattern)
    described = _read_info(directory)
    split_info = dataset_info_pb2.SplitInfo(
        name=split,
        shard_lengths=[info.count for info in infos],
        num_bytes=sum(info.bytes for info in infos),
        filepath_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    if split_info in described.splits:
        return
    for path, info in zip(paths, infos, strict=True):
        if sha256(path) != info.sha256:
            raise DamagedError(path, "it is not what was written", "remove it and run again")
    write_text(directory / FEATURES_FILE, _features_json())
    result = dataset_info_pb2.DatasetInfo(
        name=NAME,
        version=VERSION,
        file_format="array_record",
        splits=sorted([s for s in described.splits if s.name != split] + [split_info], key=lambda s: s.name),
    )
    write_text(directory / INFO_FILE, json_format.MessageToJson(result, sort_keys=True))


def _unit_infos(directory: Path, units: int, split: str) -> list[UnitInfo]:
    infos = [unit_info(directory, unit, units, split) for unit in range(units)]
    absent = [unit for unit, info in enumerate(infos) if info is None]
    if absent:
        raise UserError(
            f"{directory}: split {split!r} lacks {len(absent)} of {units} units, the first is {absent[0]}: run the "
            "stage that writes it again",
            about="directory",
        )
    return [info for info in infos if info is not None]


@cache
def _features_json(components: bool = True) -> str:
    as_dict = json_format.MessageToDict(features(components).to_proto())
    return json.dumps(as_dict, indent=4, sort_keys=True)


class Units(NamedTuple):
    """The units of a split that are complete; some may still be missing.

    Attributes:
      total: number of units, complete or not.
      infos: of the complete ones, by unit, in order.
    """

    total: int
    infos: dict[int, UnitInfo]

    @property
    def rows(self) -> int:
        return sum(info.count for info in self.infos.values())

    @property
    def whole(self) -> bool:
        return len(self.infos) == self.total


def units_of(directory: Path, split: str = "train") -> Units:
    """What is there of a split, finished or not.

    Raises:
      UserError: about `directory`: it has no unit.
    """
    directory = as_path(directory)
    totals = {len(s.shard_lengths) for s in _read_info(directory).splits if s.name == split}
    names = [path.name for path in directory.glob(f"{NAME}-{split}.array_record-?????-of-?????")]
    totals |= {int(name[-5:]) for name in names}
    if not totals:
        raise UserError(f"{directory} holds no rows", about="directory")
    total = max(totals)
    infos = ((unit, unit_info(directory, unit, total, split)) for unit in range(total))
    return Units(total, {unit: info for unit, info in infos if info is not None})


class _Shard(NamedTuple):
    """The attributes of a file that ArrayRecordDataSource reads; with them, it opens no file to count its records."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class RowSource:
    """Random access to the rows of a split, unit after unit; picklable, and a Grain source."""

    def __init__(self, paths: Sequence[Path], lengths: Sequence[int]) -> None:
        units = zip(paths, lengths, strict=True)
        shards = [_Shard(str(local(path)), 0, length, length) for path, length in units if length]
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
        # Grain compares this when it restores an iterator, and a moved directory is the same source.
        return f"RowSource({self._length} rows)"


def read(directory: Path, split: str = "train") -> RowSource:
    """Opens a finished split.

    Raises:
      UserError: about `directory`: the split is not finished, a file is missing or cut, or another version wrote its
        rows in another layout.
    """
    directory = as_path(directory)
    splits = {s.name: s for s in _read_info(directory).splits}
    if split not in splits:
        raise UserError(
            f"{directory}: split {split!r} is not complete; complete splits: {sorted(splits)}: run the stage that "
            "writes it",
            about="directory",
        )
    if (directory / FEATURES_FILE).read_text() not in (_features_json(), _features_json(components=False)):
        raise UserError(
            f"{directory}: {FEATURES_FILE} is not the layout of this version's rows: run the stage that writes it "
            "again in an empty workdir",
            about="directory",
        )
    lengths = list(splits[split].shard_lengths)
    paths = [unit_path(directory, i, len(lengths), split) for i in range(len(lengths))]
    size = sum(path.stat().st_size for path in paths if path.exists())
    if size != splits[split].num_bytes:
        raise UserError(
            f"{directory}: the files of split {split!r} hold {size} bytes, not {splits[split].num_bytes}: copy the "
            "directory again, or run its stage again",
            about="directory",
        )
    return RowSource(paths, lengths)


def read_unit(directory: Path, unit: int, units: int, split: str = "train") -> RowSource:
    """Opens one unit, whether or not the others are written.

    Raises:
      UserError: about `directory`: the unit is not written.
    """
    info = unit_info(directory, unit, units, split)
    path = unit_path(directory, unit, units, split)
    if info is None:
        raise UserError(f"{path} is not complete: run the stage that writes it", about="directory")
    return RowSource([path], [info.count])
