"""Tables of the TFDS catalogue, through `tfds.data_source`, without TensorFlow."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from qrpo_jax.data.tables.table import Record, choose_split, without_nulls
from qrpo_jax.errors import UserError, reason

FOLDER = "TFDS_DATA_DIR"  # environment variable of TFDS: where data sets are kept
STORED_AS = "array_record"


@dataclass(frozen=True)
class Catalogue:
    """The records of one split of a prepared data set."""

    address: str
    split: str
    folder: str | None

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(_builder(self.address, self.folder).info.features)

    @property
    def leading(self) -> tuple[str, ...]:
        return self.columns

    @property
    def count(self) -> int:
        return len(_split(self.address, self.folder, self.split))

    def place(self, index: int) -> str:
        return f"{self.address}, split {self.split}, row {index + 1}"

    def records(self, start: int, stop: int, columns: Collection[str]) -> Iterator[Record]:
        data, features = (
            _split(self.address, self.folder, self.split),
            _builder(self.address, self.folder).info.features,
        )
        for index in range(start, min(stop, len(data))):
            values = data[index]
            named = {name: plain(values[name], features[name]) for name in features if name in columns}
            yield Record(self.place(index), without_nulls(named))

    def identity(self) -> str:
        info = _builder(self.address, self.folder).info
        sizes = info.splits[self.split].shard_lengths
        return f"{info.full_name} {self.split} {list(sizes)} {info.splits[self.split].num_bytes}"


def open_table(address: str, split: str = "", without: str = "") -> Catalogue:
    """The table of one split of NAME[/CONFIG][:VERSION], as TFDS names its data sets.

    Args:
      split, without: as in `choose_split`.

    Raises:
      UserError: about `path` or `split`: no such data set or split, or it is not prepared as ArrayRecord.
    """
    folder = os.environ.get(FOLDER)
    names = list(_builder(address, folder).info.splits)
    return Catalogue(address, choose_split(names, split, without, address), folder)


@lru_cache(maxsize=8)
def _builder(address: str, folder: str | None) -> Any:
    try:
        builder = tfds.builder(address, data_dir=folder)
    except Exception as error:  # of the registry, of a file
        raise UserError(f"data set {address} cannot be opened: {reason(error)}", about="path") from None
    kinds = {one.value for one in (builder.info.file_format, *builder.info.alternative_file_formats) if one}
    if not builder.info.splits or STORED_AS not in kinds:
        raise UserError(
            f"data set {address} is not there as ArrayRecord in {builder.data_dir}: prepare it with "
            f"'tfds build {address} --file_format={STORED_AS}', which needs TensorFlow, or set {FOLDER}",
            about="path",
        )
    return builder


@lru_cache(maxsize=8)
def _split(address: str, folder: str | None, split: str) -> Any:
    return tfds.data_source(address, split=split, data_dir=folder, download=False)


def plain(value: Any, feature: Any) -> Any:
    """A value of TFDS as JSON would have it: texts, numbers, lists and dicts.

    A sequence of features comes as a dict of lists, and leaves as a list of dicts.
    """
    if isinstance(feature, tfds.features.Sequence) and isinstance(value, dict):
        each = {key: list(map(_own, values)) for key, values in value.items()}
        return [dict(zip(each, values, strict=True)) for values in zip(*each.values(), strict=True)]
    if isinstance(value, dict):
        return {key: plain(one, feature[key]) for key, one in value.items()}
    return _own(value)


def _own(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, np.ndarray | np.generic):
        return _own(value.tolist())
    if isinstance(value, list | tuple):
        return [_own(one) for one in value]
    return value
