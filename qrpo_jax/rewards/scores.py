"""What a reward says about the completions of rows."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple


class Scores(NamedTuple):
    """Rewards of the completions of rows, with counts.

    Attributes:
      rewards: for each row those of its completions; None for a completion that cannot be scored.
      outcomes: number of completions by verdict: "passed", "wrong", "error", ..., or "ok" where a reward is a number.
      counts: further counts by name.
      messages: for each verdict that is a failure its most frequent messages, with the number of completions. Their
        text comes from completions, and is printable.
    """

    rewards: Sequence[Sequence[float | None]]
    outcomes: dict[str, int]
    counts: Mapping[str, int] = MappingProxyType({})
    messages: Mapping[str, Mapping[str, int]] = MappingProxyType({})
