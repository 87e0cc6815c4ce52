"""A listing: what one pass over the records of a data set notes of each row. The rows themselves stay where they are.

A row takes about 50 bytes here, whatever its size; two million take 0.1 GB.
"""

import hashlib
import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.data.ranking import own_references
from qrpo_jax.data.rows import Row
from qrpo_jax.data.views import ordered_only

ROLES = ("system", "developer", "user", "assistant", "tool")


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


class Listing(NamedTuple):
    """R rows of a data set.

    Attributes:
      numbers_R: int64, of each row's record.
      completions_R: int32, how many it brings.
      sampled_R: int32, how many of these the reference policy wrote.
      references_R: int32, rewards of further reference completions.
      ids_R, prompts_R: uint64, hashes of ids and of prompts; different ones differ but for odds of R in 2^64.
      flags_R: uint16, of the facts in `FACTS`, of `REVERSED` and of `AGAIN`.
      dropped: records that are no rows, by reason.
    """

    numbers_R: np.ndarray
    completions_R: np.ndarray
    sampled_R: np.ndarray
    references_R: np.ndarray
    ids_R: np.ndarray
    prompts_R: np.ndarray
    flags_R: np.ndarray
    dropped: tuple[Dropped, ...] = ()

    def has(self, fact: str) -> np.ndarray:
        """Whether each row has a fact of `FACTS`, or is `REVERSED` or `AGAIN`, bool [R]."""
        return (self.flags_R & BITS[fact]) != 0

    def take(self, indices_R: np.ndarray) -> "Listing":
        """Some of the rows, in any order; what was dropped stays."""
        return self._replace(**{name: column_R[indices_R] for name, column_R in self.columns().items()})

    def columns(self) -> dict[str, np.ndarray]:
        """All columns by name."""
        return {name: getattr(self, name) for name in self._fields if name.endswith("_R")}

    def repeats(self) -> np.ndarray:
        """Whether each row's prompt is that of an earlier one, bool [R]."""
        return _again(self.prompts_R)

    def same_ids(self) -> list[tuple[int, int]]:
        """Pairs of rows with the same id, the earlier one first; by hashes, so look at them."""
        later = np.flatnonzero(_again(self.ids_R))
        order = np.argsort(self.ids_R, kind="stable")
        first = order[np.searchsorted(self.ids_R, self.ids_R[later], sorter=order)]
        return list(zip(first.tolist(), later.tolist(), strict=True))


class Lister:
    """Makes a listing, row after row."""

    def __init__(self) -> None:
        self._numbers, self._flags, self._hashes = array("q"), array("H"), bytearray()
        self._counts = array("i")
        self._reasons: dict[str, list[Any]] = {}

    def add(self, number: int, row: Row, reversed_pair: bool = False) -> None:
        """Notes a row and the number of its record."""
        self._numbers.append(number)
        sampled = sum(completion.source == "reference" for completion in row.completions)
        self._counts.extend((len(row.completions), sampled, len(row.reference_rewards)))
        self._hashes += digest(row.id)
        self._hashes += digest(*(text for message in row.messages for text in (message.role, message.content)))
        flags = BITS[REVERSED] if reversed_pair else 0
        for fact, holds in FACTS.items():
            if holds(row):
                flags |= BITS[fact]
        self._flags.append(flags)

    def drop(self, reason: str, place: str) -> None:
        """Notes a record that is no row."""
        self._reasons.setdefault(reason, [0, place])[0] += 1

    def listing(self, records: int) -> Listing:
        """The listing of so many records."""
        completions_R, sampled_R, references_R = np.frombuffer(self._counts, np.int32).reshape(-1, 3).T.copy()
        ids_R, prompts_R = np.frombuffer(self._hashes, np.uint64).reshape(-1, 2).T.copy()
        return Listing(
            numbers_R=np.frombuffer(self._numbers, np.int64),
            completions_R=completions_R,
            sampled_R=sampled_R,
            references_R=references_R,
            ids_R=ids_R,
            prompts_R=prompts_R,
            flags_R=np.frombuffer(self._flags, np.uint16),
            dropped=tuple(Dropped(reason, number, records, place) for reason, (number, place) in self._reasons.items()),
        )


def list_rows(rows: Iterable[Row]) -> Listing:
    """The listing of rows that are numbered from 0."""
    lister, number = Lister(), -1
    for number, row in enumerate(rows):
        lister.add(number, row)
    return lister.listing(number + 1)


def join(listings: Sequence[Listing]) -> Listing:
    """Listings one after the other."""
    names = listings[0].columns()
    columns = {name: np.concatenate([getattr(listing, name) for listing in listings]) for name in names}
    return Listing(**columns, dropped=tuple(one for listing in listings for one in listing.dropped))


def digest(*texts: str) -> bytes:
    """Eight bytes that tell lists of texts apart, but for texts that hold a zero."""
    return hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def all_scored(row: Row) -> bool:
    """Whether every completion has a reward."""
    return all(math.isfinite(completion.reward) for completion in row.completions)


def same_in_float32(row: Row) -> bool:
    """Whether completions have different rewards that are equal in float32, as rows keep them."""
    rewards = {completion.reward for completion in row.completions if math.isfinite(completion.reward)}
    return len(rewards) > 1 and len(set(np.asarray([*rewards], np.float32).tolist())) < len(rewards)


def same_texts(row: Row) -> bool:
    """Whether two completions have the same text, and the same tokens if they have any."""
    contents = {(completion.text, completion.tokens.tobytes()) for completion in row.completions}
    return len(contents) < len(row.completions)


def odd_role(row: Row) -> bool:
    """Whether a message has a role that few chat templates know, such as a misspelled one."""
    return any(message.role not in ROLES for message in row.messages)


AGAIN = "same id"  # as an earlier row; only a listing of all rows can tell
REVERSED = "reversed pair"  # the chosen completion has the lower reward; only its record says which that was
FACTS: Mapping[str, Callable[[Row], bool]] = {
    "unscored": lambda row: not all_scored(row),
    "ordered only": ordered_only,
    "own references": own_references,
    "several messages": lambda row: len(row.messages) > 1,
    "odd role": odd_role,
    "rewards alike": same_in_float32,
    "texts alike": same_texts,
    "log-probs": lambda row: any(math.isfinite(completion.reference_log_prob) for completion in row.completions),
}
BITS = {fact: 1 << bit for bit, fact in enumerate((*FACTS, REVERSED, AGAIN))}


def _again(values_R: np.ndarray) -> np.ndarray:
    """Whether each value is that of an earlier place."""
    again_R = np.ones(len(values_R), bool)
    again_R[np.unique(values_R, return_index=True)[1]] = False
    return again_R
