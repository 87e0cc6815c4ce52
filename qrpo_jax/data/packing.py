"""Which completions share a packed row and a copy of their prompt, planned before training from lengths alone."""

import itertools
import sys
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qrpo_jax.data.batch_order import batch_order
from qrpo_jax.data.packing_units import Units
from qrpo_jax.devices.mesh import round_up
from qrpo_jax.errors import UserError

UNLIMITED = sys.maxsize  # slots of a row: as many completions as its tokens allow
Group = tuple[int, ...]  # completions that share one copy of their prompt
Row = tuple[Group, ...]


class Plan(NamedTuple):
    """Which completions stand in which row of which batch, and which of them share a copy of their prompt.

    Every batch has B rows, of which `microbatches` equal parts are computed one after the other; a batch that needs
    fewer rows has empty ones, and parts without any row cost nothing.

    Attributes:
      completions: int32, of all batches in order.
      groups: where in `completions` each group begins, and where the last one ends.
      packed: where in `groups` each row begins, and where the last one ends.
      starts: where in `packed` each batch begins, and where the last one ends.
      rows: B, the same for every batch.
      row_tokens: L.
      slots: S.
      tokens: positions of all batches that hold a token.
      separate_tokens: what they would be if no completion shared its prompt.
    """

    completions: np.ndarray
    groups: np.ndarray
    packed: np.ndarray
    starts: np.ndarray
    rows: int
    row_tokens: int
    slots: int
    tokens: int
    separate_tokens: int
    microbatches: int = 1

    @property
    def steps(self) -> int:
        return len(self.starts) - 1

    @property
    def row_counts(self) -> np.ndarray:
        """Rows of each batch that hold anything, [steps]."""
        return np.diff(self.starts)

    def batch(self, index: int) -> tuple[Row, ...]:
        """The rows of a batch: for each row its groups, for each group the completions that share a prompt."""
        return tuple(
            tuple(
                tuple(self.completions[self.groups[g] : self.groups[g + 1]].tolist())
                for g in range(self.packed[row], self.packed[row + 1])
            )
            for row in range(self.starts[index], self.starts[index + 1])
        )

    @property
    def computed_tokens(self) -> int:
        """Positions of all batches that are computed: whole parts."""
        part = self.rows // self.microbatches
        return self.row_tokens * part * int((-(-self.row_counts // part)).sum())

    @property
    def padding(self) -> float:
        """Share of the computed positions that is empty."""
        return 1.0 - self.tokens / self.computed_tokens

    def place_of(self, row: int) -> int:
        """Where among the B rows of a batch its row number `row` stands.

        Row b belongs to part b mod `microbatches`, see `make_step`; parts are filled one after the other.
        """
        part, within = divmod(row, self.rows // self.microbatches)
        return within * self.microbatches + part


class _Pieces(NamedTuple):
    """What has to stand in one row, in lists, which Python reads faster than arrays.

    Attributes:
      tokens: of each piece.
      sizes: completions of each piece.
      groups: of each piece.
    """

    tokens: list[int]
    sizes: list[int]
    groups: list[Row]


def pack(units: Units, chosen: np.ndarray, row_tokens: int, slots: int, *, share: bool) -> tuple[Row, ...]:
    """Packs units into rows of at most `row_tokens` tokens and `slots` completions.

    With `share`, units of one prompt form a group; one that is too long for a row is split over rows, each with its
    copy of the prompt. Groups go into rows by first fit decreasing (Johnson 1973).

    Args:
      chosen: indices of the units.
    """
    pieces = _siblings(units, chosen, row_tokens, slots) if share else _apart(units, chosen)
    bins = _first_fit_decreasing(pieces.tokens, pieces.sizes, row_tokens, slots)
    return tuple(tuple(group for i in row for group in pieces.groups[i]) for row in bins)


def _apart(units: Units, chosen: np.ndarray) -> _Pieces:
    """Each unit as a piece; its completions have a copy of the prompt each."""
    first_Q, sizes_Q = units.first_U[chosen], units.sizes_U[chosen].astype(int)
    tokens_Q = units.own_U[chosen] + units.shared_C[first_Q] * sizes_Q
    ends = zip(first_Q.tolist(), (first_Q + sizes_Q).tolist(), strict=True)
    groups: list[Row] = [tuple((c,) for c in range(low, high)) for low, high in ends]
    return _Pieces(tokens_Q.tolist(), sizes_Q.tolist(), groups)


def _siblings(units: Units, chosen: np.ndarray, row_tokens: int, slots: int) -> _Pieces:
    """All units of a prompt as one piece, or as few pieces as their rows need."""
    chosen, start_G = _by_prompt(units, chosen)
    first_Q, sizes_Q, own_Q = units.first_U[chosen], units.sizes_U[chosen].astype(int), units.own_U[chosen]
    shared_G = units.shared_C[first_Q[start_G]]
    tokens_G, sizes_G = shared_G + np.add.reduceat(own_Q, start_G), np.add.reduceat(sizes_Q, start_G)
    within = np.arange(sizes_Q.sum()) - np.repeat(np.cumsum(sizes_Q) - sizes_Q, sizes_Q)
    completions = (np.repeat(first_Q, sizes_Q) + within).tolist()
    pieces = _Pieces([], [], [])
    ends = zip(np.cumsum(sizes_G).tolist(), start_G.tolist(), [*start_G[1:].tolist(), len(chosen)], strict=True)
    numbers = zip(tokens_G.tolist(), sizes_G.tolist(), shared_G.tolist(), strict=True)
    for (end, low, high), (tokens, size, shared) in zip(ends, numbers, strict=True):
        members = completions[end - size : end]
        if tokens <= row_tokens and size <= slots:
            pieces.tokens.append(tokens)
            pieces.sizes.append(size)
            pieces.groups.append((tuple(members),))
        else:
            of_units = own_Q[low:high].tolist(), sizes_Q[low:high].tolist()
            _split(pieces, members, *of_units, shared, row_tokens, slots)
    return pieces


def _by_prompt(units: Units, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Units with siblings beside each other, prompts as they occur, and where the units of each prompt begin."""
    chosen = np.asarray(chosen)
    prompts_Q = units.prompts_C[units.first_U[chosen]]
    _, seen_G, group_Q = np.unique(prompts_Q, return_index=True, return_inverse=True)
    chosen = chosen[np.argsort(seen_G[group_Q], kind="stable")]
    counts_G = np.bincount(group_Q)[np.argsort(seen_G)]
    return chosen, np.cumsum(counts_G) - counts_G


def _split(
    pieces: _Pieces, members: list[int], own: list[int], sizes: list[int], shared: int, row_tokens: int, slots: int
) -> None:
    """Adds pieces for units of one prompt that are too long, or too many, for a row.

    Args:
      members: their completions.
      own, sizes: tokens and completions of each unit.
    """
    firsts = [0, *itertools.accumulate(sizes)]
    for part in _first_fit_decreasing(own, sizes, row_tokens - shared, slots):
        group = tuple(c for i in part for c in members[firsts[i] : firsts[i + 1]])
        pieces.tokens.append(shared + sum(own[i] for i in part))
        pieces.sizes.append(len(group))
        pieces.groups.append((group,))


def _first_fit_decreasing(lengths: list[int], sizes: list[int], tokens: int, slots: int) -> list[list[int]]:
    """Bins of at most `tokens` and `slots`, as indices of what has these lengths and sizes (completions)."""
    if sum(lengths) <= tokens and sum(sizes) <= slots:
        return [list(range(len(lengths)))]
    bins: list[list[int]] = []
    room: list[int] = []
    free: list[int] = []
    smallest, first = min(lengths), 0
    for load in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length, size = lengths[load], sizes[load]
        while first < len(bins) and (room[first] < smallest or free[first] == 0):
            first += 1  # full
        for i in range(first, len(bins)):
            if room[i] >= length and free[i] >= size:
                break
        else:
            i = len(bins)
            bins.append([])
            room.append(tokens)
            free.append(slots)
        bins[i].append(load)
        room[i] -= length
        free[i] -= size
    return bins


def plan_batches(
    units: Units,
    *,
    batch_units: int,
    row_tokens: int,
    slots: int,
    epochs: int = 1,
    seed: int | None = None,
    shuffle: str = "prompts",
    share: bool = True,
    row_multiple: int = 1,
    microbatches: int = 0,
    orders: Sequence[np.ndarray] | None = None,
) -> Plan:
    """Plans every batch of a run.

    A batch holds exactly `batch_units` units (the last may hold fewer), as an unpacked one would, and which ones does
    not depend on the rows. So packing changes speed and nothing else.

    Args:
      units: none longer than `row_tokens`.
      slots: S; UNLIMITED makes it the most completions of any row, as an even number, so that pairs fill slots 2k and
        2k + 1.
      epochs, seed, shuffle: see `batch_order`.
      share: siblings in a row share one copy of their prompt.
      row_multiple: rows of a microbatch are a multiple of it.
      orders: what `batch_order` gave for these arguments, if it is known.
      microbatches: parts of B rows; 0 makes them as small as `row_multiple` allows.

    Raises:
      UserError: see `check_fit`.
    """
    check_fit(units, row_tokens, slots, share=share)
    if orders is None:
        orders = batch_order(units, batch_units, epochs, seed, shuffle)
    book = _Book()
    for order in orders:
        book.add(pack(units, order, row_tokens, slots, share=share) if len(order) else ())
    most = max(np.diff(book.starts).tolist())
    microbatches = microbatches or -(-most // row_multiple)
    rows = round_up(most, row_multiple * microbatches)
    return book.plan(units, rows, row_tokens, slots, epochs)._replace(microbatches=microbatches)


def plan_rows(units: Units, row_tokens: int, slots: int, batch_rows: int, *, share: bool = True) -> Plan:
    """Plans full batches of `batch_rows` rows where it does not matter which completions share a batch.

    Raises:
      UserError: see `check_fit`.
    """
    check_fit(units, row_tokens, slots, share=share)
    rows = pack(units, np.arange(len(units)), row_tokens, slots, share=share)
    book = _Book()
    for i in range(0, len(rows), batch_rows):
        book.add(rows[i : i + batch_rows])
    return book.plan(units, batch_rows, row_tokens, slots)


class _Book:
    """The batches of a plan as they are packed, in arrays of machine integers: a plan may have millions of rows."""

    def __init__(self) -> None:
        self._completions, self._groups, self._packed, self.starts = (array(code, [0]) for code in "iqqq")
        self._completions.pop()

    def add(self, batch: Sequence[Row]) -> None:
        for row in batch:
            for group in row:
                self._completions.extend(group)
                self._groups.append(len(self._completions))
            self._packed.append(len(self._groups) - 1)
        self.starts.append(len(self._packed) - 1)

    def plan(self, units: Units, rows: int, row_tokens: int, slots: int, epochs: int = 1) -> Plan:
        columns = (self._completions, self._groups, self._packed, self.starts)
        completions, groups, packed, starts = (np.frombuffer(column, column.typecode) for column in columns)
        separate = epochs * int(units.tokens_U(share=False).sum())
        saved = int(((np.diff(groups) - 1) * units.shared_C[completions[groups[:-1]]]).sum())
        if slots == UNLIMITED:
            slots = round_up(int(np.diff(groups[packed]).max()), 2)
        return Plan(completions, groups, packed, starts, rows, row_tokens, slots, separate - saved, separate)


def check_fit(units: Units, row_tokens: int, slots: int, *, share: bool = True) -> None:
    """Refuses units that no row can hold.

    Raises:
      UserError: no unit at all, or a unit with more tokens or completions than a row.
    """
    if len(units) == 0:
        raise UserError("nothing to pack: no completion is left after selection", about="lengths")
    longest, largest = int(units.tokens_U(share).max()), int(units.sizes_U.max())
    if longest > row_tokens:
        raise UserError(f"a unit of {longest} tokens does not fit a row of {row_tokens}", about="row_tokens")
    if largest > slots:
        raise UserError(f"a unit of {largest} completions does not fit a row of {slots} slots", about="slots")
