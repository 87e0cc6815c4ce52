"""Which completions share a packed row: planned once, before training, from lengths alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qrpo_jax.devices.mesh import round_up
from qrpo_jax.errors import UserError


class Plan(NamedTuple):
    """For each batch its rows, for each row the indices of its units (a completion or a pair)."""

    batches: tuple[tuple[tuple[int, ...], ...], ...]
    rows: int  # B, the same for every batch; batches that need fewer rows get empty ones
    row_tokens: int  # L
    slots: int  # S
    padding: float  # share of the B·L token positions of all batches that are empty

    @property
    def steps(self) -> int:
        return len(self.batches)


def first_fit_decreasing(
    units: Sequence[int], lengths: np.ndarray, sizes: np.ndarray, row_tokens: int, slots: int
) -> list[tuple[int, ...]]:
    """Packs units into rows of at most `row_tokens` tokens and `slots` completions (Johnson 1973)."""
    rows: list[list[int]] = []
    room: list[int] = []
    free: list[int] = []
    for unit in sorted(units, key=lambda u: (-lengths[u], u)):
        length, size = int(lengths[unit]), int(sizes[unit])
        for i, left in enumerate(room):
            if left >= length and free[i] >= size:
                break
        else:
            i = len(rows)
            rows.append([])
            room.append(row_tokens)
            free.append(slots)
        rows[i].append(unit)
        room[i] -= length
        free[i] -= size
    return [tuple(row) for row in rows]


def plan_batches(
    lengths: np.ndarray,
    sizes: np.ndarray,
    *,
    batch_units: int,
    row_tokens: int,
    slots: int,
    epochs: int = 1,
    seed: int | None = None,
    row_multiple: int = 1,
) -> Plan:
    """Plans every batch of a run.

    A batch holds exactly `batch_units` units (the last may hold fewer), as an unpacked one would, so packing
    changes speed and nothing else. A batch may hold the end of one epoch and the start of the next.

    Args:
      lengths: [U] tokens of each unit, prompts included; none longer than `row_tokens`.
      sizes: [U] completions of each unit (1, or 2 for a pair).
      seed: shuffles each epoch; None keeps the given order.
      row_multiple: B is a multiple of this (devices × microbatches).

    Raises:
      UserError: see `check_fit`.
    """
    check_fit(lengths, sizes, row_tokens, slots)
    orders = []
    for epoch in range(epochs):
        order = np.arange(len(lengths))
        orders.append(order if seed is None else np.random.default_rng([seed, epoch]).permutation(order))
    order = np.concatenate(orders)
    batches = tuple(
        tuple(first_fit_decreasing(order[i : i + batch_units].tolist(), lengths, sizes, row_tokens, slots))
        for i in range(0, len(order), batch_units)
    )
    rows = round_up(max(len(batch) for batch in batches), row_multiple)
    tokens = int(lengths[order].sum())
    return Plan(batches, rows, row_tokens, slots, 1.0 - tokens / (len(batches) * rows * row_tokens))


def plan_rows(lengths: np.ndarray, sizes: np.ndarray, row_tokens: int, slots: int, batch_rows: int) -> Plan:
    """Plans full batches of `batch_rows` rows where it does not matter which completions share a batch.

    Raises:
      UserError: see `check_fit`.
    """
    check_fit(lengths, sizes, row_tokens, slots)
    rows = first_fit_decreasing(range(len(lengths)), lengths, sizes, row_tokens, slots)
    batches = tuple(tuple(rows[i : i + batch_rows]) for i in range(0, len(rows), batch_rows))
    padding = 1.0 - int(lengths.sum()) / (len(batches) * batch_rows * row_tokens)
    return Plan(batches, batch_rows, row_tokens, slots, padding)


def check_fit(lengths: np.ndarray, sizes: np.ndarray, row_tokens: int, slots: int) -> None:
    """Refuses units that no row can hold.

    Raises:
      UserError: no unit at all, or a unit with more tokens or completions than a row.
    """
    if len(lengths) == 0:
        raise UserError("nothing to pack: no completion is left after selection", about="lengths")
    if int(lengths.max()) > row_tokens:
        raise UserError(f"a unit of {int(lengths.max())} tokens does not fit a row of {row_tokens}", about="row_tokens")
    if int(sizes.max()) > slots:
        raise UserError(f"a unit of {int(sizes.max())} completions does not fit a row of {slots} slots", about="slots")
