"""Prompts of a table: its splits, its layout, its rows, and what was dropped of them."""

import functools
import importlib
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from qrpo_jax.data.layouts import LAYOUTS, check_layout, recognise
from qrpo_jax.data.layouts.layout import At, DroppedError, Layout
from qrpo_jax.data.layouts.row_reader import check_keys, is_reversed, read_row
from qrpo_jax.data.rows import Row
from qrpo_jax.data.sources.held_out import about_held_out, divide
from qrpo_jax.data.sources.listed import Dropped, ListedRows
from qrpo_jax.data.sources.source import Source, SourceOptions
from qrpo_jax.data.tables.renamed import renamed
from qrpo_jax.data.tables.table import Table
from qrpo_jax.errors import UserError


class Listing(NamedTuple):
    """The rows of a part of a table.

    Attributes:
      places: where each row stands, by its id.
      reversed_pairs: ids of rows whose chosen completion has the lower reward.
      dropped: records that are no rows, by reason.
    """

    rows: tuple[Row, ...]
    places: Mapping[str, str]
    reversed_pairs: frozenset[str]
    dropped: tuple[Dropped, ...]


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
    sources: dict[str, Source] = {}
    for split, table, part in (("train", train, parts.train), ("eval", held_out or train, parts.held_out)):
        listing = read_part(table, layout, options.name, part.start, part.stop)
        left_out = parts.left_out if split == "train" else 0
        sources[split] = ListedRows(
            listing.rows,
            listing.places,
            listing.reversed_pairs,
            left_out,
            listing.dropped,
            how if split == "train" else "",
        )
    if not sources["train"].count:
        raise UserError(f"{options.name} holds no row that can be used; at least one prompt is needed", about="path")
    return sources | {"sft": sources["train"]}


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


@functools.lru_cache(maxsize=4)
def read_part(table: Table, layout: str, name: str, start: int, stop: int) -> Listing:
    """The rows of the records from `start` to before `stop`.

    Several checks and stages read them; they are read again only where the table has changed.

    Args:
      layout: its name.
      name: of the data set, for messages.

    Raises:
      UserError: about `layout`: a column is missing; about `path`: a record's place and column, and what is wrong.
    """
    chosen = check_layout(layout, table.columns, name)
    columns = dict.fromkeys(table.columns) if chosen.strict else dict.fromkeys(chosen.found(table.columns).values())
    rows: dict[str, Row] = {}
    places: dict[str, str] = {}
    reversed_pairs, reasons, first = set(), Counter[str](), dict[str, str]()
    for number, record in enumerate(table.records(start, stop, tuple(columns)), start + 1):
        at = At(record.place, chosen.found(table.columns), chosen.strict)
        try:
            values = _values(record.values, chosen, at)
            row = read_row(values, at, f"row-{number}", chosen.written_by)
        except DroppedError as error:
            reasons[error.reason] += 1
            first.setdefault(error.reason, record.place)
            continue
        if row.id in rows:
            raise at.fault(f"id {row.id!r} is also that of {places[row.id]}; give each row its own id")
        rows[row.id], places[row.id] = row, record.place
        if is_reversed(values):
            reversed_pairs.add(row.id)
    dropped = tuple(Dropped(reason, count, stop - start, first[reason]) for reason, count in reasons.items())
    return Listing(tuple(rows.values()), MappingProxyType(places), frozenset(reversed_pairs), dropped)


def _values(record: dict[str, Any], layout: Layout, at: At) -> dict[str, Any]:
    """The values of a record by the keys of a row."""
    if layout.strict:
        check_keys(record, at)
        return record
    values = {key: record[column] for key, column in at.columns.items() if column in record}
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
