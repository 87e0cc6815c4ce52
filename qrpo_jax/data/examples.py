"""Examples: the completions that a view selects from rows, as flat arrays."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.data import ranking
from qrpo_jax.data.packing import Units
from qrpo_jax.data.per_completion import PerCompletion
from qrpo_jax.data.rows import Row, check_row, check_scored
from qrpo_jax.data.text import Text
from qrpo_jax.data.views import View, ordered_only, pick_units, unit_weights
from qrpo_jax.transforms import Transform

COUNTS = (
    "rows",
    "completions",
    "dropped: too long",
    "prompts cut",
    "rows without a pair",
    "pairs of equal reward",
    "dropped: pairs of equal reward",
    "cut by length limit",
    "dropped: no tokens",
    "special strings taken as text",
)


class Examples(NamedTuple):
    """C completions as flat arrays, and U units of one or two of them.

    Host memory is 4 bytes a token. Reference log-probs are NaN where rows lack them; quantiles and what comes with them
    are NaN where nothing is ranked.
    """

    tokens: np.ndarray  # int32, all completions one after the other, each with its prompt before it
    starts_C: np.ndarray  # int64, where a completion's prompt begins in `tokens`
    prompts_C: np.ndarray  # int32, completions of one number have the same prompt, cut to the same length
    prompt_lengths_C: np.ndarray  # int32
    completions_C: PerCompletion
    names: tuple[str, ...]  # "ROW ID/completion INDEX"
    units: tuple[tuple[int, ...], ...]
    counts: dict[str, int]  # of `COUNTS`: completions kept, cut and dropped, by reason

    def packing_units(self) -> Units:
        """The units as a packing plan takes them."""
        return Units(self.units, self.prompts_C, self.prompt_lengths_C - 1, self.completions_C.length)


def build_examples(
    rows: Iterable[Row],
    text: Text,
    view: View,
    transform: Transform | None,
    *,
    beta: Callable[[np.ndarray], Any] | None = None,
    need_references: bool = True,
) -> Examples:
    """Reads rows once and lays out the completions that the view selects.

    Args:
      transform: f of the ranking; None where nothing is ranked (SFT, reference log-probs), and rewards may be NaN.
      beta: β of completions of these lengths, [C] -> [C] or []; None leaves log Z unknown.
      need_references: refuse rows with too few references to rank against; otherwise their quantiles are NaN.

    Raises:
      UserError: an empty prompt, a row without a completion, a NaN reward, too few references, no scale, or a β for
        which Z is infinite.
    """
    table = _Table(text, view)
    for index, row in enumerate(rows):
        check_row(row)
        if transform is not None and (need_references or not ordered_only(row)):
            check_scored(row)
        table.add(index, row)
    completions_C = table.completions()
    if transform is not None:
        completions_C = _ranked(table, completions_C, transform, beta, need_references)
    sizes = [len(entry.tokens) for entry in table.entries]
    return Examples(
        tokens=np.concatenate([np.zeros(0, np.int32), *(entry.tokens for entry in table.entries)]),
        starts_C=np.cumsum([0, *sizes], dtype=np.int64)[:-1],
        prompts_C=table.prompts(),
        prompt_lengths_C=np.asarray([entry.prompt_length for entry in table.entries], np.int32),
        completions_C=completions_C,
        names=tuple(entry.name for entry in table.entries),
        units=tuple(table.units),
        counts=table.counts,
    )


class _Entry(NamedTuple):
    """One selected completion."""

    name: str
    row: int
    tokens: np.ndarray  # prompt and completion
    prompt_length: int
    reward: float
    reference_log_prob: float
    is_reference: bool  # its own reward is among those that its row's completions are ranked against


class _Table:
    """The entries and units that a view selects, collected row by row."""

    def __init__(self, text: Text, view: View) -> None:
        self.text, self.view = text, view
        self.entries: list[_Entry] = []
        self.references: list[np.ndarray] = []  # reference rewards of each row
        self.units: list[tuple[int, ...]] = []
        self.counts = dict.fromkeys(COUNTS, 0)

    def add(self, index: int, row: Row) -> None:
        """Adds the units of row number `index`."""
        self.counts["rows"] += 1
        self.references.append(ranking.reference_rewards(row, self.view.reference_count))
        prompt = self.text.prompt(row.messages, f"row {row.id!r}")
        self.counts["special strings taken as text"] += sum(
            self.text.special_strings(m.content, m.role) for m in row.messages
        )
        units = pick_units(row, self.view, index)
        self.counts["rows without a pair"] += not units
        for unit in units:
            if not self._dropped_as_tie(row, unit):
                self._add_unit(row, unit, prompt)

    def _dropped_as_tie(self, row: Row, unit: tuple[int, ...]) -> bool:
        if len(unit) == 1 or row.completions[unit[0]].reward != row.completions[unit[1]].reward:
            return False
        self.counts["pairs of equal reward"] += 1
        self.counts["dropped: pairs of equal reward"] += not self.view.tied_pairs
        return not self.view.tied_pairs

    def _add_unit(self, row: Row, unit: tuple[int, ...], prompt: np.ndarray) -> None:
        bodies = [self._body(row, i) for i in unit]
        if not all(map(len, bodies)):  # a chat template may strip all of a completion that did not end
            self.counts["dropped: no tokens"] += len(unit)
            return
        # A pair keeps one prompt: log Z would not cancel between prompts that were cut differently.
        excess = max(0, len(prompt) + max(len(body) for body in bodies) - self.view.max_tokens)
        if excess and (self.view.over_long == "drop" or excess >= len(prompt)):
            self.counts["dropped: too long"] += len(unit)
            return
        self.counts["prompts cut"] += len(unit) * (excess > 0)
        kept = self._cut(prompt, excess)
        among_references = ranking.are_references(row, self.view.reference_count)
        self.units.append(tuple(range(len(self.entries), len(self.entries) + len(unit))))
        for i, body in zip(unit, bodies, strict=True):
            completion, tokens = row.completions[i], np.concatenate([kept, body])
            numbers = completion.reward, completion.reference_log_prob, bool(among_references[i])
            self.entries.append(_Entry(f"{row.id}/{i}", len(self.references) - 1, tokens, len(kept), *numbers))
            self.counts["completions"] += 1
            self.counts["cut by length limit"] += not completion.finished

    def _cut(self, prompt: np.ndarray, excess: int) -> np.ndarray:
        """The prompt without its oldest tokens; a BOS token at its beginning stays."""
        first = int(excess > 0 and prompt[0] == self.text.tokenizer.bos_token_id)
        return np.concatenate([prompt[:first], prompt[first + excess :]])

    def _body(self, row: Row, index: int) -> np.ndarray:
        completion = row.completions[index]
        if len(completion.tokens):
            return completion.tokens
        self.counts["special strings taken as text"] += self.text.special_strings(completion.text, "assistant")
        return self.text.completion(completion.text, completion.finished)

    def prompts(self) -> np.ndarray:
        """A number for each prompt of a row and each length to which it was cut, int32 [C], in order of occurrence."""
        numbers: dict[tuple[int, int], int] = {}
        keys = ((entry.row, entry.prompt_length) for entry in self.entries)
        return np.asarray([numbers.setdefault(key, len(numbers)) for key in keys], np.int32)

    def completions(self) -> PerCompletion:
        """Numbers of the entries, [C]; what only a ranking knows is NaN."""
        unknown_C = np.full(len(self.entries), np.nan, np.float32)
        lengths = [len(entry.tokens) - entry.prompt_length for entry in self.entries]
        return PerCompletion(
            reward=np.asarray([entry.reward for entry in self.entries], np.float32),
            quantile=unknown_C,
            ties=unknown_C,
            references=np.zeros(len(self.entries), np.int32),
            log_z=unknown_C,
            reward_scale=unknown_C,
            reference_log_prob=np.asarray([entry.reference_log_prob for entry in self.entries], np.float32),
            length=np.asarray(lengths, np.int32),
            weight=unit_weights(self.units, self.view),
            high=np.zeros(len(self.entries), bool),
        )


def _ranked(
    table: _Table,
    completions_C: PerCompletion,
    transform: Transform,
    beta: Callable[[np.ndarray], Any] | None,
    need_references: bool,
) -> PerCompletion:
    """The table's completions with everything that a ranking knows."""
    ranked_C = ranking.rank(
        completions_C,
        ranking.pad(table.references),
        np.asarray([entry.row for entry in table.entries], np.int64),
        np.asarray([entry.is_reference for entry in table.entries], bool),
        view=table.view,
        transform=transform,
        beta=beta,
        need_references=need_references,
    )
    return ranked_C._replace(high=_high(table.units, ranked_C.quantile))


def _high(units: Sequence[tuple[int, ...]], quantile_C: np.ndarray) -> np.ndarray:
    """Which completions are on the high-reward side: the chosen of a pair, else a quantile above one half."""
    high_C = quantile_C > 0.5
    for unit in units:
        if len(unit) == 2:
            high_C[list(unit)] = True, False
    return high_C
