"""A layout: which columns of a data set are what, by name; and where a record stands, for messages about it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from qrpo_jax.errors import UserError

PAIR_SIDES = ("chosen", "rejected")
PAIR_REWARDS = {side: f"{side}_reward" for side in PAIR_SIDES}
PAIR_LOG_PROBS = {side: f"{side}_reference_log_prob" for side in PAIR_SIDES}
# What a run knows of the completions of its rows, see `run_columns`.
RUN_KEYS = (
    "sources",
    "finished",
    "log_probs",
    "reference_log_probs",
    "token_ids",
    "preferences",
    "payload_json",
    "component_names",
    "components",
)
# What layout `rows` calls its columns. The other layouts are translated into these and `FURTHER`.
KEYS = (
    *("id", "prompt", "payload", "completions", "rewards", "reference_rewards"),
    *(*PAIR_SIDES, *PAIR_REWARDS.values(), *PAIR_LOG_PROBS.values(), *RUN_KEYS),
)
# system: a message before the prompt; conversation: messages that begin with the prompt and may end with an answer;
# completion and label: one answer, and whether it is a good one.
FURTHER = ("system", "conversation", "completion", "label")

Values = dict[str, Any]


class DroppedError(Exception):
    """A record that cannot be a row, as data sets have some; `reason` is counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Layout(NamedTuple):
    """One layout of the table `LAYOUTS`.

    Attributes:
      columns: for each of its keys the names of the column, of which the first is taken that is there. The keys are
        `KEYS` and `FURTHER`, and others for `derive`.
      needs: keys whose columns must be there; by these it is recognised.
      derive: from values by key to those of `KEYS` and `FURTHER`, where another name is not enough.
      written_by: `Completion.source` of what is in `completions`.
      strict: unknown columns and empty texts are mistakes of the user; elsewhere columns are ignored, and rows dropped.
    """

    columns: Mapping[str, tuple[str, ...]]
    needs: tuple[str, ...]
    derive: Callable[[Values, "At"], Values] | None = None
    written_by: str = "dataset"
    strict: bool = False

    def found(self, columns: Sequence[str]) -> dict[str, str]:
        """For each key the column that has it."""
        there = {key: [name for name in names if name in columns] for key, names in self.columns.items()}
        return {key: names[0] for key, names in there.items() if names}


@dataclass(frozen=True)
class At:
    """Where a record stands.

    Attributes:
      place: "FILE, line N".
      columns: for each key the column that has it.
      strict: see `Layout`.
    """

    place: str
    columns: Mapping[str, str]
    strict: bool = True

    def column(self, key: str) -> str:
        """The user's name of a key, in quotes."""
        return repr(self.columns.get(key, key))

    def fault(self, message: str) -> UserError:
        return UserError(f"{self.place}: {message}", about="path")

    def unusable(self, reason: str, message: str = "") -> Exception:
        """A row without what it needs: a mistake in a file that was written for this program, else dropped."""
        return self.fault(message or f"{reason}; correct the row or remove it") if self.strict else DroppedError(reason)
