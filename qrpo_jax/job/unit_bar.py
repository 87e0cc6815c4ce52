"""The progress bar of units: how many there are, time left, the rate of what counts, and the shares of verdicts."""

from collections import Counter

from tqdm import tqdm

from qrpo_jax.devices.processes import is_first
from qrpo_jax.job import pace, verdicts
from qrpo_jax.job.pace import Measure, UnitPace
from qrpo_jax.job.verdicts import Counts

FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} units [{elapsed}<{remaining}{postfix}]"


class UnitBar:
    """A progress bar of the first process; other processes have none. A context manager: leaving it closes the bar.

    Args:
      total: units of this process.
      there: units that were complete before, and `counts` theirs. They have no part in rates and time left.
      measure: what has a rate; None has none.
    """

    def __init__(self, title: str, total: int, counts: Counts, there: int, measure: Measure | None) -> None:
        self._counts, self._measure = Counter(counts), measure
        self._paces: list[UnitPace] = []
        self._bar = tqdm(
            total=total,
            initial=there,
            desc=title,
            bar_format=FORMAT,
            disable=not is_first(),
            mininterval=0.5,
            postfix=self._text(),
        )

    def add(self, counts: Counts, seconds: float, *, first: bool) -> None:
        """Shows a unit that this start has made.

        Args:
          seconds: of work on it.
          first: of this start.
        """
        self._counts.update(counts)
        if self._measure is not None:
            self._paces.append(UnitPace(self._measure.amount(counts), seconds, first))
        self._bar.set_postfix_str(self._text(), refresh=False)
        self._bar.update()

    def _text(self) -> str:
        rate = pace.per_second(pace.together(self._paces), self._measure) if self._measure is not None else ""
        return ", ".join(part for part in (rate, verdicts.shares(self._counts)) if part)

    def __enter__(self) -> "UnitBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
