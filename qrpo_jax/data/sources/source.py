"""A source of prompts: rows by index, before anything is sampled or scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from qrpo_jax.data.rows import Row

# From indices and a split to one text for each index, sampled from the reference policy.
DrawBeginnings = Callable[[Sequence[int], str], list[str]]


class Source(Protocol):
    """The prompts of one split; row i is always the same, in whatever order and company it is read."""

    @property
    def count(self) -> int:
        """Number of rows."""

    def rows(self, indices: Sequence[int]) -> "list[Row]":
        """The rows at `indices`, each from 0 to count - 1."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What a source may use; most ignore some of it.

    Attributes:
      seed: of everything that is drawn.
      count: prompts to train on; for a source with listed rows, 0 means all.
      held_out: prompts of split "eval": so many, a share of all, or a split of the data set.
      demonstrations: rows of split "sft", for a source that generates them.
      name: what the user calls the source, "KIND:ADDRESS".
      address: of a source with listed rows.
      split: of the data set, to train on; "" for the usual one.
      layout: a key of `layouts.LAYOUTS`; "" for the one that its columns fit.
      columns: other names of columns, NEW=OWN.
      mix: of a source of several, one text each, see `mix_parts.parse_mix`.
      draw_beginnings: samples texts from the reference policy; None before its parameters are loaded.
    """

    seed: int
    count: int
    held_out: int | float | str
    demonstrations: int
    name: str = ""
    address: str = ""
    split: str = ""
    layout: str = ""
    columns: tuple[str, ...] = ()
    mix: tuple[str, ...] = ()
    draw_beginnings: DrawBeginnings | None = None


@dataclass(frozen=True, kw_only=True)
class SourceKind:
    """How to open a source, and what the checks of a config must know about it.

    Attributes:
      open: from settings to a source for each split: "train", "eval" (held out) and, with demonstrations, "sft".
      address: what the user writes behind "KIND:", for the help; "" if nothing.
      completions: its training rows may bring completions, so that none need to be sampled.
      demonstrations: it has a split "sft", whose rows bring a first completion to imitate.
      tests: the payloads of its rows may hold unit tests.
      answers: the payloads of its rows may hold an answer to compare with.
      listed: its rows are at `SourceOptions.address`, so all of them can be checked before a run.
      columns: its records have columns, which a layout translates.
      identity: text that differs between two contents of that place, for the settings of a run; None if not listed.
      sampled: it calls `SourceOptions.draw_beginnings`.
      vocabulary: words for the tokenizer of a model that is trained from scratch; None if such a model cannot read
        these prompts.
    """

    open: Callable[[SourceOptions], Mapping[str, Source]]
    address: str = ""
    completions: bool = False
    demonstrations: bool = False
    tests: bool = False
    answers: bool = False
    listed: bool = False
    columns: bool = False
    identity: Callable[[SourceOptions], str] | None = None
    sampled: bool = False
    vocabulary: Callable[[], tuple[str, ...]] | None = None
