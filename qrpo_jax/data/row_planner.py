"""Chooses row length and number of microbatches: those that cost least for the data, the model and the machine."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qrpo_jax.data.packing import UNLIMITED, pack
from qrpo_jax.data.packing_units import Units
from qrpo_jax.data.row_cost import Machine, ModelCost, step_seconds, visible_blocks
from qrpo_jax.devices.mesh import round_up

SAMPLED = 16  # batches that a row length is tried on
TRIED = 40  # row lengths in the first round, before those around the best one


class Choice(NamedTuple):
    """A row length, and how many rows to compute at a time.

    Attributes:
      row_tokens: L.
      part_rows: rows of a microbatch on each device.
      seconds: estimated time of a step.
      tried: row lengths that were compared.
    """

    row_tokens: int
    part_rows: int
    seconds: float
    tried: int = 1


class Planner:
    """Compares row lengths on some of a run's batches.

    A batch is computed in microbatches of `part_rows` rows a device, as many as its rows need: those that a batch
    leaves empty cost nothing.

    Args:
      batches: the units of each batch; `SAMPLED` of them, evenly spread, are packed.
      share: siblings in a row share one copy of their prompt.
      slots: completions of a row, or UNLIMITED.
      devices: over which the rows of a batch are split.
      microbatches: of the largest batch; 0 to choose them.
      multiple: row lengths are multiples of it, besides the machine's own.
    """

    def __init__(
        self,
        units: Units,
        batches: Sequence[np.ndarray],
        machine: Machine,
        model: ModelCost,
        *,
        share: bool = True,
        slots: int = UNLIMITED,
        devices: int = 1,
        microbatches: int = 0,
        multiple: int = 1,
    ) -> None:
        spread = np.unique(np.linspace(0, len(batches) - 1, SAMPLED).round().astype(int))
        self.batches = [batches[i] for i in spread]
        self.units, self.machine, self.model, self.share, self.slots = units, machine, model, share, slots
        self.devices, self.microbatches = devices, microbatches
        self.multiple = math.lcm(machine.multiple, multiple)

    def evaluate(self, row_tokens: int) -> Choice:
        """The best number of rows at a time for this row length, and the mean time of a step."""
        packed = [pack(self.units, batch, row_tokens, self.slots, share=self.share) for batch in self.batches]
        rows_S = np.asarray([len(rows) for rows in packed])
        block, seen = self.machine.block, 0.0
        if block:
            blocks = [visible_blocks(row, self.units, block) for rows in packed for row in rows]
            seen = sum(blocks) * block**2 / len(packed) / self.devices

        def choice(part_rows: int) -> Choice:
            parts_S = -(-rows_S // (self.devices * part_rows))
            device_rows = float(parts_S.mean()) * part_rows
            pairs = seen if block else device_rows * row_tokens**2
            seconds = step_seconds(
                self.machine,
                self.model,
                row_tokens=row_tokens,
                device_rows=device_rows,
                microbatches=float(parts_S.mean()),
                pairs=pairs,
            )
            return Choice(row_tokens, part_rows, seconds)

        needed = -(-max(map(len, packed)) // self.devices)
        return min(map(choice, self._part_rows(needed, row_tokens)), key=lambda c: (c.seconds, -c.part_rows))

    def _part_rows(self, needed: int, row_tokens: int) -> list[int]:
        """Numbers of rows at a time to try: those that keep activations within the working set."""
        if self.microbatches:
            return [-(-needed // self.microbatches)]
        most = int(self.machine.working_bytes // (row_tokens * self.model.token_bytes))
        # An even split of the largest batch, for every number of parts.
        even = {-(-needed // parts) for parts in range(1, needed + 1)}
        return sorted(rows for rows in even if rows <= max(1, most))

    def choose(self) -> Choice:
        """The cheapest row length; the shorter one of equals."""
        results = {length: self.evaluate(length) for length in self._lengths()}
        ordered = sorted(results)
        at = ordered.index(_cheapest(results).row_tokens)
        low, high = ordered[max(0, at - 1)], ordered[min(len(ordered) - 1, at + 1)]
        results |= {n: self.evaluate(n) for n in range(low, high, self.multiple) if n not in results}
        return _cheapest(results)._replace(tried=len(results))

    def choose_coarsely(self) -> Choice:
        """As `choose`, among few row lengths and powers of two rows at a time, so that similar data get the same."""
        shortest, longest = self._range()
        powers = [2**k * f for k in range(longest.bit_length()) for f in (2, 3)]
        lengths = {round_up(n, self.multiple) for n in powers if shortest <= n <= 2 * longest}
        best = _cheapest({length: self.evaluate(length) for length in lengths})
        return best._replace(part_rows=1 << (best.part_rows.bit_length() - 1), tried=len(lengths))

    def _range(self) -> tuple[int, int]:
        """The shortest and the longest row to try: one unit, and a whole batch or what the machine allows."""
        tokens_U = self.units.tokens_U(self.share)
        shortest = round_up(int(tokens_U.max()), self.multiple)
        whole = round_up(max(int(tokens_U[batch].sum()) for batch in self.batches), self.multiple)
        return shortest, max(shortest, min(whole, max(self.machine.longest, 2 * shortest)))

    def _lengths(self) -> list[int]:
        """Row lengths from the longest unit on, at even ratios."""
        ratios = np.geomspace(*self._range(), TRIED)
        return sorted({int(round_up(math.ceil(n), self.multiple)) for n in ratios.round(6).tolist()})


def _cheapest(results: dict[int, Choice]) -> Choice:
    return min(results.values(), key=lambda choice: (choice.seconds, choice.row_tokens))
