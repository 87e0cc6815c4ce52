"""Records out of Arrow batches, of which only those of a range are converted."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import pyarrow as pa

from qrpo_jax.data.tables.table import without_nulls


def records_of(batches: Iterable[pa.RecordBatch], start: int, stop: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records from `start` to before `stop`, with their index, of batches that begin with record 0."""
    first = 0
    for batch in batches:
        if first >= stop:
            return
        low, high = max(start - first, 0), min(stop - first, batch.num_rows)
        for index, values in enumerate(batch.slice(low, high - low).to_pylist() if low < high else (), first + low):
            yield index, without_nulls(values)
        first += batch.num_rows


def kept(names: Collection[str], columns: Collection[str]) -> list[str]:
    """The columns that are both there and needed, in the order of the file."""
    return [name for name in names if name in columns]
