"""The corpus: rows as columns of numbers, and their tokens behind a reader, so that no host holds them in memory."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from qrpo_jax.data import ragged
from qrpo_jax.data.ragged import Ragged
from qrpo_jax.data.rows import COMPLETION_SOURCES, Row, check_row
from qrpo_jax.data.text import Text
from qrpo_jax.errors import UserError

LARGEST_VOCABULARY = 2**31 - 1


class Tokens(Protocol):
    """A sequence of tokens that can be read in pieces."""

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens from `start` on, int32 [count]."""


class HeldTokens:
    """Tokens in memory."""

    def __init__(self, tokens: np.ndarray) -> None:
        self._tokens = tokens

    def read(self, start: int, count: int) -> np.ndarray:
        return self._tokens[start : start + count]


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """R rows with K completions in all.

    Attributes:
      tokens: of each row those of its prompt, and then those of its completions.
      prompt_lengths_R: int32.
      lengths_K: int32, tokens of each completion.
      rewards: Ragged float32, of the completions of each row; NaN where not scored.
      reference_log_probs_K: float32, in nats; NaN where not computed.
      sources_K: int8, of `COMPLETION_SOURCES`.
      finished_K: bool, the completion ended by itself.
      prompt_specials_R, specials_K: int32, strings like special tokens that were taken as text.
      reference_rewards: Ragged float32, of further references of each row.
      preferences: Ragged int32 [P, 2], pairs of completions of each row, the better one first.
      ids: Ragged uint8, of each row, in UTF-8.
      bos_token: the token that stays at the beginning of a prompt that is cut; None if there is none.
    """

    tokens: Tokens
    prompt_lengths_R: np.ndarray
    lengths_K: np.ndarray
    rewards: Ragged
    reference_log_probs_K: np.ndarray
    sources_K: np.ndarray
    finished_K: np.ndarray
    prompt_specials_R: np.ndarray
    specials_K: np.ndarray
    reference_rewards: Ragged
    preferences: Ragged
    ids: Ragged
    bos_token: int | None = None

    def __len__(self) -> int:
        return len(self.prompt_lengths_R)

    @property
    def first_R1(self) -> np.ndarray:
        """Row r has the completions first_R1[r] to first_R1[r + 1] - 1, int64 [R + 1]."""
        return self.rewards.first_R1

    @property
    def row_K(self) -> np.ndarray:
        """The row of each completion, int32 [K]; computed each time, since a loader asks for single ones."""
        return self.rewards.row_V

    @functools.cached_property
    def prompt_starts_R(self) -> np.ndarray:
        """Where the tokens of each prompt begin, int64 [R]."""
        completions_K1 = ragged.starts(self.lengths_K)
        return ragged.starts(self.prompt_lengths_R)[:-1] + completions_K1[self.first_R1[:-1]]

    @property
    def token_count(self) -> int:
        """Tokens of all prompts and completions."""
        return int(self.prompt_lengths_R.sum(dtype=np.int64) + self.lengths_K.sum(dtype=np.int64))

    def id(self, row: int) -> str:
        """The id of a row."""
        return self.ids[row].tobytes().decode()

    def row_of(self, completion: int) -> int:
        """The row of a completion."""
        return int(np.searchsorted(self.first_R1, completion, side="right")) - 1

    def prompt(self, row: int) -> np.ndarray:
        """Tokens of the prompt of a row, int32."""
        return self.tokens.read(int(self.prompt_starts_R[row]), int(self.prompt_lengths_R[row]))

    def completion(self, completion: int) -> np.ndarray:
        """Tokens of a completion, int32."""
        row = self.row_of(completion)
        before = self.prompt_lengths_R[row] + self.lengths_K[self.first_R1[row] : completion].sum()
        return self.tokens.read(int(self.prompt_starts_R[row] + before), int(self.lengths_K[completion]))

    def name(self, completion: int) -> str:
        """ "ROW ID/completion INDEX"."""
        row = self.row_of(completion)
        return f"{self.id(row)}/{completion - int(self.first_R1[row])}"


def tokenize(rows: Iterable[Row], text: Text, first: int = 0, vocab_size: int = LARGEST_VOCABULARY) -> Corpus:
    """The corpus of rows, with its tokens in memory.

    Args:
      first: only the first so many completions of each row; 0 for all.
      vocab_size: of the model, to which tokens that rows bring must belong.

    Raises:
      UserError: an empty prompt, a row without a completion, a token that the model has not, or from `Text.prompt`.
    """
    table = _Columns(text, first, vocab_size)
    for row in rows:
        table.add(row)
    return table.corpus()


def held(
    tokens: np.ndarray,
    prompt_lengths_R: np.ndarray,
    lengths_K: np.ndarray,
    counts_R: np.ndarray,
    rewards: np.ndarray,
    reference_log_probs: np.ndarray,
) -> Corpus:
    """A corpus of given numbers, all completions of which the reference policy wrote and ended; rows are numbered.

    Args:
      counts_R: completions of each row.
      rewards, reference_log_probs: [K].
    """
    rows, count = len(counts_R), len(lengths_K)
    empty_R1 = np.zeros(rows + 1, np.int64)
    return Corpus(
        HeldTokens(tokens),
        prompt_lengths_R=np.asarray(prompt_lengths_R, np.int32),
        lengths_K=np.asarray(lengths_K, np.int32),
        rewards=Ragged(np.asarray(rewards, np.float32), ragged.starts(counts_R)),
        reference_log_probs_K=np.asarray(reference_log_probs, np.float32),
        sources_K=np.full(count, COMPLETION_SOURCES.index("reference"), np.int8),
        finished_K=np.ones(count, bool),
        prompt_specials_R=np.zeros(rows, np.int32),
        specials_K=np.zeros(count, np.int32),
        reference_rewards=Ragged(np.zeros(0, np.float32), empty_R1),
        preferences=Ragged(np.zeros((0, 2), np.int32), empty_R1),
        ids=ragged.ragged([np.frombuffer(f"row-{row}".encode(), np.uint8) for row in range(rows)], np.uint8),
    )


class _Columns:
    """The columns of a corpus, row by row."""

    def __init__(self, text: Text, first: int, vocab_size: int) -> None:
        self._text, self._first, self._vocab_size = text, first, vocab_size
        self._tokens: list[np.ndarray] = []
        self._prompts: list[tuple[int, int]] = []  # length, special strings
        self._numbers: list[tuple[int, float, int, bool, int]] = []
        self._rewards: list[list[float]] = []
        self._references: list[np.ndarray] = []
        self._preferences: list[np.ndarray] = []
        self._ids: list[bytes] = []

    def add(self, row: Row) -> None:
        check_row(row)
        prompt = self._text.prompt(row.messages, f"row {row.id!r}")
        self._tokens.append(prompt)
        self._prompts.append((len(prompt), sum(self._text.special_strings(m.content, m.role) for m in row.messages)))
        completions = row.completions[: self._first or None]
        for i, completion in enumerate(completions):
            tokens, specials = completion.tokens, 0
            if len(tokens):
                self._check(row, i, tokens)
            else:
                specials = self._text.special_strings(completion.text, "assistant")
                tokens = self._text.completion(completion.text, completion.finished)
            self._tokens.append(tokens)
            source = COMPLETION_SOURCES.index(completion.source)
            reference = completion.reference_log_prob
            self._numbers.append((len(tokens), reference, source, completion.finished, specials))
        self._rewards.append([completion.reward for completion in completions])
        self._references.append(row.reference_rewards)
        pairs = np.asarray(row.preferences, np.int32).reshape(-1, 2)
        self._preferences.append(pairs[(pairs < len(completions)).all(1)])
        self._ids.append(row.id.encode())

    def _check(self, row: Row, index: int, tokens: np.ndarray) -> None:
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self._vocab_size:
            token = low if low < 0 else high
            raise UserError(
                f"row {row.id!r}, completion {index}: token {token} is not in the model's vocabulary of "
                f"{self._vocab_size}: these are tokens of another tokenizer; leave them out, and the text counts",
                about="row",
            )

    def corpus(self) -> Corpus:
        tokens = np.concatenate([np.zeros(0, np.int32), *self._tokens], dtype=np.int32)
        columns = list(zip(*self._numbers, strict=True)) or [()] * 5
        lengths, references, sources, finished, specials = columns
        prompt_lengths, prompt_specials = list(zip(*self._prompts, strict=True)) or [(), ()]
        preferences = [np.zeros((0, 2), np.int32), *self._preferences]
        return Corpus(
            HeldTokens(tokens),
            prompt_lengths_R=np.asarray(prompt_lengths, np.int32),
            lengths_K=np.asarray(lengths, np.int32),
            rewards=ragged.ragged(self._rewards, np.float32),
            reference_log_probs_K=np.asarray(references, np.float32),
            sources_K=np.asarray(sources, np.int8),
            finished_K=np.asarray(finished, bool),
            prompt_specials_R=np.asarray(prompt_specials, np.int32),
            specials_K=np.asarray(specials, np.int32),
            reference_rewards=ragged.ragged(self._references, np.float32),
            preferences=Ragged(np.concatenate(preferences), ragged.starts(list(map(len, self._preferences)))),
            ids=ragged.ragged([np.frombuffer(text, np.uint8) for text in self._ids], np.uint8),
            bos_token=self._text.tokenizer.bos_token_id,
        )


COLUMNS = tuple(field.name for field in dataclasses.fields(Corpus) if field.name not in ("tokens", "bos_token"))


def columns_of(corpus: Corpus) -> dict[str, np.ndarray]:
    """All arrays of a corpus but its tokens, by name; those of a Ragged as NAME and NAME/first."""
    arrays: dict[str, np.ndarray] = {}
    for name in COLUMNS:
        column = getattr(corpus, name)
        if isinstance(column, Ragged):
            arrays |= {name: column.values, f"{name}/first": column.first_R1}
        else:
            arrays[name] = column
    return arrays


def join(parts: Sequence[dict[str, np.ndarray]], tokens: Tokens, bos_token: int | None) -> Corpus:
    """The corpus of parts that `columns_of` gave, one after the other.

    Args:
      tokens: of all parts.
    """
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        first = f"{name}/first"
        if first in parts[0]:
            columns[name] = ragged.concatenate([Ragged(part[name], part[first]) for part in parts])
        else:
            columns[name] = np.concatenate([part[name] for part in parts])
    return Corpus(tokens, **columns, bos_token=bos_token)
