"""Rows that a file lists: a source that reads them as they are asked for, and what a listing tells of all of them."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from qrpo_jax.data.rows import Row
from qrpo_jax.data.sources.listing import AGAIN, BITS, Dropped, Listing
from qrpo_jax.data.text import Text
from qrpo_jax.errors import UserError

LOOKED_AT = 2000  # rows that are tokenized before a run
PARTS = 8  # of a data set, from which these are taken
READ = 256  # rows in memory at a time
REMEMBERED = 4096  # ids of rows that were read last
DEFAULT_ID = re.compile(r"row-(\d+)")


class Records(Protocol):
    """Rows by the numbers of their records."""

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        """The rows of some records, which must be rows."""

    def place(self, number: int) -> str:
        """Where a record stands, for messages: "FILE, line N"."""


class ListedRows:
    """A source whose rows stay in their files.

    Args:
      listing: of all rows.
      left_out: number of rows of the file that no split has.
      layout: a line on how columns were read; empty if nothing was translated.
      mixed: lines on the sources that these rows were mixed from.
    """

    def __init__(
        self, records: Records, listing: Listing, left_out: int = 0, layout: str = "", mixed: "Sequence[Mixed]" = ()
    ) -> None:
        self._records, self.listing = records, listing
        self.left_out, self.layout, self.mixed = left_out, layout, mixed
        self.count = len(listing.numbers_R)
        self._recent: dict[str, int] = {}

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """Records that are no rows, by reason."""
        return self.listing.dropped

    @property
    def counts(self) -> dict[str, int]:
        """What was dropped and left out, and what each source of a mix has, by name, for a manifest."""
        counts = {"rows not used": self.left_out} if self.left_out else {}
        for dropped in self.dropped:
            counts[f"rows dropped: {dropped.reason}"] = dropped.number
        for mixed in self.mixed:
            counts |= mixed.counts()
        return counts

    def rows(self, indices: Sequence[int] | np.ndarray) -> list[Row]:
        some_P = np.asarray(indices, np.int64)
        numbers = self.listing.numbers_R[some_P].tolist()
        rows = self._records.rows(numbers)
        for i in np.flatnonzero(self.listing.flags_R[some_P] & BITS[AGAIN]).tolist():
            rows[i] = dataclasses.replace(rows[i], id=f"{rows[i].id} (row-{numbers[i] + 1})")
        for row, number in zip(rows[-REMEMBERED:], numbers[-REMEMBERED:], strict=True):
            self._recent.pop(row.id, None)
            self._recent[row.id] = number
        for row_id in list(self._recent)[:-REMEMBERED]:
            del self._recent[row_id]
        return rows

    def read(self, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, Row]]:
        """Indices and their rows, a few at a time in memory."""
        for first in range(0, len(indices), READ):
            part = indices[first : first + READ]
            yield from zip(map(int, part), self.rows(part), strict=True)

    def place(self, row: Row) -> str:
        """Where a row stands, for messages; of a row that was read long ago its id, if that does not say where."""
        number, default = self._recent.get(row.id), DEFAULT_ID.fullmatch(row.id)
        if number is None and default and int(default[1]) - 1 in self.listing.numbers_R:
            (there,) = self._records.rows([int(default[1]) - 1])
            number = int(default[1]) - 1 if there.id == row.id else None
        return f"row {row.id!r}" if number is None else self._records.place(number)

    def place_of(self, index: int) -> str:
        """Where the row at an index stands."""
        return self._records.place(int(self.listing.numbers_R[index]))

    def where(self, fact: str) -> "Found":
        """The rows with a fact of `listing.FACTS`."""
        return self.where_true(self.listing.has(fact))

    def where_true(self, flags_P: Sequence[bool] | np.ndarray, indices_P: np.ndarray | None = None) -> "Found":
        """The rows whose flag is set.

        Args:
          indices_P: of the rows that were looked at; all by default.
        """
        found = np.flatnonzero(flags_P)
        first = "" if not len(found) else self.place_of(int(found[0] if indices_P is None else indices_P[found[0]]))
        return Found(len(found), len(flags_P), first, self.count)

    def looked_at(self, most: int = LOOKED_AT) -> np.ndarray:
        """Indices of at most so many rows from all parts of the data set, int64 [P]; of a small one all."""
        if self.count <= most:
            return np.arange(self.count)
        size = most // PARTS
        starts = np.linspace(0, self.count - size, PARTS).astype(np.int64)
        return (starts[:, None] + np.arange(size)[None]).reshape(-1)


class Found(NamedTuple):
    """How many rows of those looked at have a property, and where the first of them stands; false if none has it.

    Attributes:
      rows: that were looked at.
      of: rows in all.
    """

    number: int
    rows: int
    first: str
    of: int

    def __bool__(self) -> bool:
        return self.number > 0

    def line(self, what: str) -> str:
        """A line for the terminal.

        >>> Found(3, 400, "a.jsonl, line 7", 400).line("prompts are empty")
        '3 of 400 prompts are empty (the first: a.jsonl, line 7)'
        >>> Found(3, 400, "a.jsonl, line 7", 9000).line("prompts are empty")
        '3 of a sample of 400 prompts are empty (the first: a.jsonl, line 7)'
        """
        sample = "a sample of " if self.rows < self.of else ""
        return f"{self.number} of {sample}{self.rows} {what} (the first: {self.first})"


class Measured(NamedTuple):
    """What a tokenizer makes of P prompts.

    Attributes:
      indices_P: int64, of their rows.
      lengths_P: int32, tokens.
      unknown_P: bool, a prompt has characters that the tokenizer does not know.
      special_P: bool, a prompt holds strings like special tokens.
    """

    indices_P: np.ndarray
    lengths_P: np.ndarray
    unknown_P: np.ndarray
    special_P: np.ndarray


class Mixed(NamedTuple):
    """What a mix has of one source.

    Attributes:
      name: begins the ids of its rows.
      rows: in the mix, repeated ones too.
      there: rows of the source.
    """

    name: str
    rows: int
    there: int

    def line(self) -> str:
        """A line for the terminal.

        >>> Mixed("code", 30, 20).line(), Mixed("chat", 70, 900).line()
        ('30 from code, of 20: 10 are repeated', '70 from chat, of 900: 830 are not used')
        """
        rest = self.there - self.rows
        more = f": {rest} are not used" if rest > 0 else f": {-rest} are repeated" if rest else ""
        return f"{self.rows} from {self.name}, of {self.there}{more}"

    def counts(self) -> dict[str, int]:
        rest = {"not used": max(self.there - self.rows, 0), "repeated": max(self.rows - self.there, 0)}
        return {f"rows from {self.name}": self.rows} | {f"rows from {self.name}: {k}": n for k, n in rest.items() if n}


def check_completions(source: ListedRows) -> None:
    """Refuses rows without a completion, where none will be sampled.

    Raises:
      UserError: about `completions`.
    """
    empty = source.where_true(source.listing.completions_R == 0)
    if empty:
        (row,) = source.rows(np.flatnonzero(source.listing.completions_R == 0)[:1])
        raise UserError(
            f"{empty.first}: row {row.id!r} has no completion ({empty.number} have none); "
            "add completions, or sample them",
            about="completions",
        )


def check_lengths(source: ListedRows, text: Text, max_tokens: int, purpose: str) -> Measured:
    """Measures prompts, those of all rows or of a sample; refuses them if all are too long.

    A few may be too long: the stages drop and count them.

    Args:
      purpose: what the prompts are for, in the message: "to train on" or "held out".

    Raises:
      UserError: about `max_tokens`; a prompt without tokens; or from `Text.prompt`.
    """
    indices_P, unknown = source.looked_at(), text.tokenizer.unk_token_id
    lengths_P = np.zeros(len(indices_P), np.int32)
    unknown_P, special_P = np.zeros((2, len(indices_P)), bool)
    for i, (_, row) in enumerate(source.read(indices_P)):
        tokens_L = text.prompt(row.messages, source.place(row))
        if not len(tokens_L):
            raise UserError(
                f"{source.place(row)}: the tokenizer gives no token for the prompt; remove the line", about="path"
            )
        lengths_P[i], unknown_P[i] = len(tokens_L), unknown is not None and unknown in tokens_L
        special_P[i] = any(text.special_strings(message.content, message.role) for message in row.messages)
    if len(indices_P) and int(np.min(lengths_P)) > max_tokens:
        sample = f" of a sample of {source.count}" if len(indices_P) < source.count else ""
        raise UserError(
            f"all {len(indices_P)} prompts {purpose}{sample} are longer than {max_tokens} tokens, the shortest has "
            f"{int(np.min(lengths_P))}",
            about="max_tokens",
        )
    return Measured(indices_P, lengths_P, unknown_P, special_P)
