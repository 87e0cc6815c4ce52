"""A process's share of work that splits into units."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shard:
    """This process's share of work that splits into units: it owns unit u if u mod parts = index."""

    index: int
    parts: int

    def owns(self, unit: int) -> bool:
        return unit % self.parts == self.index
