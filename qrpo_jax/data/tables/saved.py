"""Tables that `datasets.save_to_disk` wrote: Arrow files and their description, read without the library."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from qrpo_jax.data.tables import arrow, files
from qrpo_jax.data.tables.table import Record, choose_split
from qrpo_jax.errors import UserError, reason

SPLITS = "dataset_dict.json"  # of a folder with several splits
STATE = "state.json"  # of a folder with one
WHAT = "a folder that datasets.save_to_disk wrote"
BATCH = 256  # records


@dataclass(frozen=True)
class Saved:
    """The records of one split; `versions` makes tables of changed files differ."""

    folder: Path
    paths: tuple[Path, ...]
    versions: tuple[tuple[int, ...], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(_mapped(self.paths[0], self.versions[0]).column_names)

    @property
    def leading(self) -> tuple[str, ...]:
        return self.columns

    @property
    def count(self) -> int:
        return sum(_mapped(path, version).num_rows for path, version in zip(self.paths, self.versions, strict=True))

    def place(self, index: int) -> str:
        return f"{self.folder}, row {index + 1}"

    def records(self, start: int, stop: int, columns: Collection[str]) -> Iterator[Record]:
        first = 0
        for path, version in zip(self.paths, self.versions, strict=True):
            table = _mapped(path, version)
            low, high = max(start - first, 0), min(stop - first, table.num_rows)
            if low < high:
                part = table.select(arrow.kept(table.column_names, columns)).slice(low, high - low)
                for index, values in arrow.records_of(part.to_batches(max_chunksize=BATCH)):
                    yield Record(self.place(first + low + index), values)
            first += table.num_rows

    def identity(self) -> str:
        return files.identity(self.paths)


def open_table(address: str, split: str = "", without: str = "") -> Saved:
    """The table of a folder, or of one of its splits.

    Args:
      split, without: as in `choose_split`; a folder without splits has the only one, which needs no name.

    Raises:
      UserError: about `path` or `split`.
    """
    folder = Path(address)
    if (folder / SPLITS).is_file():
        names = _described(folder / SPLITS).get("splits", [])
        folder = folder / choose_split(names, split, without, address)
    elif split or without:
        raise UserError(f"{address} has no splits, but one is named, {split or without!r}", about="split")
    if not address or not (folder / STATE).is_file():
        raise UserError(f"{address or 'nothing'} is no folder with {STATE} or {SPLITS}; name {WHAT}", about="path")
    state = _described(folder / STATE)
    if state.get("_indices_files"):
        raise UserError(f"{folder} holds a selection of rows; save it again after flatten_indices()", about="path")
    paths = tuple(folder / entry["filename"] for entry in state.get("_data_files", []))
    if not paths:
        raise UserError(f"{folder} holds no data; name {WHAT}", about="path")
    return Saved(folder, paths, tuple(map(files.version, paths)))


def _described(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); save the data set again", about="path") from None


@lru_cache(maxsize=4096)
def _mapped(path: Path, _: tuple[int, ...]) -> pa.Table:
    """The file's table, in memory only as far as it is read."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); save the data set again", about="path") from None
