"""A table: the records of one split of a data set, with named columns, before any is read."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from qrpo_jax.errors import UserError

TRAIN = "train"


class Record(NamedTuple):
    """One record.

    Attributes:
      place: where it stands, for messages: "FILE, line N" or "FILE, row N".
      values: by column; a column without a value (null) is left out, because some files cannot tell the two apart.
    """

    place: str
    values: dict[str, Any]


class Table(Protocol):
    """One split of a data set. Tables are equal, and have equal hashes, if they read the same content."""

    def __hash__(self) -> int: ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns; of JSON lines, those of the first thousand records."""

    @property
    def leading(self) -> tuple[str, ...]:
        """Names of the columns of the first record, which are all where records have the same columns."""

    @property
    def count(self) -> int:
        """Number of records."""

    def place(self, index: int) -> str:
        """Where a record stands; see `Record`."""

    def records(self, start: int, stop: int, columns: Collection[str]) -> Iterator[Record]:
        """The records from `start` to before `stop`, of which few are in memory at a time.

        Reading on from where another call stopped costs no more than the records themselves.

        Args:
          columns: those that are needed. What is stored by column reads no others.

        Raises:
          UserError: a record cannot be read.
        """

    def identity(self) -> str:
        """Text that differs between two contents, whatever machine and path they are on."""


def without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    return {column: value for column, value in values.items() if value is not None}


def choose_split(names: Sequence[str], split: str, without: str, where: str) -> str:
    """The split that is meant.

    Args:
      names: of all splits.
      split: as the user names it; "" for "train", or else the only one.
      without: a split that is used for something else.
      where: the data set, for messages.

    Raises:
      UserError: about `split`.
    """
    if split in names:
        return split
    others = [name for name in names if name != without]
    if not split and TRAIN in others:
        return TRAIN
    if not split and len(others) == 1:
        return others[0]
    missing = f"has no split {split!r}; " if split else ""
    raise UserError(f"{where} {missing}has splits {', '.join(map(repr, names))}: name one of them", about="split")


def named_in(split: str, parts: Iterable[str]) -> bool:
    """Whether a path names a split, by a folder of that name or by a word of its file's name.

    >>> named_in("test", ["data", "test-00000-of-00002.parquet"]), named_in("test", ["test_prefs.parquet"])
    (True, False)
    """
    *folders, name = parts
    return split in folders or bool(re.search(rf"(^|[-._ ]){re.escape(split)}($|[-. ])", name))
