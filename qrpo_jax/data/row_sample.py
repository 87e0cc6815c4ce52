"""A bounded sample of a source's rows: blocks of neighbours, spread evenly, so that files are read in few places."""

from collections.abc import Iterator

import numpy as np

from qrpo_jax.data.rows import Row
from qrpo_jax.data.sources.source import Source

BLOCK = 50  # neighbouring rows


def sample_indices(count: int, most: int, block: int = BLOCK) -> list[range]:
    """Blocks of indices from 0 to before `count`, of `most` indices together, or a few less; all if that is 0.

    >>> sample_indices(1000, 6, block=2)
    [range(0, 2), range(499, 501), range(998, 1000)]
    >>> sample_indices(5, 6, block=2)
    [range(0, 2), range(2, 4), range(4, 5)]
    """
    if count <= most or not most:
        return [range(start, min(start + block, count)) for start in range(0, count, block)]
    block = min(block, most)
    starts = np.linspace(0, count - block, most // block).round().astype(int).tolist()
    return [range(start, start + block) for start in starts]


def sample_rows(source: Source, most: int) -> Iterator[Row]:
    """The rows of `sample_indices`, a block in memory at a time."""
    for block in sample_indices(source.count, most):
        yield from source.rows(block)
