"""Rows that a file lists: a source of them, and checks of all of them before a run."""

import math
from collections.abc import Iterable, Sequence

from qrpo_jax.data.rows import Row
from qrpo_jax.data.text import Text
from qrpo_jax.errors import UserError


class ListedRows:
    """A source that has all its rows in memory."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self.count = len(rows)

    def rows(self, indices: Sequence[int]) -> list[Row]:
        return [self._rows[index] for index in indices]


def check_completions(rows: Sequence[Row]) -> None:
    """Refuses rows without a completion, where none will be sampled.

    Raises:
      UserError: about `completions`.
    """
    empty = [row.id for row in rows if not row.completions]
    if empty:
        raise UserError(
            f"row {empty[0]!r} has no completion ({len(empty)} have none); add completions, or sample them",
            about="completions",
        )


def check_lengths(rows: Sequence[Row], text: Text, max_tokens: int, purpose: str) -> None:
    """Refuses prompts that are all too long; a few may be, and are dropped and counted later.

    Args:
      purpose: what the prompts are for, in the message: "to train on" or "held out".

    Raises:
      UserError: about `max_tokens`, or from `Text.prompt`.
    """
    lengths = [len(text.prompt(row.messages, f"row {row.id!r}")) for row in rows]
    if lengths and min(lengths) > max_tokens:
        raise UserError(
            f"all {len(rows)} prompts {purpose} are longer than {max_tokens} tokens, the shortest has {min(lengths)}",
            about="max_tokens",
        )


def all_scored(rows: Iterable[Row]) -> bool:
    """Whether every completion has a reward."""
    return all(math.isfinite(completion.reward) for row in rows for completion in row.completions)
