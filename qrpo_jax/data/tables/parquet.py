"""Tables of Parquet files, of which only the columns that are needed are read, a batch of records at a time."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qrpo_jax.data.tables import arrow, files
from qrpo_jax.data.tables.cursor import Cursors
from qrpo_jax.data.tables.table import Record
from qrpo_jax.errors import UserError, reason
from qrpo_jax.stores.copies import local

WHAT = "a Parquet file"


@dataclass(frozen=True)
class Parquet:
    """The records of some files, one after the other; `versions` makes tables of changed files differ."""

    paths: tuple[Path, ...]
    versions: tuple[tuple[int, ...], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return _described(self.paths[0], self.versions[0])[1]

    @property
    def leading(self) -> tuple[str, ...]:
        return self.columns

    @property
    def count(self) -> int:
        return sum(_described(path, version)[0] for path, version in zip(self.paths, self.versions, strict=True))

    def place(self, index: int) -> str:
        for path, version in zip(self.paths, self.versions, strict=True):
            count, _ = _described(path, version)
            if index < count:
                return f"{path}, row {index + 1}"
            index -= count
        raise IndexError(index)

    def records(self, start: int, stop: int, columns: Collection[str]) -> Iterator[Record]:
        first = 0
        for path, version in zip(self.paths, self.versions, strict=True):
            count, names = _described(path, version)
            low, high = max(start - first, 0), min(stop - first, count)
            if low < high:
                yield from _records(path, version, low, high, tuple(arrow.kept(names, columns)))
            first += count

    def identity(self) -> str:
        return files.identity(self.paths)


def open_table(address: str, split: str = "", without: str = "") -> Parquet:
    """The table of a file, or of all files that match a pattern.

    Args:
      split, without: as in `files.of_split`.

    Raises:
      UserError: about `path` or `split`; a file is no Parquet file, or has other columns than the first.
    """
    paths = tuple(files.of_split(files.find(address, WHAT), split, without))
    table = Parquet(paths, tuple(map(files.version, paths)))
    for path, version in zip(table.paths, table.versions, strict=True):
        if other := set(table.columns) ^ set(_described(path, version)[1]):
            raise UserError(
                f"{paths[0]} and {path} have different columns, such as {min(other)!r}; name files of one layout",
                about="path",
            )
    return table


@lru_cache(maxsize=4096)
def _described(path: Path, _: tuple[int, ...]) -> tuple[int, tuple[str, ...]]:
    """Number of records and names of the columns."""
    with _opened(path) as file:
        return file.metadata.num_rows, tuple(file.schema_arrow.names)


def _records(path: Path, version: tuple[int, ...], start: int, stop: int, columns: tuple[str, ...]) -> Iterator[Record]:
    try:
        cursors = _cursors(path, version, columns)
        while start < stop:
            batch = cursors.batch(start, stop)
            for index, values in arrow.records_of([batch]):
                yield Record(f"{path}, row {start + index + 1}", values)
            start += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); copy it again", about="path") from None


@lru_cache(maxsize=16)
def _cursors(path: Path, _: tuple[int, ...], columns: tuple[str, ...]) -> Cursors:
    return Cursors(_opened(path), columns)


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(local(path), memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is no whole Parquet file ({reason(error)})", about="path") from None
