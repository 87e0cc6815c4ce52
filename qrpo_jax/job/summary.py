"""What a stage says of its rows at its end, and puts on record: rows in and out, what was cut, pace, rewards."""

import contextlib
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qrpo_jax.evaluation.histogram import Spread
from qrpo_jax.job import verdicts
from qrpo_jax.job.job import Job
from qrpo_jax.job.pace import Measure, Pace, per_second
from qrpo_jax.job.units import pace_of, rows_written
from qrpo_jax.report.terminal import labelled_bars, number

CUT, COMPLETIONS = "completions cut by length limit", "completions"
WIDEST = 72  # columns of a histogram
BLOCK = "█"


def close(
    job: Job, title: str, folder: Path, *, units: int, rows_in: int, counts: Mapping[str, int], measure: Measure
) -> dict[str, int]:
    """Prints the summary of a stage, or of one side of a stage, whose units are complete.

    Args:
      folder: of its rows.
      rows_in: that it read.
      counts: of all units, and of what its source dropped.
      measure: what it has the pace of.

    Returns:
      rows "in" and "out", for the manifest.
    """
    rows = {"in": rows_in, "out": rows_written(folder, units)}
    job.say(f"{title}: {rows_line(rows, counts)}")
    if line := pace_line(pace_of(folder, units, measure), measure):
        job.say(f"{title}: {line}")
    return rows


def rows_line(rows: Mapping[str, int], counts: Mapping[str, int]) -> str:
    """Rows in and out, those dropped by reason, the share of completions that did not end by themselves, and that of
    decoded slots whose token counts.

    >>> rows_line({"in": 9, "out": 7}, {"prompts dropped: too long": 2, "completions": 14, CUT: 7})
    '9 rows in, 7 out; prompts dropped: too long 2; 14 completions, 50 % cut by the length limit'
    >>> rows_line({"in": 7, "out": 7}, {"completion tokens": 41, "slot-steps": 50})
    '7 rows in, 7 out; 82 % of the decoded slots useful'
    """
    parts = [f"{rows['in']:,} rows in, {rows['out']:,} out"]
    parts += [f"{name} {count:,}" for name, count in counts.items() if "dropped: " in name and count]
    share = cut_share(counts)
    if share is not None:
        parts.append(f"{counts[COMPLETIONS]:,} completions, {verdicts.percent(share)} cut by the length limit")
    if counts.get("slot-steps"):
        parts.append(
            f"{verdicts.percent(counts['completion tokens'] / counts['slot-steps'])} of the decoded slots useful"
        )
    return "; ".join(parts)


def cut_share(counts: Mapping[str, int]) -> float | None:
    """Share of the sampled completions that the length limit cut; None where none were sampled."""
    return counts[CUT] / counts[COMPLETIONS] if CUT in counts and counts.get(COMPLETIONS) else None


def pace_line(pace: Pace, measure: Measure) -> str:
    """Work and rate; "" if nothing was measured.

    >>> pace_line(Pace(700, 8.0, 350.0, True), Measure("tokens", len))
    '700 tokens in 8.0 s of work; 350 tokens/s without the first unit of each start'
    """
    if not pace.amount or not pace.seconds:
        return ""
    start = "without the first unit of each start" if pace.warm else "with the time that the start took"
    seconds = f"{pace.seconds:,.0f}" if pace.seconds >= 100 else f"{pace.seconds:.1f}"
    return f"{pace.amount:,} {measure.what} in {seconds} s of work; {per_second(pace, measure)} {start}"


def say_rewards(job: Job, title: str, found: Spread | None) -> dict[str, Any]:
    """Prints a histogram of rewards: with bars in a terminal, else on one line.

    Returns:
      the spread, for the manifest; empty if there are no rewards.
    """
    if found is None:
        return {}
    if len(found.bins) == 1:
        job.say(f"{title}: all {found.completions:,} completions have reward {number(found.mean)}")
        return found._asdict()
    job.say(f"{title}: mean reward {number(found.mean)} of {found.completions:,} completions")
    labels, counts = [bin_label(low, high) for low, high, _ in found.bins], [count for *_, count in found.bins]
    if draws_bars():
        width = min(_columns(), WIDEST) - 4
        for line in labelled_bars(labels, counts, width):
            job.say(f"    {line}")
    else:
        shares = "; ".join(f"{label}: {count:,}" for label, count in zip(labels, counts, strict=True))
        job.say(f"{title}:   completions by reward: {shares}")
    return found._asdict()


def bin_label(low: float, high: float) -> str:
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def draws_bars() -> bool:
    """Whether what is said goes to a terminal that shows bars."""
    try:
        BLOCK.encode(getattr(sys.stderr, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return sys.stderr.isatty()


def _columns() -> int:
    """Columns of the terminal that is written to; the standard library looks at that of the standard output."""
    with contextlib.suppress(OSError):
        if "COLUMNS" not in os.environ and (columns := os.get_terminal_size(sys.stderr.fileno()).columns):
            return columns
    return shutil.get_terminal_size().columns
