"""The table of an on-policy run's iterations."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from qrpo_jax.report.run_record import OnPolicy, RunRecord
from qrpo_jax.report.tables import Cell, Interval, Table
from qrpo_jax.report.texts import number

FIGURES = {
    "reward": "reward",
    "kl_to_reference": "KL, k1",
    "entropy": "entropy",
    "tokens": "tokens",
    "share_finished": "finished",
    "groups_with_signal": "with signal",
    "sampler_gap": "sampler gap",
}
SHARES = ("share_finished", "groups_with_signal")
WITH_INTERVAL = ("reward", "kl_to_reference", "entropy", "tokens")  # in the table; plots have the others too
SHOWN = 9  # rows of the page
NONE = math.nan, math.nan


def table(found: OnPolicy) -> Table:
    """A row for each iteration; figures that no iteration has are left out."""
    names = [name for name in FIGURES if any(name in one["figures"] for one in found.iterations)]
    rows: list[list[Cell]] = [
        [one["iteration"], one["step"], one["samples"], one["staleness"], *(cell(one, name) for name in names)]
        for one in found.iterations
    ]
    return Table(["iteration", "step", "samples", "staleness", *(FIGURES[name] for name in names)], rows)


def cell(one: Mapping[str, Any], name: str) -> Interval | None:
    if name not in one["figures"]:
        return None
    low, high = one["intervals"].get(name, NONE) if name in WITH_INTERVAL else NONE
    return Interval(one["figures"][name], low, high, share=name in SHARES)


def shortened(whole: Table) -> Table:
    """The first row, the last one, and some between them.

    >>> [row[0] for row in shortened(Table(["iteration"], [[i] for i in range(1, 101)])).rows]
    [1, 13, 25, 38, 50, 62, 75, 87, 100]
    """
    if len(whole.rows) <= SHOWN:
        return whole
    places = np.arange(SHOWN) * (len(whole.rows) - 1) // (SHOWN - 1)
    return Table(whole.columns, [whole.rows[i] for i in places.tolist()])


def drawn(record: RunRecord) -> str:
    """How many completions a run drew, and how fast; "" of a run that is not on-policy."""
    if record.on_policy is None or not record.on_policy.iterations:
        return ""
    count, samples = len(record.on_policy.iterations), record.on_policy.iterations[-1]["samples"]
    text = f"{count:,} {'iteration' if count == 1 else 'iterations'}, {samples:,} completions drawn"
    times = record.times.get("train")
    if times is None or not times.shares["rollout"]:
        return f"{text}."
    rate = number(samples / (times.seconds * times.shares["rollout"]))
    return f"{text}: {rate} a second of sampling, scoring and log-probs, with the time that these take to compile."
