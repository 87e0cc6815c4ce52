"""Tables of the Hugging Face hub, through the library `datasets` (extra `hf`)."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qrpo_jax.data.tables import arrow
from qrpo_jax.data.tables.table import Record, choose_split
from qrpo_jax.errors import UserError, reason

BATCH = 256  # records
# ORG/NAME, then a config and a revision if they are not the default ones.
ADDRESS = re.compile(r"(?P<name>[^:@]+)(:(?P<config>[^:@]+))?(@(?P<revision>[^:@]+))?")


@dataclass(frozen=True)
class Hub:
    """The records of one split, which the library has downloaded and keeps in its cache."""

    address: str
    split: str

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(_split(self.address, self.split).column_names)

    @property
    def leading(self) -> tuple[str, ...]:
        return self.columns

    @property
    def count(self) -> int:
        return len(_split(self.address, self.split))

    def place(self, index: int) -> str:
        return f"{self.address}, split {self.split}, row {index + 1}"

    def records(self, start: int, stop: int, columns: Collection[str]) -> Iterator[Record]:
        data = _split(self.address, self.split).with_format("arrow")
        needed = arrow.kept(data.column_names, columns)
        for first in range(start, min(stop, len(data)), BATCH):
            table = data[first : min(first + BATCH, stop)].select(needed)
            for index, values in arrow.records_of(table.to_batches()):
                yield Record(self.place(first + index), values)

    def identity(self) -> str:
        return f"{_builder(self.address).hash} {self.split}"


def open_table(address: str, split: str = "", without: str = "") -> Hub:
    """The table of one split of ORG/NAME[:CONFIG][@REVISION]; downloads the data set if the cache has none.

    Args:
      split, without: as in `choose_split`.

    Raises:
      UserError: about `path` or `split`: no such data set, config or split, or the library is not installed.
    """
    builder = _builder(address)
    return Hub(address, choose_split(sorted(builder.info.splits or ()), split, without, address))


@lru_cache(maxsize=8)
def _builder(address: str) -> Any:
    """The library's builder of a data set, which it has made."""
    found = ADDRESS.fullmatch(address)
    if found is None:
        raise UserError(
            f"{address!r} names no data set; write ORG/NAME, ORG/NAME:CONFIG or ORG/NAME@REVISION", about="path"
        )
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"data set {address} needs the library datasets, which is not installed: pip install -e '.[hf]'",
            about="path",
        ) from None
    try:
        builder = datasets.load_dataset_builder(found["name"], found["config"], revision=found["revision"])
        builder.download_and_prepare()
    except Exception as error:  # of the library, of the hub's client, of the network, of a file
        raise UserError(f"data set {address} cannot be opened: {reason(error)}", about="path") from None
    return builder


@lru_cache(maxsize=8)
def _split(address: str, split: str) -> Any:
    return _builder(address).as_dataset(split)
