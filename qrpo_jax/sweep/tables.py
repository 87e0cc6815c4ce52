"""A table as CSV, Markdown, LaTeX and text for a terminal."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from qrpo_jax.report.terminal import harmless

NONE = "–"


class Mean(NamedTuple):
    """A mean over seeds and its spread, which a single value does not have."""

    value: float
    spread: float | None = None

    def text(self, plus_minus: str = "±") -> str:
        """The mean with four decimals, or two from 10 on, and its spread with as many."""
        decimals = 2 if abs(self.value) >= 10 else 4
        shown = f"{self.value:.{decimals}f}"
        return shown if self.spread is None else f"{shown} {plus_minus} {self.spread:.{decimals}f}"


Cell = str | int | Mean | None


class Table(NamedTuple):
    """Names of columns, and rows with a cell for each."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def is_number(self, column: int) -> bool:
        return any(isinstance(row[column], Mean | int) for row in self.rows)


def shown(cell: Cell, plus_minus: str = "±") -> str:
    """A cell as text."""
    if isinstance(cell, Mean):
        return cell.text(plus_minus)
    return NONE if cell is None else str(cell)


def as_csv(table: Table) -> str:
    """CSV with all digits; a column of means is followed by one of their spreads.

    >>> print(as_csv(Table(["beta", "reward"], [["0.1", Mean(0.5, 0.25)], ["0.3", None]])), end="")
    beta,reward,reward spread
    0.1,0.5,0.25
    0.3,,
    """
    means = [any(isinstance(row[i], Mean) for row in table.rows) for i in range(len(table.columns))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [[name, f"{name} spread"] if mean else [name] for name, mean in zip(table.columns, means, strict=True)]
    writer.writerow([name for several in names for name in several])
    for row in table.rows:
        cells: list[Any] = []
        for cell, mean in zip(row, means, strict=True):
            value, spread = cell if isinstance(cell, Mean) else (cell, None)
            cells += [value, spread] if mean else [value]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()


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


WRITERS = {"csv": as_csv, "md": as_markdown, "tex": as_latex}
