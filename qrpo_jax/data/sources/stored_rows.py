"""Prompts of rows that a stage of a run has written, with their completions, rewards and log-probs."""

import functools
import hashlib
from collections.abc import Mapping, Sequence

from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row
from qrpo_jax.data.sources.held_out import about_held_out, divide
from qrpo_jax.data.sources.listed import ListedRows
from qrpo_jax.data.sources.listing import Lister, Listing
from qrpo_jax.data.sources.source import Source, SourceOptions
from qrpo_jax.data.tables.table import TRAIN
from qrpo_jax.devices.processes import made_by_first
from qrpo_jax.errors import UserError
from qrpo_jax.stores.path import as_path


def open_rows(options: SourceOptions) -> Mapping[str, Source]:
    """Opens the rows of a stage's folder; stage `sft` learns from the rows that are trained on.

    Raises:
      UserError: about `path`, `split` or `held_out`; see `row_files.read` and `divide`.
    """
    train = _opened(options, options.split)
    with about_held_out():
        other = _opened(options, options.held_out) if isinstance(options.held_out, str) else None
    parts = divide(len(train), None if other is None else len(other), options)
    if not len(train):
        raise UserError(f"{options.address} holds no row; at least one prompt is needed", about="path")
    trained = _listed(options, train, options.split, parts.train, parts.left_out)
    if other is None:
        held_out = _listed(options, train, options.split, parts.held_out)
    else:
        held_out = _listed(options, other, str(options.held_out), parts.held_out)
    return {"sft": trained, "train": trained, "eval": held_out}


def identity(options: SourceOptions) -> str:
    """One digest of the rows."""
    folder = as_path(options.address)
    sums = [path.read_bytes() for path in sorted(folder.glob(f"{row_files.NAME}-*-of-*.json"))]
    return hashlib.sha256(b"".join(sums)).hexdigest()


def _opened(options: SourceOptions, split: str) -> row_files.RowSource:
    folder = as_path(options.address)
    if not options.address or not (folder / row_files.INFO_FILE).is_file():
        raise UserError(
            f"{options.address or 'nothing'} holds no rows ({row_files.INFO_FILE}); name the folder of a stage that "
            "writes rows, such as runs/mine/score",
            about="path",
        )
    return row_files.read(folder, split or TRAIN)


def _listed(
    options: SourceOptions, source: row_files.RowSource, split: str, part: range, left_out: int = 0
) -> ListedRows:
    records = StoredRows(source, options.address, split)
    return ListedRows(records, _listing(records, identity(options), part.start, part.stop), left_out)


class StoredRows:
    """Rows of a stage's folder by their numbers; equal if they are of the same folder and split."""

    def __init__(self, source: row_files.RowSource, address: str, split: str) -> None:
        self._source, self._key = source, (address, split)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredRows) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        return [self._source[number] for number in numbers]

    def place(self, number: int) -> str:
        return f"{self._key[0]}, row {number + 1}"


@functools.cache
def _listing(records: StoredRows, _: str, start: int, stop: int) -> Listing:
    """The listing of rows from `start` to before `stop`; of several processes the first one reads them."""

    def make() -> Listing:
        lister = Lister()
        for number in range(start, stop):
            lister.add(number, records.rows([number])[0])
        return lister.listing(stop - start)

    return made_by_first(make)
