"""Which units are in which batch: shuffled in each epoch, and dealt so that batches have equally many tokens.

All batches have the same number of rows, so the fullest one decides what each costs, and batches of units drawn at
random differ by a tenth and more. Within windows of the shuffled order, units are therefore dealt to batches from the
longest to the shortest, each to the batch with the fewest tokens so far that has room (longest processing time first,
Graham 1969). Every batch has the same number of units as before, and every unit occurs once an epoch.
"""

import heapq
import itertools

import numpy as np

from qrpo_jax.data.packing_units import Units
from qrpo_jax.data.ragged import starts

SHUFFLES = ("prompts", "units")
WINDOW = 64  # batches among which units are dealt


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
    orders = []
    for epoch in range(epochs):
        if seed is None:
            orders.append(np.arange(count))
            continue
        rng = np.random.default_rng([seed, epoch])
        order, sizes_I = _shuffled(units, shuffle, rng)
        orders.append(_dealt(units, order, sizes_I, batch_units, epoch * count % batch_units, rng))
    order = np.concatenate(orders).astype(np.int32)
    return [order[i : i + batch_units] for i in range(0, len(order), batch_units)]


def _shuffled(units: Units, shuffle: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Units in random order, and how many of them stay together."""
    count = len(units)
    by_U = units.prompts_C[units.first_U] if shuffle == "prompts" else np.arange(count)
    rank = np.argsort(rng.permutation(int(by_U.max(initial=-1)) + 1))
    order = np.lexsort((rng.permutation(count), rank[by_U]))
    return order, np.diff(np.flatnonzero(np.diff(by_U[order], prepend=-1, append=-1)))


def _dealt(
    units: Units, order: np.ndarray, sizes_I: np.ndarray, batch_units: int, taken: int, rng: np.random.Generator
) -> np.ndarray:
    """The same units in the order of their batches.

    Args:
      sizes_I: units of each item, which stay together where a batch has room for all of them.
      taken: units of the epoch before that the first batch has.
    """
    first_I1 = starts(sizes_I)
    own_U1 = starts(units.own_U[order])
    shared_I = units.shared_C[units.first_U[order[first_I1[:-1]]]]
    tokens_I = np.diff(own_U1[first_I1]) + shared_I
    cuts = np.arange(-taken, len(order) + batch_units, batch_units).clip(0, len(order))
    capacities = np.diff(np.unique(cuts))
    dealt = []
    low = item = 0
    for window in range(0, len(capacities), WINDOW):
        room = capacities[window : window + WINDOW]
        high = low + int(room.sum())
        # The items of the window; one that reaches into the next window is cut there.
        after = int(np.searchsorted(first_I1, high))
        firsts = np.maximum(first_I1[item:after], low)
        sizes = np.diff(np.append(firsts, high))
        dealt.append(order[_deal(firsts, sizes, tokens_I[item:after], room, rng)])
        item = after - 1 if first_I1[after] > high else after
        low = high
    return np.concatenate([np.zeros(0, int), *dealt])


def _deal(
    firsts: np.ndarray, sizes: np.ndarray, tokens: np.ndarray, room: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Places of units in the order of their batches.

    Args:
      firsts, sizes, tokens: of each item: the place of its first unit, its units, its tokens.
      room: units that each batch takes.
    """
    longest = np.argsort(-tokens, kind="stable")
    free = room.tolist()
    # Batches take turns in random order while they have equally many tokens for each unit that they take.
    heap = [(0.0, turn, batch) for turn, batch in enumerate(rng.permutation(len(free)).tolist())]
    turns = itertools.count(len(heap))
    pieces: list[list[tuple[int, int]]] = [[] for _ in free]
    columns = (column[longest].tolist() for column in (firsts, sizes, tokens))
    for first, size, length in zip(*columns, strict=True):
        while size:
            load, _, batch = heapq.heappop(heap)
            took = min(size, free[batch])
            pieces[batch].append((first, took))
            free[batch] -= took
            first, size = first + took, size - took
            if free[batch]:
                heapq.heappush(heap, (load + length / room[batch], next(turns), batch))
    begin, count = np.asarray([piece for batch in pieces for piece in batch]).T
    return np.repeat(begin - np.cumsum(count) + count, count) + np.arange(count.sum())
