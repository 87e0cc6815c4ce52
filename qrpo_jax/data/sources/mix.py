"""Rows mixed from several sources, with weights.

Which row stands where is drawn from the seed and the numbers of rows alone. The rows of each source keep their order,
so that a reader that goes forwards in the mix goes forwards in each file.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from qrpo_jax.data.layouts import LAYOUTS
from qrpo_jax.data.rows import Row
from qrpo_jax.data.sources.listed import ListedRows, Mixed
from qrpo_jax.data.sources.listing import AGAIN, BITS, Listing, join
from qrpo_jax.data.sources.mix_parts import Part, parse_mix
from qrpo_jax.data.sources.source import Source, SourceKind, SourceOptions
from qrpo_jax.errors import UserError

PURPOSE = 5  # with the seed, of the draw of places
Kinds = Callable[[str], SourceKind]


def open_mix(options: SourceOptions, kind_of: Kinds) -> Mapping[str, Source]:
    """Opens the sources of `options.mix`.

    Training rows are mixed by weights; held-out rows are those of one source after the other.

    Args:
      kind_of: from "KIND:ADDRESS" to the kind.

    Raises:
      UserError: about `mix`, or from a source.
    """
    parts = parse_mix(options.mix)
    trained: list[ListedRows] = []
    held_out: list[ListedRows] = []
    for part, chosen in zip(parts, options_of(options, parts), strict=True):
        if part.layout and part.layout not in LAYOUTS:
            raise UserError(f"layout of {part.source} is {part.layout!r}; allowed: {', '.join(LAYOUTS)}", about="mix")
        with about_mix():
            sources = kind_of(part.source).open(chosen)
        for rows, split in ((trained, "train"), (held_out, "eval")):
            source = sources[split]
            assert isinstance(source, ListedRows), "only such sources are mixed"
            rows.append(source)
    counts = numbers([source.count for source in trained], [part.weight for part in parts], options.count)
    train = mixed(parts, trained, counts, options.seed)
    return {"train": train, "sft": train, "eval": mixed(parts, held_out, [source.count for source in held_out], None)}


def identity(options: SourceOptions, kind_of: Kinds) -> str:
    """Text that differs between two contents of the sources."""
    parts = parse_mix(options.mix)
    identities = [kind_of(part.source).identity for part in parts]
    return " ".join(of(chosen) for of, chosen in zip(identities, options_of(options, parts), strict=True) if of)


def options_of(options: SourceOptions, parts: Sequence[Part]) -> list[SourceOptions]:
    """The options of each source: its own, or else those of the mix, whose number of held-out prompts they share."""
    last = options.held_out
    each = shares(last, [part.weight or 1 for part in parts]) if isinstance(last, int) else [last] * len(parts)
    return [
        dataclasses.replace(
            options,
            name=part.source,
            address=part.source.partition(":")[2],
            split=part.split or options.split,
            layout=part.layout,
            columns=part.columns,
            held_out=share if part.held_out is None else part.held_out,
            count=0,
            mix=(),
        )
        for part, share in zip(parts, each, strict=True)
    ]


@contextmanager
def about_mix() -> Iterator[None]:
    """What is wrong with a source inside is wrong with `mix`, which names it; its held-out number may be the mix's."""
    try:
        yield
    except UserError as error:
        error.about = ("mix", *(argument for argument in error.about if argument == "held_out"))
        raise


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in the ratio of weights, which add up to a total: rounded down, and the largest rests up.

    >>> shares(10, [1, 1, 1]), shares(7, [0.5, 0.25])
    ([4, 3, 3], [5, 2])
    """
    exact_S = np.asarray(weights, np.float64) / np.sum(weights) * total
    whole_S = np.floor(exact_S).astype(np.int64)
    rest = np.argsort(whole_S - exact_S, kind="stable")[: total - int(whole_S.sum())]
    whole_S[rest] += 1
    return whole_S.tolist()


def numbers(there: Sequence[int], weights: Sequence[float | None], count: int) -> list[int]:
    """How many rows of each source a mix has.

    Args:
      there: rows of each source.
      weights: of each source; without any, all rows are in the mix.
      count: rows of the mix; 0 for as many as there are without repeating one.

    >>> numbers([100, 900], [None, None], 0), numbers([100, 900], [1, 3], 0), numbers([100, 900], [1, 1], 500)
    ([100, 900], [100, 300], [250, 250])
    """
    ratio = [float(rows) if weight is None else weight for rows, weight in zip(there, weights, strict=True)]
    if None in weights and (not count or count >= sum(there)):
        return list(there)
    most = min(rows / weight for rows, weight in zip(there, ratio, strict=True)) * sum(ratio)
    wanted = shares(count or int(most + 1e-6), ratio)
    return wanted if count else [min(one, rows) for one, rows in zip(wanted, there, strict=True)]


def mixed(parts: Sequence[Part], sources: Sequence[ListedRows], counts: Sequence[int], seed: int | None) -> ListedRows:
    """Rows of several sources as one.

    Args:
      counts: rows of each source; more than it has repeat it from its start.
      seed: of the order; None for one source after the other.
    """
    source_R = np.repeat(np.arange(len(parts), dtype=np.int16), counts)
    if seed is not None:
        source_R = np.random.default_rng([seed, PURPOSE]).permutation(source_R)
    turn_R, from_R = np.zeros(len(source_R), np.int64), np.zeros(len(source_R), np.int64)
    first = 0
    for i, (source, count) in enumerate(zip(sources, counts, strict=True)):
        own = source_R == i
        turn_R[own] = np.arange(count)
        from_R[own] = first + np.arange(count) % max(source.count, 1)
        first += source.count
    names = [part.name for part in parts]
    listing = join([_named(source.listing, name) for source, name in zip(sources, names, strict=True)]).take(from_R)
    # Each source tells its own rows of the same id apart.
    alike_R = listing.flags_R & ~np.uint16(BITS[AGAIN])
    listing = listing._replace(numbers_R=np.arange(len(source_R)), flags_R=alike_R)
    said = [f"{name}: {source.layout}" for name, source in zip(names, sources, strict=True) if source.layout]
    told = [Mixed(name, count, source.count) for name, count, source in zip(names, counts, sources, strict=True)]
    return ListedRows(MixedRows(names, sources, source_R, turn_R), listing, layout=" | ".join(said), mixed=told)


def _named(listing: Listing, name: str) -> Listing:
    return listing._replace(dropped=tuple(one._replace(reason=f"{name}: {one.reason}") for one in listing.dropped))


class MixedRows(NamedTuple):
    """The rows of a mix, R in all.

    Attributes:
      names: of the sources.
      source_R: int16, which source a row is from.
      turn_R: int64, how many rows of that source come before it.
    """

    names: Sequence[str]
    sources: Sequence[ListedRows]
    source_R: np.ndarray
    turn_R: np.ndarray

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        found: dict[int, Row] = {}
        wanted_P = np.asarray(numbers, np.int64)
        for i, source in enumerate(self.sources):
            own = np.flatnonzero(self.source_R[wanted_P] == i)
            turns = self.turn_R[wanted_P[own]]
            for at, turn, row in zip(own.tolist(), turns.tolist(), source.rows(turns % source.count), strict=True):
                found[at] = dataclasses.replace(row, id=self.id(i, turn // source.count, row.id))
        return [found[at] for at in range(len(numbers))]

    def id(self, source: int, repetition: int, row_id: str) -> str:
        """A row's id in the mix: "chat:row-7", and the second time "chat#2:row-7"."""
        again = f"#{repetition + 1}" if repetition else ""
        return f"{self.names[source]}{again}:{row_id}"

    def place(self, number: int) -> str:
        source = self.sources[int(self.source_R[number])]
        return source.place_of(int(self.turn_R[number]) % source.count)
