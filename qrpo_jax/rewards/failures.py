"""Completions without a reward because it raised, hung or gave no number, and the share of them that a run bears."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from qrpo_jax.errors import FailuresError, UserError
from qrpo_jax.rewards.code_reward import MOST_MESSAGES, first_line
from qrpo_jax.rewards.scores import FAILED


class Failure(NamedTuple):
    """Why a completion has no reward.

    Attributes:
      verdict: begins with `FAILED`.
      message: what happened, the same for completions that fail alike.
      line: the whole line for the user, with row and completion.
    """

    verdict: str
    message: str
    line: str


class Failures:
    """Counts failures, and stops the run at the first one after which the share is certain to be exceeded.

    A unit of work in which that happens is not written, so its completions are scored again once the cause is gone.

    Args:
      share: of the completions so far, at most; 0: the first failure stops the run as a mistake of the user.
    """

    def __init__(self, share: float = 0.0) -> None:
        self._share, self._completions, self._first = share, 0, ""
        self._failed: Counter[str] = Counter()

    def add(self, verdicts: Mapping[str, int]) -> None:
        """Adds completions that were scored earlier, by verdict."""
        self._completions += sum(verdicts.values())
        self._failed.update({verdict: n for verdict, n in verdicts.items() if verdict.startswith(FAILED)})

    def begin(self, completions: int) -> None:
        """So many completions are scored next. Those that have failed later are not counted twice."""
        self._completions += completions

    def mark(self, failure: Failure, about: str = "name") -> Failure:
        """Counts a failure.

        Args:
          about: the argument that an error is about.

        Raises:
          UserError: it is the first one, and none is borne.
          FailuresError: there are too many.
        """
        if self._share == 0:
            raise UserError(failure.line, about=about)
        self._first = self._first or failure.line
        self._failed[failure.verdict] += 1
        failed = sum(self._failed.values())
        if failed > self._share * max(self._completions, 1):
            reasons = ", ".join(f"{verdict} {number:,}" for verdict, number in sorted(self._failed.items()))
            raise FailuresError(
                f"{failed:,} of {self._completions:,} completions so far have no reward, a larger share than "
                f"config.reward.failures={self._share:g}: {reasons}; for example: {self._first}; correct the cause, or "
                "raise the share, and the same command goes on"
            )
        return failure


def messages_of(failures: list[Failure]) -> dict[str, dict[str, int]]:
    """The most frequent messages of each verdict, as `Scores` has them."""
    lines: dict[str, Counter[str]] = {}
    for failure in failures:
        lines.setdefault(failure.verdict, Counter())[first_line(failure.message)] += 1
    return {verdict: dict(counter.most_common(MOST_MESSAGES)) for verdict, counter in lines.items()}
