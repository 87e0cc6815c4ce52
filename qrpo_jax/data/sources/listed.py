"""Rows that a file lists: a source of them, and checks and counts of all of them before a run."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from qrpo_jax.data.rows import Row
from qrpo_jax.data.text import Text
from qrpo_jax.errors import UserError

ROLES = ("system", "developer", "user", "assistant", "tool")


class ListedRows:
    """A source that has all its rows in memory.

    Args:
      places: "FILE, line N" of each row, by its id.
      reversed_pairs: ids of rows whose chosen completion has the lower reward.
      left_out: number of rows of the file that no split has.
      dropped: records that are no rows.
      layout: a line on how columns were read; empty if nothing was translated.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        places: Mapping[str, str] = MappingProxyType({}),
        reversed_pairs: frozenset[str] = frozenset(),
        left_out: int = 0,
        dropped: "Sequence[Dropped]" = (),
        layout: str = "",
    ) -> None:
        self._rows, self._places = rows, places
        self.reversed_pairs, self.left_out = reversed_pairs, left_out
        self.dropped, self.layout = dropped, layout
        self.count = len(rows)

    def rows(self, indices: Sequence[int]) -> list[Row]:
        return [self._rows[index] for index in indices]

    def place(self, row: Row) -> str:
        """Where the row stands, for messages."""
        return self._places.get(row.id, f"row {row.id!r}")

    def where(self, has: Callable[[Row], object]) -> "Found":
        """The rows with a property."""
        return self.where_true([bool(has(row)) for row in self._rows])

    def where_true(self, flags_P: Sequence[bool] | np.ndarray) -> "Found":
        """The rows whose flag is set."""
        found = np.flatnonzero(flags_P)
        return Found(len(found), self.count, self.place(self._rows[found[0]]) if len(found) else "")


class Found(NamedTuple):
    """How many rows of all have a property, and where the first of them stands; false if none has it."""

    number: int
    rows: int
    first: str

    def __bool__(self) -> bool:
        return self.number > 0

    def line(self, what: str) -> str:
        """A line for the terminal.

        >>> Found(3, 400, "a.jsonl, line 7").line("prompts are empty")
        '3 of 400 prompts are empty (the first: a.jsonl, line 7)'
        """
        return f"{self.number} of {self.rows} {what} (the first: {self.first})"


class Dropped(NamedTuple):
    """Records of a table that cannot be rows, for one reason: how many of all, and where the first stands."""

    reason: str
    number: int
    records: int
    first: str

    def line(self) -> str:
        """A line for the terminal.

        >>> Dropped("the prompt is empty", 3, 400, "a.parquet, row 7").line()
        '3 of 400 rows are dropped: the prompt is empty (the first: a.parquet, row 7)'
        """
        return f"{self.number} of {self.records} rows are dropped: {self.reason} (the first: {self.first})"


class Measured(NamedTuple):
    """What a tokenizer makes of P prompts.

    Attributes:
      lengths_P: int32, tokens.
      unknown_P: bool, a prompt has characters that the tokenizer does not know.
    """

    lengths_P: np.ndarray
    unknown_P: np.ndarray


def check_completions(source: ListedRows) -> None:
    """Refuses rows without a completion, where none will be sampled.

    Raises:
      UserError: about `completions`.
    """
    empty = [row for row in source.rows(range(source.count)) if not row.completions]
    if empty:
        raise UserError(
            f"{source.place(empty[0])}: row {empty[0].id!r} has no completion ({len(empty)} have none); "
            "add completions, or sample them",
            about="completions",
        )


def check_lengths(source: ListedRows, text: Text, max_tokens: int, purpose: str) -> Measured:
    """Measures all prompts, and refuses prompts that are all too long; a few may be, and are dropped later.

    Args:
      purpose: what the prompts are for, in the message: "to train on" or "held out".

    Raises:
      UserError: about `max_tokens`; a prompt without tokens; or from `Text.prompt`.
    """
    rows, unknown = source.rows(range(source.count)), text.tokenizer.unk_token_id
    lengths_P, unknown_P = np.zeros(len(rows), np.int32), np.zeros(len(rows), bool)
    for i, row in enumerate(rows):
        tokens_L = text.prompt(row.messages, source.place(row))
        if not len(tokens_L):
            raise UserError(
                f"{source.place(row)}: the tokenizer gives no token for the prompt; remove the line", about="path"
            )
        lengths_P[i], unknown_P[i] = len(tokens_L), unknown is not None and unknown in tokens_L
    if len(rows) and int(np.min(lengths_P)) > max_tokens:
        raise UserError(
            f"all {len(rows)} prompts {purpose} are longer than {max_tokens} tokens, the shortest has "
            f"{int(np.min(lengths_P))}",
            about="max_tokens",
        )
    return Measured(lengths_P, unknown_P)


def all_scored(rows: Iterable[Row]) -> bool:
    """Whether every completion has a reward."""
    return all(math.isfinite(completion.reward) for row in rows for completion in row.completions)


def same_in_float32(row: Row) -> bool:
    """Whether completions have different rewards that are equal in float32, as rows keep them."""
    rewards = [completion.reward for completion in row.completions if math.isfinite(completion.reward)]
    return len({np.float32(reward) for reward in rewards}) < len(set(rewards))


def same_texts(row: Row) -> bool:
    """Whether two completions have the same text."""
    return len({completion.text for completion in row.completions}) < len(row.completions)


def odd_role(row: Row) -> bool:
    """Whether a message has a role that few chat templates know, such as a misspelled one."""
    return any(message.role not in ROLES for message in row.messages)


def repeats(rows: Iterable[Row]) -> frozenset[str]:
    """Ids of the rows whose prompt is that of an earlier row."""
    first: dict[object, str] = {}
    return frozenset(row.id for row in rows if first.setdefault(row.messages, row.id) != row.id)
