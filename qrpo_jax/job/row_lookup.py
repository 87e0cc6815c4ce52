"""One row of a stage, by its index or its id, for a terminal."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from qrpo_jax.data.rows import Row
from qrpo_jax.errors import UserError, shown
from qrpo_jax.job.written_rows import WrittenRows, open_written
from qrpo_jax.report import row_view

FLAG = "show-row"


def row_lines(workdir: Path, address: str, width: int) -> Iterator[str]:
    """The lines of a row.

    Args:
      address: "STAGE:INDEX" with an index from 0, "STAGE:ID", or "STAGE:id=ID" for an id that is a number.
      width: columns of the terminal.

    Raises:
      UserError: no such stage or row.
    """
    stage, colon, which = address.partition(":")
    if not colon or not which:
        raise UserError(f"--{FLAG}={shown(address)[1:-1]}; write STAGE:INDEX or STAGE:ID, such as score:0")
    rows = open_written(workdir, stage, FLAG)
    index, row = find(rows, which)
    so_far = (
        "" if rows.units.whole else f", of the {len(rows.units.infos)} of {rows.units.total} units that are complete"
    )
    return row_view.lines(row, f"{stage}, row {index} of {rows.units.rows:,}{so_far}", width)


def find(rows: WrittenRows, which: str) -> tuple[int, Row]:
    """The index and the row of an index or id.

    Raises:
      UserError: there is none.
    """
    if re.fullmatch(r"[0-9]{1,18}", which):
        if int(which) >= rows.units.rows:
            last = f"the last index is {rows.units.rows - 1}" if rows.units.rows else "no unit is complete"
            raise UserError(f"--{FLAG}: no row {which} in {rows.name}; {last}; for an id write {rows.name}:id={which}")
        return int(which), rows.at(int(which))
    wanted = which.removeprefix("id=")
    for index, row in enumerate(rows):
        if row.id == wanted:
            return index, row
    ids = ", ".join(shown(row.id, 24) for row in itertools.islice(rows, 3)) or "none"
    raise UserError(f"--{FLAG}: no row of id {shown(wanted)} in {rows.name}; its first ids are {ids}")
