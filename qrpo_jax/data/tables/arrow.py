"""Records out of Arrow batches."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import pyarrow as pa

from qrpo_jax.data.tables.table import without_nulls


def records_of(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of batches with their numbers, from 0."""
    first = 0
    for batch in batches:
        odd = [field.name for field in batch.schema if not _as_json(field.type)]
        for index, values in enumerate(batch.to_pylist(maps_as_pydicts="lossy"), first):
            for name in odd:
                values[name] = plain(values[name])
            yield index, without_nulls(values)
        first += batch.num_rows


def plain(value: Any) -> Any:
    """A value as JSON lines would have it. Every object of a column has the keys of all others, with null for those
    that it has not; and some programs write text as bytes."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value


def _as_json(kind: pa.DataType) -> bool:
    """Whether values of a type need no `plain`."""
    if pa.types.is_struct(kind) or pa.types.is_map(kind) or pa.types.is_dictionary(kind):
        return False
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return False
    return all(_as_json(kind.field(i).type) for i in range(kind.num_fields))


def kept(names: Collection[str], columns: Collection[str]) -> list[str]:
    """The columns that are both there and needed, in the order of the file."""
    return [name for name in names if name in columns]
