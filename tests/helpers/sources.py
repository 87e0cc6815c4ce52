"""Sources for tests: rows that are in memory, and all rows of a source at once."""

from collections.abc import Sequence
from typing import NamedTuple

from qrpo_jax.data.rows import Row
from qrpo_jax.data.sources.listed import ListedRows
from qrpo_jax.data.sources.listing import list_rows
from qrpo_jax.data.sources.source import Source


def all_rows(source: Source) -> list[Row]:
    """Every row of a source, in order."""
    return source.rows(range(source.count))


def in_memory(rows: Sequence[Row], places: Sequence[str] = ()) -> ListedRows:
    """A source of rows that are there already."""
    return ListedRows(_InMemory(rows, places), list_rows(rows))


class _InMemory(NamedTuple):
    all: Sequence[Row]
    places: Sequence[str]

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        return [self.all[number] for number in numbers]

    def place(self, number: int) -> str:
        return self.places[number] if self.places else f"row {self.all[number].id!r}"
