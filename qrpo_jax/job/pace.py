"""Seconds of work of each unit, for rates. They are kept beside the rows, and nothing else depends on them.

Each unit has its own, so that those of several shards and starts add up, and so that a unit made earlier has no part in
the rate of this start. The first unit of a start takes longer, because it compiles programs or starts workers.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from qrpo_jax.errors import DamagedError
from qrpo_jax.faults.records import read_record, write_record
from qrpo_jax.job.verdicts import Counts, all_verdicts

FOLDER = "pace"  # in the folder of a stage's rows


class Measure(NamedTuple):
    """What a stage gets done, for its rate.

    Attributes:
      what: its name, such as "tokens".
      amount: of a unit, from its counts.
    """

    what: str
    amount: Callable[[Counts], int]


SAMPLED = Measure("tokens", lambda counts: counts.get("completion tokens", 0))
SCORED = Measure("completions", lambda counts: sum(all_verdicts(counts).values()))
READ = Measure("tokens", lambda counts: counts.get("tokens", 0))


class UnitPace(NamedTuple):
    """The work on a unit.

    Attributes:
      amount: of what it got done.
      seconds: that one process, or all processes together, worked on it.
      first: it was the first unit of its start.
    """

    amount: int
    seconds: float
    first: bool


class Pace(NamedTuple):
    """The work on several units.

    Attributes:
      amount: of what they got done, in all.
      seconds: of work, in all; those of processes that worked side by side add up.
      per_second: the rate of one process; of the units that were not the first of a start, if there are any.
      warm: there are such units.
    """

    amount: int
    seconds: float
    per_second: float
    warm: bool


def together(units: Iterable[UnitPace]) -> Pace:
    """The pace of several units.

    >>> together([UnitPace(30, 6.0, True), UnitPace(30, 1.0, False), UnitPace(10, 1.0, False)])
    Pace(amount=70, seconds=8.0, per_second=20.0, warm=True)
    """
    known = list(units)
    warm = [unit for unit in known if not unit.first]
    amount, seconds = _sums(warm or known)
    return Pace(*_sums(known), amount / seconds if seconds > 0 else 0.0, bool(warm))


def write_pace(folder: Path, unit: int, seconds: float, *, first: bool) -> None:
    """Keeps the seconds of work on a unit of the rows in `folder`."""
    write_record(_file(folder, unit), {"seconds": seconds, "first": first})


def read_pace(folder: Path, unit: int, amount: int) -> UnitPace | None:
    """The work on a unit that got `amount` done; None if it is not known, as of rows that an older version wrote."""
    try:
        return UnitPace(amount, **read_record(_file(folder, unit)))
    except (FileNotFoundError, DamagedError):
        return None


def per_second(pace: Pace, measure: Measure) -> str:
    """The rate in words; "" if nothing was measured.

    >>> per_second(Pace(70, 8.0, 0.71, True), SAMPLED)
    '0.71 tokens/s'
    """
    rate = pace.per_second
    return f"{rate:,.0f} {measure.what}/s" if rate >= 10 else f"{rate:.2g} {measure.what}/s" if rate > 0 else ""


def _sums(units: list[UnitPace]) -> tuple[int, float]:
    return sum(unit.amount for unit in units), sum(unit.seconds for unit in units)


def _file(folder: Path, unit: int) -> Path:
    return folder / FOLDER / f"{unit:05d}.json"
