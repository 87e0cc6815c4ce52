"""What a reward says about the completions of rows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

OK = "ok"  # verdict on a completion whose reward is a number
TOO_LONG = "dropped: too long for the reward model"
FAILED = "failed: "  # how the verdict begins on a completion whose reward raised, hung or gave no number
NO_TIME, NO_NUMBER = f"{FAILED}time", f"{FAILED}not a number"

Components = tuple[tuple[str, float], ...]  # of a completion: the name and the number of each part of its reward


class Scores(NamedTuple):
    """Rewards of the completions of rows, with counts.

    Attributes:
      rewards: for each row those of its completions; None for a completion that has none and is left out.
      verdicts: of the same shape: "passed", "wrong", "error", ..., "ok" where a reward is a number, or why there is
        none.
      counts: further counts by name.
      messages: for each verdict that is a failure its most frequent messages, with the number of completions. Their
        text comes from completions, and is printable.
      components: of the same shape as rewards, for a sum of several; else empty.
    """

    rewards: Sequence[Sequence[float | None]]
    verdicts: Sequence[Sequence[str]]
    counts: Mapping[str, int] = MappingProxyType({})
    messages: Mapping[str, Mapping[str, int]] = MappingProxyType({})
    components: Sequence[Sequence[Components]] = ()

    @property
    def outcomes(self) -> dict[str, int]:
        """Number of completions by verdict."""
        return dict(Counter(verdict for row in self.verdicts for verdict in row))
