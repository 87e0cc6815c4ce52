"""Prompts of a table: its splits, its layout, its rows, and what was dropped of them."""

import functools
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qrpo_jax.data.layouts import LAYOUTS, check_layout, recognise
from qrpo_jax.data.layouts.layout import At, DroppedError, Layout
from qrpo_jax.data.layouts.row_reader import check_keys, is_reversed, read_row
from qrpo_jax.data.rows import Row
from qrpo_jax.data.sources.held_out import about_held_out, divide
from qrpo_jax.data.sources.listed import ListedRows
from qrpo_jax.data.sources.listing import AGAIN, BITS, Lister, Listing
from qrpo_jax.data.sources.source import Source, SourceOptions
from qrpo_jax.data.tables.renamed import renamed
from qrpo_jax.data.tables.table import Record, Table
from qrpo_jax.devices.processes import made_by_first
from qrpo_jax.errors import UserError


def open_tabular(kind: str, options: SourceOptions) -> Mapping[str, Source]:
    """Opens the splits of a table; stage `sft` learns from the rows that are trained on.

    Args:
      kind: module in `data/tables`.

    Raises:
      UserError: about `path`, `split`, `held_out`, `layout` or `columns`.
    """
    train, held_out = (_renamed(table, options) for table in open_tables(kind, options))
    if not train.count:
        raise UserError(f"{options.name} holds no row; at least one prompt is needed", about="path")
    parts = divide(train.count, held_out and held_out.count, options)
    layout = options.layout or recognise(train.columns, train.leading, options.name)
    how = describe(layout, train.columns, options)
    trained = _listed(train, layout, options.name, parts.train, parts.left_out, how)
    if not trained.count:
        why = "; ".join(dropped.line() for dropped in trained.dropped[:3])
        raise UserError(f"{options.name} holds no row that can be used: {why}", about="path")
    return {
        "train": trained,
        "eval": _listed(held_out or train, layout, options.name, parts.held_out),
        "sft": trained,
    }


def _listed(table: Table, layout: str, name: str, part: range, left_out: int = 0, how: str = "") -> ListedRows:
    listing = list_part(table, layout, name, part.start, part.stop)
    return ListedRows(TableRows(table, layout, name), listing, left_out, how)


def open_tables(kind: str, options: SourceOptions) -> tuple[Table, Table | None]:
    """The table to train on, and that of the held-out split if one is named."""
    module: Any = importlib.import_module(f"qrpo_jax.data.tables.{kind}")
    other = options.held_out if isinstance(options.held_out, str) else ""
    train = module.open_table(options.address, options.split, without=other)
    with about_held_out():
        return train, module.open_table(options.address, other) if other else None


def identity(kind: str, options: SourceOptions) -> str:
    """Text that differs between two contents of the tables."""
    return " ".join(table.identity() for table in open_tables(kind, options) if table)


def _renamed(table: Table | None, options: SourceOptions) -> Any:
    return table and renamed(table, options.columns, options.name)


@dataclass(frozen=True)
class TableRows:
    """Rows of a table by the numbers of its records, read as they are asked for.

    Attributes:
      layout: its name.
      name: of the data set, for messages.
    """

    table: Table
    layout: str
    name: str

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        rows = []
        for first, after in runs(numbers):
            for number, record, at in self._read(first, after):
                try:
                    rows.append(self._row(number, record, at)[0])
                except DroppedError as error:  # it was one when it was listed
                    raise at.fault(f"the file has changed while it was read: {error.reason}") from None
        return rows

    def place(self, number: int) -> str:
        return self.table.place(number)

    def listing(self, start: int, stop: int) -> Listing:
        """The listing of the records from `start` to before `stop`; errors as in `list_part`."""
        lister, known = Lister(), set(self.table.columns)
        for number, record, at in self._read(start, stop):
            if not record.values.keys() <= known:
                self._check_late(record.values.keys() - known, at)
            try:
                row, reversed_pair = self._row(number, record, at)
            except DroppedError as error:
                lister.drop(error.reason, record.place)
            else:
                lister.add(number, row, reversed_pair)
        listing = lister.listing(stop - start)
        flags_R = listing.flags_R.copy()
        for pair in listing.same_ids():
            first, second = self.rows(listing.numbers_R[[*pair]].tolist())
            if first.id != second.id:
                continue
            if LAYOUTS[self.layout].strict:
                earlier, later = (self.place(int(listing.numbers_R[index])) for index in pair)
                raise At(later, {}).fault(f"id {first.id!r} is also that of {earlier}; give each row its own id")
            flags_R[pair[1]] |= BITS[AGAIN]
        return listing._replace(flags_R=flags_R)

    def _check_late(self, late: set[str], at: At) -> None:
        """Refuses columns that would have been read, had the first records had them."""
        for key, names in LAYOUTS[self.layout].columns.items():
            if key not in at.columns and (used := late & set(names)):
                raise at.fault(
                    f"column {min(used)!r} comes only after the first records, which say how columns are read; move "
                    "a record that has it to the beginning of the file"
                )

    def _read(self, start: int, stop: int) -> Iterator[tuple[int, Record, At]]:
        columns = self.table.columns
        layout = check_layout(self.layout, columns, self.name)
        found = layout.found(columns)
        needed = tuple(dict.fromkeys(columns if layout.strict else found.values()))
        for number, record in enumerate(self.table.records(start, stop, needed), start):
            yield number, record, At(record.place, found, layout.strict)

    def _row(self, number: int, record: Record, at: At) -> tuple[Row, bool]:
        """The row of a record, and whether its chosen answer has the lower reward."""
        layout = LAYOUTS[self.layout]
        values = _values(record.values, layout, at)
        return read_row(values, at, f"row-{number + 1}", layout.written_by), is_reversed(values)


def runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Numbers as runs, each the first of them and the one after the last.

    >>> list(runs([4, 5, 6, 9, 3]))
    [(4, 7), (9, 10), (3, 4)]
    """
    first = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            yield numbers[first], numbers[i - 1] + 1
            first = i


@functools.cache
def list_part(table: Table, layout: str, name: str, start: int, stop: int) -> Listing:
    """The listing of the records from `start` to before `stop`; of several processes the first one reads them.

    Several checks and stages use it; records are read again only where the table has changed.

    Args:
      layout: its name.
      name: of the data set, for messages.

    Raises:
      UserError: about `layout`: a column is missing; about `path`: a record's place and column, and what is wrong.
    """
    return made_by_first(lambda: TableRows(table, layout, name).listing(start, stop))


def _values(record: dict[str, Any], layout: Layout, at: At) -> dict[str, Any]:
    """The values of a record by the keys of a row."""
    if layout.strict:
        check_keys(record, at)
        return record
    values = {key: record[column] for key, column in at.columns.items() if column in record}
    for key in layout.needs:
        if key not in values:
            raise at.unusable(f"{at.column(key)} is missing")
    return layout.derive(values, at) if layout.derive else values


def describe(layout: str, columns: tuple[str, ...], options: SourceOptions) -> str:
    """A line on how the columns are read; empty where the layout is the program's own, which needs no translation."""
    if LAYOUTS[layout].strict:
        return ""
    used = set(LAYOUTS[layout].found(columns).values())
    unused = [repr(column) for column in columns if column not in used]
    ignored = f"; not read: {', '.join(unused[:8])}{', ...' if len(unused) > 8 else ''}" if unused else ""
    how = "" if options.layout else ", recognised from its columns"
    return f"layout {layout!r}{how}: {', '.join(map(repr, sorted(used)))}{ignored}"
