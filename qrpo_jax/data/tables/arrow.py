"""Records out of Arrow batches."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import pyarrow as pa

from qrpo_jax.data.tables.table import without_nulls


def records_of(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of batches with their numbers, from 0."""
    first = 0
    for batch in batches:
        for index, values in enumerate(batch.to_pylist(), first):
            yield index, without_nulls(values)
        first += batch.num_rows


def kept(names: Collection[str], columns: Collection[str]) -> list[str]:
    """The columns that are both there and needed, in the order of the file."""
    return [name for name in names if name in columns]
