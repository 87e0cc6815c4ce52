"""Benchmarks of stage `harness` as one table, for the terminal, the page of a run and the model card."""

from collections.abc import Mapping
from typing import Any

from qrpo_jax.evaluation.compare import SIDES
from qrpo_jax.report.tables import Cell, Interval, Table
from qrpo_jax.report.tables import shown as written

GAIN = "gain"
LABELS = {
    "strict_match": "right number behind its mark",
    "flexible_extract": "right last number",
    "length_controlled_win_rate": "length-controlled win rate",
    "win_rate": "win rate",
    "mean_tokens": "tokens an answer",
}
DETAILS = ("mean_tokens", "share_finished")  # shown where there is nothing else


def columns(harnesses: Mapping[str, Any]) -> list[str]:
    """The head of the table."""
    sides = [side for side in SIDES if any(side in record for record in harnesses.values())]
    gains = [GAIN] if any(GAIN in record for record in harnesses.values()) else []
    return ["benchmark", "figure", *sides, *gains, "prompts"]


def table(harnesses: Mapping[str, Any]) -> Table:
    """A line for each figure: benchmark, figure, a cell for each side, the gain where there is one, and prompts.

    Args:
      harnesses: the entry of results.json.
    """
    head, lines = columns(harnesses), list[list[Cell]]()
    for name, record in harnesses.items():
        for figure in shown(record):
            cells = [cell(record, column, figure) for column in head[2:-1]]
            lines.append([name, label(figure), *cells, prompts(record, figure)])
    return Table(head, lines)


def rows(harnesses: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The lines of the table as texts."""
    return [tuple(map(written, line)) for line in table(harnesses).rows]


def shown(record: Mapping[str, Any]) -> list[str]:
    """The figures of a task that the table has."""
    names = list(dict.fromkeys(name for side in SIDES if side in record for name in record[side]["figures"]))
    return [name for name in names if name not in DETAILS] or [name for name in names if name == DETAILS[0]]


def label(figure: str) -> str:
    """What the table calls a figure.

    >>> label("pass_at_16"), label("win_rate"), label("arc_easy acc_norm")
    ('pass@16', 'win rate', 'arc_easy acc_norm')
    """
    return LABELS.get(figure, figure.replace("pass_at_", "pass@"))


def cell(record: Mapping[str, Any], column: str, figure: str) -> Interval | None:
    """A figure with its interval, where it is there."""
    found = record.get(column, {})
    found = (found if column == GAIN else found.get("figures", {})).get(figure)
    if found is None:
        return None
    low, high = found["ci95"]
    return Interval(found["value"], low, high, sign=column == GAIN)


def prompts(record: Mapping[str, Any], figure: str) -> str:
    """How many prompts a figure is of; nothing for a group of tasks, whose own rule says how it counts each."""
    side = next(side for side in reversed(SIDES) if side in record)
    of_figures = record[side].get("prompts_of")
    counted = record[side]["prompts"] if of_figures is None else of_figures.get(figure)
    judged = record[side].get("judged", "")
    return ("" if counted is None else f"{counted:,}") + (
        f"; {judged.partition(':')[0]}" if judged.startswith("not judged") else ""
    )


def lines(harnesses: Mapping[str, Any]) -> list[str]:
    """The table as lines of a terminal, with columns below each other."""
    texts = [tuple(columns(harnesses)), *rows(harnesses)]
    widths = [max(map(len, cells)) for cells in zip(*texts, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in texts]
