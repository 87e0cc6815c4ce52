"""Examples: the completions that a view selects from a corpus, as flat arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.data import ragged, ranking
from qrpo_jax.data.corpus import Corpus
from qrpo_jax.data.packing_units import Units
from qrpo_jax.data.per_completion import PerCompletion
from qrpo_jax.data.rows import unscored
from qrpo_jax.data.views import View, ordered_rows, pick, unit_weights
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

    Reference log-probs are NaN where rows lack them; quantiles and what comes with them are NaN where nothing is
    ranked. Host memory is 50 bytes a completion, about 90 with the columns of the corpus, and none for tokens.
    """

    corpus: Corpus
    entries_C: np.ndarray  # int32, index of each completion in the corpus
    prompts_C: np.ndarray  # int32, completions of one number have the same prompt, cut to the same length
    cuts_C: np.ndarray  # int32, tokens that the prompt lost
    completions_C: PerCompletion
    sizes_U: np.ndarray  # int8, completions of each unit; units hold completions one after the other
    counts: dict[str, int]  # of `COUNTS`: completions kept, cut and dropped, by reason

    @property
    def prompt_lengths_C(self) -> np.ndarray:
        """Tokens of each completion's prompt, int32 [C]."""
        return self.corpus.prompt_lengths_R[self.corpus.row_K[self.entries_C]] - self.cuts_C

    def name(self, c: int) -> str:
        """ "ROW ID/completion INDEX" of a completion."""
        return self.corpus.name(int(self.entries_C[c]))

    def prompt(self, c: int) -> np.ndarray:
        """Tokens of a completion's prompt, without the oldest if it was cut; a BOS token at its beginning stays."""
        corpus, cut = self.corpus, int(self.cuts_C[c])
        tokens = corpus.prompt(corpus.row_of(int(self.entries_C[c])))
        if not cut:
            return tokens
        first = int(tokens[0] == corpus.bos_token)
        return np.concatenate([tokens[:first], tokens[first + cut :]])

    def completion(self, c: int) -> np.ndarray:
        """Tokens of a completion."""
        return self.corpus.completion(int(self.entries_C[c]))

    def packing_units(self) -> Units:
        """The units as a packing plan takes them."""
        return Units(self.sizes_U, self.prompts_C, self.prompt_lengths_C - 1, self.completions_C.length)


def select(
    corpus: Corpus,
    view: View,
    transform: Transform | None,
    *,
    beta: Callable[[np.ndarray], Any] | None = None,
    need_references: bool = True,
) -> Examples:
    """Lays out the completions that the view selects.

    Args:
      transform: f of the ranking; None where nothing is ranked (SFT, reference log-probs), and rewards may be NaN.
      beta: β of completions of these lengths, [C] -> [C] or []; None leaves log Z unknown.
      need_references: refuse rows with too few references to rank against; otherwise their quantiles are NaN.

    Raises:
      UserError: a NaN reward, too few references, no scale, or a β for which Z is infinite.
    """
    if transform is not None:
        check_scored(corpus, need_references=need_references)
    counts = dict.fromkeys(COUNTS, 0) | {"rows": len(corpus)}
    units = _Kept(corpus, view, counts)
    examples = Examples(
        corpus,
        units.entries_C,
        prompt_numbers(corpus.row_K[units.entries_C], units.cuts_C),
        compact(units.cuts_C),
        _numbers(corpus, units.entries_C, compact(unit_weights(units.sizes_U, view))),
        units.sizes_U,
        counts,
    )
    if transform is None or not len(examples.entries_C):  # nothing to rank, or nothing left to be ranked
        return examples
    references = ranking.find_references(
        corpus.rewards, corpus.sources_K, corpus.reference_rewards, view.reference_count
    )
    ranked_C = ranking.rank(
        examples.completions_C,
        references,
        corpus.row_K[examples.entries_C],
        references.own_K[examples.entries_C],
        view=view,
        transform=transform,
        beta=beta,
        need_references=need_references,
    )
    columns = {name: compact(getattr(ranked_C, name)) for name in ("ties", "references", "log_z", "reward_scale")}
    return examples._replace(completions_C=ranked_C._replace(**columns, high=_high(units.sizes_U, ranked_C.quantile)))


def compact(values_C: np.ndarray) -> np.ndarray:
    """The same values; where all are equal, an array that takes no memory for each."""
    if not len(values_C) or (values_C != values_C[0]).any():
        return values_C
    return np.broadcast_to(values_C[0].copy(), len(values_C))


def taken(values_K: np.ndarray, entries_C: np.ndarray) -> np.ndarray:
    """Values of the selected completions; of all of them in order the same array."""
    everything = len(entries_C) == len(values_K) and (np.diff(entries_C) == 1).all()
    return values_K if everything else values_K[entries_C]


def check_scored(corpus: Corpus, *, need_references: bool) -> None:
    """Refuses rewards that are not finite numbers; without need of references, rows with an order may lack them.

    Raises:
      UserError: about `row`, naming the first.
    """
    free_R = np.zeros(len(corpus), bool) if need_references else ordered_rows(corpus.rewards, corpus.preferences)
    found = []
    for what, values in (("completion", corpus.rewards), ("reference reward", corpus.reference_rewards)):
        bad_V = np.flatnonzero(~np.isfinite(values.values) & ~free_R[values.row_V])
        if len(bad_V):
            row = int(values.row_V[bad_V[0]])
            found.append((row, what, int(bad_V[0] - values.first_R1[row]), float(values.values[bad_V[0]])))
    if found:
        row, what, index, reward = min(found)
        raise unscored(corpus.id(row), what, index, reward)


class _Kept:
    """The units of a view that are trained on; counts those that are not.

    Attributes:
      entries_C: int32, their completions, unit after unit.
      sizes_U: int8.
      cuts_C: int32, tokens that each completion's prompt loses.
    """

    def __init__(self, corpus: Corpus, view: View, counts: dict[str, int]) -> None:
        rewards = corpus.rewards
        picked = pick(rewards, corpus.sources_K, corpus.preferences, view, np.arange(len(corpus)))
        self.entries_C, self.sizes_U, row_U = picked
        counts["rows without a pair"] = len(corpus) - len(np.unique(row_U))
        first_U, last_U = self._ends()
        tied_U = (self.sizes_U == 2) & (rewards.values[first_U] == rewards.values[last_U])
        counts["pairs of equal reward"] = int(tied_U.sum())
        if not view.tied_pairs:
            counts["dropped: pairs of equal reward"] = int(tied_U.sum())
            row_U = self._keep(~tied_U, row_U)
        counts["special strings taken as text"] = int(
            corpus.prompt_specials_R.sum() + corpus.specials_K[self.entries_C].sum()
        )
        first_U, last_U = self._ends()
        # A chat template may strip all of a completion that did not end.
        empty_U = np.minimum(corpus.lengths_K[first_U], corpus.lengths_K[last_U]) == 0
        prompt_U = corpus.prompt_lengths_R[row_U]
        # A pair keeps one prompt: log Z would not cancel between prompts that were cut differently.
        longest_U = np.maximum(corpus.lengths_K[first_U], corpus.lengths_K[last_U])
        cut_U = np.maximum(prompt_U + longest_U - view.max_tokens, 0)
        long_U = ~empty_U & (cut_U > 0) & ((view.over_long == "drop") | (cut_U >= prompt_U))
        counts["dropped: no tokens"] = int(self.sizes_U[empty_U].sum())
        counts["dropped: too long"] = int(self.sizes_U[long_U].sum())
        cut_U = self._keep(~(empty_U | long_U), cut_U)
        self.cuts_C = np.repeat(cut_U, self.sizes_U).astype(np.int32)
        counts["prompts cut"] = int((self.cuts_C > 0).sum())
        counts["completions"] = len(self.entries_C)
        counts["cut by length limit"] = int((~corpus.finished_K[self.entries_C]).sum())

    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last completion of each unit."""
        if len(self.sizes_U) == len(self.entries_C):
            return self.entries_C, self.entries_C
        first_U1 = ragged.starts(self.sizes_U)
        return self.entries_C[first_U1[:-1]], self.entries_C[first_U1[1:] - 1]

    def _keep(self, kept_U: np.ndarray, values_U: np.ndarray) -> np.ndarray:
        """Drops units; returns `values_U` of those that are kept."""
        self.entries_C = self.entries_C[np.repeat(kept_U, self.sizes_U)]
        self.sizes_U = self.sizes_U[kept_U]
        return values_U[kept_U]


def prompt_numbers(row_C: np.ndarray, cuts_C: np.ndarray) -> np.ndarray:
    """A number for each prompt and each length to which it was cut, int32 [C], in order of occurrence.

    Args:
      row_C: ascending.
    """
    if not cuts_C.any():
        return np.cumsum(np.diff(row_C, prepend=row_C[:1]) != 0, dtype=np.int32)
    key_C = row_C.astype(np.int64) << 32 | cuts_C
    _, first_N, number_C = np.unique(key_C, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first_N)).astype(np.int32)[number_C]


def _numbers(corpus: Corpus, entries_C: np.ndarray, weight_C: np.ndarray) -> PerCompletion:
    """Numbers of the completions, [C]; what only a ranking knows is NaN."""
    unknown_C = np.broadcast_to(np.float32(np.nan), len(entries_C))
    return PerCompletion(
        reward=taken(corpus.rewards.values, entries_C),
        quantile=unknown_C,
        ties=unknown_C,
        references=np.broadcast_to(np.int32(0), len(entries_C)),
        log_z=unknown_C,
        reward_scale=unknown_C,
        reference_log_prob=taken(corpus.reference_log_probs_K, entries_C),
        length=taken(corpus.lengths_K, entries_C),
        weight=weight_C,
        high=np.zeros(len(entries_C), bool),
    )


def _high(sizes_U: np.ndarray, quantile_C: np.ndarray) -> np.ndarray:
    """Which completions are on the high-reward side: the chosen of a pair, else a quantile above one half."""
    high_C = quantile_C > 0.5
    first_U = ragged.starts(sizes_U)[:-1][sizes_U == 2]
    high_C[first_U], high_C[first_U + 1] = True, False
    return high_C
