"""Benchmarks of stage `harness` as one table, for the terminal, the page of a run and the model card."""

import math
from collections.abc import Mapping
from typing import Any

from qrpo_jax.evaluation.compare import SIDES
from qrpo_jax.report.texts import number

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


def rows(harnesses: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A line for each figure: benchmark, figure, a cell for each side, the gain where there is one, and prompts.

    Args:
      harnesses: the entry of results.json.
    """
    head = columns(harnesses)
    return [
        (name, label(figure), *(cell(record, column, figure) for column in head[2:-1]), prompts(record, figure))
        for name, record in harnesses.items()
        for figure in shown(record)
    ]


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


def cell(record: Mapping[str, Any], column: str, figure: str) -> str:
    """A figure with its interval, where it is there."""
    found = record.get(column, {})
    found = (found if column == GAIN else found.get("figures", {})).get(figure)
    if found is None:
        return "–"
    sign = column == GAIN
    low, high = found["ci95"]
    interval = f" ({number(low, sign)} to {number(high, sign)})" if math.isfinite(low) else ""
    return f"{number(found['value'], sign)}{interval}"


def prompts(record: Mapping[str, Any], figure: str) -> str:
    """How many prompts a figure is of."""
    side = next(side for side in reversed(SIDES) if side in record)
    counted = record[side].get("prompts_of", {}).get(figure, record[side]["prompts"])
    judged = record[side].get("judged", "")
    return f"{counted:,}" + (f"; {judged.partition(':')[0]}" if judged.startswith("not judged") else "")


def lines(harnesses: Mapping[str, Any]) -> list[str]:
    """The table as lines of a terminal, with columns below each other."""
    table = [tuple(columns(harnesses)), *rows(harnesses)]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
