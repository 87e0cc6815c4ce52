"""A table whose columns the user calls by other names."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from qrpo_jax.data.tables.table import Record, Table
from qrpo_jax.errors import UserError, shown


@dataclass(frozen=True)
class Renamed:
    """A table with other names of columns.

    Attributes:
      names: pairs of a new name and the table's own.
    """

    table: Table
    names: tuple[tuple[str, str], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return self._new(self.table.columns)

    @property
    def leading(self) -> tuple[str, ...]:
        return self._new(self.table.leading)

    def _new(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        new = {own: name for name, own in self.names}
        taken = {name for name, _ in self.names}
        return tuple(new.get(column, column) for column in columns if column in new or column not in taken)

    @property
    def count(self) -> int:
        return self.table.count

    def place(self, index: int) -> str:
        return self.table.place(index)

    def records(self, start: int, stop: int, columns: Collection[str]) -> Iterator[Record]:
        own = dict(self.names)
        for record in self.table.records(start, stop, tuple(own.get(column, column) for column in columns)):
            values = {name: value for name, value in record.values.items() if name not in own}
            values |= {name: record.values[column] for name, column in self.names if column in record.values}
            for column in own.values():
                if column not in own:
                    values.pop(column, None)
            yield Record(record.place, values)

    def identity(self) -> str:
        return self.table.identity()


def renamed(table: Table, names: Sequence[str], where: str) -> Table:
    """A table under other names of columns.

    Args:
      names: texts NEW=OWN.
      where: the data set, for messages.

    Raises:
      UserError: about `columns`: a text is not of that form, or the table has no such column.
    """
    if not names:
        return table
    pairs = []
    for text in names:
        new, equals, own = text.partition("=")
        if not equals or not new or not own:
            raise UserError(f"columns has {shown(text)}; it must be NEW=OWN, such as prompt=question", about="columns")
        if own not in table.columns:
            there = ", ".join(map(repr, table.columns[:12]))
            raise UserError(
                f"columns has {shown(text)}, and {where} has no column {own!r}; it has {there}", about="columns"
            )
        pairs.append((new, own))
    return Renamed(table, tuple(pairs))
