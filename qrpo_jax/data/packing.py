"""Which completions share a packed row and a copy of their prompt, planned before training from lengths alone."""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qrpo_jax.devices.mesh import round_up
from qrpo_jax.errors import UserError

UNLIMITED = sys.maxsize  # slots of a row: as many completions as its tokens allow
SHUFFLES = ("prompts", "units")

Group = tuple[int, ...]  # completions that share one copy of their prompt
Row = tuple[Group, ...]


@dataclasses.dataclass(frozen=True)
class Units:
    """What there is to pack: U units, each a completion or a pair of one prompt, of C completions.

    A row holds a prompt without its last token once for each group, and for each completion as many tokens as it has:
    the prompt's last token and all of its own but the last (see `model.layout`).

    Attributes:
      completions: of each unit.
      prompts_C: int; completions of one number have the same prompt.
      shared_C: int, tokens of a completion's prompt without the last.
      length_C: int, tokens of a completion.
    """

    completions: tuple[tuple[int, ...], ...]
    prompts_C: np.ndarray
    shared_C: np.ndarray
    length_C: np.ndarray

    def __len__(self) -> int:
        return len(self.completions)

    @functools.cached_property
    def first_U(self) -> np.ndarray:
        """The first completion of each unit."""
        return np.asarray([unit[0] for unit in self.completions], int)

    @functools.cached_property
    def sizes_U(self) -> np.ndarray:
        """Completions of each unit."""
        return np.asarray([len(unit) for unit in self.completions], int)

    @functools.cached_property
    def own_U(self) -> np.ndarray:
        """Tokens of each unit's completions together."""
        return np.asarray([sum(int(self.length_C[c]) for c in unit) for unit in self.completions], int)

    def tokens_U(self, share: bool) -> np.ndarray:
        """Tokens of a row that each unit takes if it is alone in it."""
        return self.own_U + self.shared_C[self.first_U] * (1 if share else self.sizes_U)


class Plan(NamedTuple):
    """For each batch its rows, for each row its groups, for each group the completions that share a prompt.

    Every batch has B rows, of which `microbatches` equal parts are computed one after the other; a batch that needs
    fewer rows has empty ones, and parts without any row cost nothing.
    """

    batches: tuple[tuple[Row, ...], ...]
    rows: int  # B, the same for every batch
    row_tokens: int  # L
    slots: int  # S
    tokens: int  # positions of all batches that hold a token
    separate_tokens: int  # what they would be if no completion shared its prompt
    microbatches: int = 1

    @property
    def steps(self) -> int:
        return len(self.batches)

    @property
    def computed_tokens(self) -> int:
        """Positions of all batches that are computed: whole parts."""
        part = self.rows // self.microbatches
        return self.row_tokens * sum(round_up(len(batch), part) for batch in self.batches)

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


class _Piece(NamedTuple):
    """What has to stand in one row."""

    tokens: int
    size: int  # completions
    groups: Row


def pack(units: Units, chosen: Sequence[int], row_tokens: int, slots: int, *, share: bool) -> tuple[Row, ...]:
    """Packs units into rows of at most `row_tokens` tokens and `slots` completions.

    With `share`, units of one prompt form a group; one that is too long for a row is split over rows, each with its
    copy of the prompt. Groups go into rows by first fit decreasing (Johnson 1973).
    """
    if share:
        siblings: dict[int, list[int]] = {}
        for unit in chosen:
            siblings.setdefault(int(units.prompts_C[units.first_U[unit]]), []).append(unit)
        pieces = [piece for members in siblings.values() for piece in _split(units, members, row_tokens, slots)]
    else:
        pieces = [_alone(units, unit) for unit in chosen]
    bins = _first_fit_decreasing([(piece.tokens, piece.size) for piece in pieces], row_tokens, slots)
    return tuple(tuple(group for i in row for group in pieces[i].groups) for row in bins)


def _alone(units: Units, unit: int) -> _Piece:
    """A unit whose completions have a copy of the prompt each."""
    completions = units.completions[unit]
    tokens = int(units.own_U[unit]) + int(units.shared_C[completions[0]]) * len(completions)
    return _Piece(tokens, len(completions), tuple((c,) for c in completions))


def _split(units: Units, members: Sequence[int], row_tokens: int, slots: int) -> list[_Piece]:
    """Units of one prompt in as few pieces as their rows need."""
    shared = int(units.shared_C[units.completions[members[0]][0]])
    loads = [(int(units.own_U[unit]), len(units.completions[unit])) for unit in members]
    pieces = []
    for part in _first_fit_decreasing(loads, row_tokens - shared, slots):
        tokens, size = (sum(loads[i][k] for i in part) for k in (0, 1))
        group = tuple(c for i in part for c in units.completions[members[i]])
        pieces.append(_Piece(shared + tokens, size, (group,)))
    return pieces


def _first_fit_decreasing(loads: Sequence[tuple[int, int]], tokens: int, slots: int) -> list[list[int]]:
    """Bins of at most `tokens` and `slots`, as indices of their loads (tokens, completions)."""
    if sum(load[0] for load in loads) <= tokens and sum(load[1] for load in loads) <= slots:
        return [list(range(len(loads)))]
    bins: list[list[int]] = []
    room: list[int] = []
    free: list[int] = []
    smallest, first = min(load[0] for load in loads), 0
    for load in sorted(range(len(loads)), key=lambda i: (-loads[i][0], i)):
        length, size = loads[load]
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


def batch_order(
    units: Units, batch_units: int, epochs: int, seed: int | None, shuffle: str = "prompts"
) -> list[np.ndarray]:
    """The units of each batch. A batch may hold the end of one epoch and the start of the next.

    Args:
      seed: shuffles each epoch; None keeps the given order.
      shuffle: "units" shuffles units. "prompts" shuffles prompts with all their units, so that siblings are in one
        batch and can share a prompt; the samples of a batch are then less independent.
    """
    count = len(units)
    by_U = np.arange(count)
    if shuffle == "prompts":
        by_U = np.unique(units.prompts_C[units.first_U], return_inverse=True)[1]
    orders = []
    for epoch in range(epochs):
        if seed is None:
            orders.append(np.arange(count))
            continue
        rng = np.random.default_rng([seed, epoch])
        rank = np.argsort(rng.permutation(np.unique(by_U).size))
        orders.append(np.lexsort((rng.permutation(count), rank[by_U])))
    order = np.concatenate(orders)
    return [order[i : i + batch_units] for i in range(0, len(order), batch_units)]


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
      microbatches: parts of B rows; 0 makes them as small as `row_multiple` allows.

    Raises:
      UserError: see `check_fit`.
    """
    check_fit(units, row_tokens, slots, share=share)
    orders = batch_order(units, batch_units, epochs, seed, shuffle)
    batches = tuple(pack(units, order.tolist(), row_tokens, slots, share=share) for order in orders)
    most = max(map(len, batches))
    microbatches = microbatches or -(-most // row_multiple)
    rows = round_up(most, row_multiple * microbatches)
    return _plan(units, batches, rows, row_tokens, slots, epochs)._replace(microbatches=microbatches)


def plan_rows(units: Units, row_tokens: int, slots: int, batch_rows: int, *, share: bool = True) -> Plan:
    """Plans full batches of `batch_rows` rows where it does not matter which completions share a batch.

    Raises:
      UserError: see `check_fit`.
    """
    check_fit(units, row_tokens, slots, share=share)
    rows = pack(units, range(len(units)), row_tokens, slots, share=share)
    batches = tuple(rows[i : i + batch_rows] for i in range(0, len(rows), batch_rows))
    return _plan(units, batches, batch_rows, row_tokens, slots)


def _plan(
    units: Units, batches: tuple[tuple[Row, ...], ...], rows: int, row_tokens: int, slots: int, epochs: int = 1
) -> Plan:
    rows_used = [row for batch in batches for row in batch]
    separate = epochs * int(units.tokens_U(share=False).sum())
    saved = sum((len(group) - 1) * int(units.shared_C[group[0]]) for row in rows_used for group in row)
    if slots == UNLIMITED:
        slots = round_up(max(sum(map(len, row)) for row in rows_used), 2)
    return Plan(batches, rows, row_tokens, slots, separate - saved, separate)


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
