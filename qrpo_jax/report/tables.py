"""Tables of runs and sweeps: as CSV, JSON, Markdown, LaTeX, and text for a terminal; templates show them as HTML."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qrpo_jax.files import write_text
from qrpo_jax.report.terminal import harmless
from qrpo_jax.report.texts import number

NONE = "–"


class Mean(NamedTuple):
    """A mean over seeds and its spread, which a single value does not have."""

    value: float
    spread: float | None = None

    def text(self, plus_minus: str = "±") -> str:
        """The mean with its spread."""
        return self.main() if self.spread is None else f"{self.main()} {plus_minus} {self.around()}"

    def main(self) -> str:
        """The mean, with four decimals, or two from 10 on."""
        return f"{self.value:.{self._decimals}f}"

    def around(self) -> str:
        """The spread, with as many decimals as the mean; "" where there is none."""
        return "" if self.spread is None else f"{self.spread:.{self._decimals}f}"

    @property
    def _decimals(self) -> int:
        return 2 if abs(self.value) >= 10 else 4


class Interval(NamedTuple):
    """A figure with its 95 % interval over prompts; the ends are NaN where there is none.

    Attributes:
      share: it is a share, and shown in per cent.
      sign: shown with its sign, as a difference.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    share: bool = False
    sign: bool = False

    def text(self, between: str = " to ") -> str:
        """The figure, and its interval in brackets."""
        ends = self.ends(between)
        return f"{self.main()} ({ends})" if ends else self.main()

    def main(self) -> str:
        return self._written(self.value)

    def ends(self, between: str = " to ") -> str:
        """The interval; "" where there is none."""
        known = math.isfinite(self.low) and math.isfinite(self.high)
        return f"{self._written(self.low)}{between}{self._written(self.high)}" if known else ""

    def _written(self, value: float) -> str:
        return f"{value:.1%}" if self.share and math.isfinite(value) else number(value, self.sign)


Cell = str | int | float | Mean | Interval | None
# What the several columns of such a cell are called behind the name of its column.
PARTS: Mapping[type, tuple[str, ...]] = {Mean: ("", " spread"), Interval: ("", " low", " high")}


class Table(NamedTuple):
    """Names of columns, and rows with a cell for each."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def is_number(self, column: int) -> bool:
        return any(isinstance(row[column], Mean | Interval | int | float) for row in self.rows)

    def kind(self, column: int) -> type | None:
        """Of a column of means or intervals, which; else None."""
        return next((kind for kind in PARTS if any(isinstance(row[column], kind) for row in self.rows)), None)


def shown(cell: Cell, plus_minus: str = "±") -> str:
    """A cell as text."""
    if isinstance(cell, Mean):
        return cell.text(plus_minus)
    if isinstance(cell, Interval):
        return cell.text()
    if isinstance(cell, float):
        return number(cell)
    return NONE if cell is None else str(cell)


def wide(table: Table) -> tuple[list[str], list[list[Any]]]:
    """Names and rows where a mean and its spread, and an interval's ends, have a column each; missing ones are None."""
    kinds = [table.kind(i) for i in range(len(table.columns))]
    parts = [PARTS[kind] if kind else ("",) for kind in kinds]
    names = [f"{name}{part}" for name, several in zip(table.columns, parts, strict=True) for part in several]
    rows = []
    for row in table.rows:
        cells: list[Any] = []
        for cell, several in zip(row, parts, strict=True):
            split = cell[: len(several)] if isinstance(cell, Mean | Interval) else (cell,)
            cells += [*split, *([None] * (len(several) - len(split)))]
        rows.append([None if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in cells])
    return names, rows


def as_csv(table: Table) -> str:
    """CSV with all digits; behind a column of means is one of their spreads, behind one of figures two of their ends.

    >>> print(as_csv(Table(["beta", "reward"], [["0.1", Mean(0.5, 0.25)], ["0.3", None]])), end="")
    beta,reward,reward spread
    0.1,0.5,0.25
    0.3,,
    """
    names, rows = wide(table)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([names, *(["" if cell is None else cell for cell in row] for row in rows)])
    return text.getvalue()


def as_json(table: Table) -> str:
    """JSON: a list of rows, each with its cells by the names of the columns that CSV has.

    >>> print(as_json(Table(["beta", "reward"], [["0.1", Mean(0.5, 0.25)]])), end="")
    [
      {
        "beta": "0.1",
        "reward": 0.5,
        "reward spread": 0.25
      }
    ]
    """
    names, rows = wide(table)
    return json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2, ensure_ascii=False) + "\n"


def as_markdown(table: Table) -> str:
    """A Markdown table; numbers are on the right.

    >>> print(as_markdown(Table(["beta", "reward"], [["0.1", Mean(0.5, 0.25)]])), end="")
    | beta | reward |
    |---|--:|
    | 0.1 | 0.5000 ± 0.2500 |
    """
    rules = ["--:" if table.is_number(i) else "---" for i in range(len(table.columns))]
    lines = [table.columns, *([shown(cell) for cell in row] for row in table.rows)]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    texts = [f"| {' | '.join(line)} |" for line in escaped]
    return "\n".join([texts[0], f"|{'|'.join(rules)}|", *texts[1:]]) + "\n"


PLUS_MINUS = r"\pm"
LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    NONE: "--",
    "−": "$-$",
    "∞": r"$\infty$",
}


def as_latex(table: Table) -> str:
    """A LaTeX tabular that needs no package."""
    align = "".join("r" if table.is_number(i) else "l" for i in range(len(table.columns)))

    def line(cells: Sequence[str]) -> str:
        return f"{' & '.join(cells)} \\\\"

    def plain(text: str) -> str:
        return "".join(LATEX.get(letter, letter) for letter in text)

    def cell_text(cell: Cell) -> str:
        return f"${shown(cell, PLUS_MINUS)}$" if isinstance(cell, Mean) else plain(shown(cell))

    head = line([plain(name) for name in table.columns])
    rows = [line([cell_text(cell) for cell in row]) for row in table.rows]
    body = "\n".join([head, r"\hline", *rows])
    return f"\\begin{{tabular}}{{{align}}}\n\\hline\n{body}\n\\hline\n\\end{{tabular}}\n"


def as_text(table: Table) -> str:
    """Columns for a terminal, two spaces apart; numbers are on the right."""
    cells = [[harmless(shown(cell)).replace("\n", " ") for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    pads: list[Callable[[str, int], str]] = [
        str.rjust if table.is_number(i) else str.ljust for i in range(len(table.columns))
    ]
    return "\n".join(
        "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)).rstrip()
        for row in cells
    )


WRITERS = {"csv": as_csv, "json": as_json, "md": as_markdown, "tex": as_latex}


def write(folder: Path, tables: Mapping[str, Table]) -> None:
    """Writes tables as NAME.csv, .json, .md and .tex."""
    for name, table in tables.items():
        for ending, writer in WRITERS.items():
            write_text(folder / f"{name}.{ending}", writer(table))
