"""The interface of rewards."""

from collections.abc import Sequence
from typing import Any, Self

from qrpo_jax.data.rows import Row
from qrpo_jax.rewards.scores import Scores


class Reward:
    """Scores completions. A context manager: inside it, what the reward needs is open.

    Attributes:
      collective: in a job whose processes compute units together, all must call `score` with the same rows.
      gives_verdicts: its verdicts say more than that a reward is a number.
    """

    collective = False
    gives_verdicts = False

    @property
    def protections(self) -> dict[str, bool]:
        """Which of the sandbox's limits this machine enforces; empty if no model-written code runs."""
        return {}

    @property
    def isolation(self) -> str:
        """The level at which model-written code is isolated; "" if none runs."""
        return ""

    def describe(self) -> list[str]:
        """What to say of the reward before it begins, in clauses."""
        return []

    def score(self, rows: Sequence[Row]) -> Scores:
        """Rewards of all completions of `rows`, including those that already have one.

        Raises:
          UserError: a row that the reward cannot read.
          FailuresError: too many completions have no reward.
        """
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        pass
