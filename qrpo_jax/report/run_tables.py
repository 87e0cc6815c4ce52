"""The tables of a run's page beside those of figures: counts, rows, verdicts, and what its stages took."""

import datetime
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from qrpo_jax.report import speed
from qrpo_jax.report.run_record import RunRecord
from qrpo_jax.report.tables import Cell, Interval, Table

Starts = Mapping[str, Sequence[Mapping[str, Any]]]  # of each stage


def run_tables(record: RunRecord) -> dict[str, Table]:
    """The tables that have rows, by name; cells that are not known are None."""
    found = {
        "stages": stages(record.starts),
        "rows": Table(
            ["stage", "rows in", "rows out", "cut by the length limit", "share cut"],
            [
                [one.title, one.rows_in, one.rows_out, one.cut, None if one.cut is None else share(one.cut_share)]
                for one in record.rows
            ],
        ),
        "counts": Table(
            ["stage", "count", "number"],
            [[stage, name, count] for stage, counts in record.counts for name, count in counts],
        ),
        "verdicts": verdicts(record),
        "paces": Table(
            ["stage", "done", "of", "seconds of work", "rate"],
            [
                [one.title, one.amount, one.what, one.seconds, f"{one.rate}{'' if one.warm else ' *'}"]
                for one in record.paces
            ],
        ),
        "times": times(record),
    }
    if record.benchmark:
        rows: list[list[Cell]] = [list(row) for row in speed.rows(record.benchmark)]
        found["benchmark"] = Table(["program", *speed.COLUMNS[1:]], rows)
    return {name: table for name, table in found.items() if table.rows}


def dropped(record: RunRecord) -> Table | None:
    """What was dropped, cut or could not be used; None if nothing was."""
    words = ("dropped", "cut", "without", "replaced")
    rows: list[list[Cell]] = [
        [stage, name, count]
        for stage, counts in record.counts
        for name, count in counts
        if any(word in name for word in words)
    ]
    return Table(["stage", "count", "number"], rows) if rows else None


def share(value: float | None) -> Interval | None:
    return None if value is None else Interval(value, share=True)


def stages(starts: Starts) -> Table:
    """Wall time and peak memory of each stage."""
    rows: list[list[Cell]] = []
    for stage, several in starts.items():
        seconds = sum(one["seconds"] or 0.0 for one in several)
        peaks = [one["peak_bytes"] for one in several if one["peak_bytes"]]
        stopped = sum(one["seconds"] is None for one in several)
        peak = f"{max(peaks) / 2**30:.2f}" if peaks else None
        rows.append([stage, time_of(several[0]["started"]), len(several), stopped, f"{seconds:,.1f}", peak])
    return Table(["stage", "first start", "starts", "not ended", "seconds", "peak memory, GiB"], rows)


def seconds_by_stage(starts: Starts) -> dict[str, float]:
    """Wall time of each stage, over all its starts that ended."""
    return {stage: sum(one["seconds"] or 0.0 for one in several) for stage, several in starts.items()}


def time_of(seconds: float) -> str:
    """A moment, in UTC.

    >>> time_of(1795854840.0)
    '2026-11-28 08:34:00 UTC'
    """
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def verdicts(record: RunRecord) -> Table:
    """Completions by verdict, with shares."""
    names = list(dict.fromkeys(name for one in record.verdicts for name in one.completions))
    rows: list[list[Cell]] = []
    for one in record.verdicts:
        total = sum(one.completions.values())
        shares = [
            f"{one.completions[n] / total:.1%} ({one.completions[n]:,})" if n in one.completions else None
            for n in names
        ]
        rows.append([one.title, total, *shares])
    return Table(["stage", "completions", *names], rows)


def times(record: RunRecord) -> Table:
    """Where the time of training stages went; causes that took none are left out."""
    shares = [one.shares for one in record.times.values()]
    causes = [cause for cause in (shares[0] if shares else ()) if any(one[cause] >= 0.0005 for one in shares)]
    rows: list[list[Cell]] = [
        [stage, one.starts, one.seconds / 60, *(share(one.shares[cause]) for cause in causes), share(one.goodput)]
        for stage, one in record.times.items()
    ]
    table = Table(["stage", "starts", "minutes", *causes, "goodput"], rows)
    # Where nothing else is useful, steps are goodput.
    return table if "rollout" in causes else without(table, "steps")


def without(table: Table, column: str) -> Table:
    """A table without one of its columns, if it has it.

    >>> without(Table(["a", "b"], [[1, 2]]), "a")
    Table(columns=['b'], rows=[[2]])
    """
    kept = [i for i, name in enumerate(table.columns) if name != column]
    return Table([table.columns[i] for i in kept], [[row[i] for i in kept] for row in table.rows])


def provenance(starts: Starts) -> list[tuple[str, list[str]]]:
    """Where the results come from: a label, and each value that occurred."""
    every = [one for several in starts.values() for one in several]
    if not every:
        return []
    ends = [one["started"] + (one["seconds"] or 0.0) for one in every]
    libraries = [", ".join(f"{name} {version}" for name, version in one["libraries"].items()) for one in every]
    facts = {
        "Date": [f"{time_of(min(one['started'] for one in every))} to {time_of(max(ends))}"],
        "Command": [shlex.join(one["command"]) for one in every],
        "Version": [
            f"qrpo-jax {one['version']}" + (f", commit {one['commit']}" if one["commit"] else "") for one in every
        ],
        "Libraries": libraries,
        "Hardware": [one["hardware"] for one in every],
        "Processes": [str(one["processes"]) for one in every if one["processes"] > 1],
    }
    return [(label, list(dict.fromkeys(values))) for label, values in facts.items() if values]
