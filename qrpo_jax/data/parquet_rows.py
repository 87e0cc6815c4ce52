"""Rows as records of Parquet files, for other programs, and for this one by way of a source `parquet:FILES`.

There are two layouts. `rows` keeps a row as it is: read again, it has the same bytes. `qrpo` is the layout of the
published QRPO data sets: a pair with rewards, and reference completions with theirs.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from qrpo_jax.data.layouts import LAYOUTS
from qrpo_jax.data.layouts.layout import At, DroppedError
from qrpo_jax.data.layouts.row_reader import read_row
from qrpo_jax.data.rows import Message, Row, component_table
from qrpo_jax.errors import UserError

GROUP_BYTES = 1 << 25  # of text and tokens in a row group, about; what is in memory at a time
GROUP_ROWS = 1024  # in a row group, at most
ASSISTANT = "assistant"

_TEXTS = pa.list_(pa.string())
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_FLOATS, _DOUBLES = pa.list_(pa.float32()), pa.list_(pa.float64())
_INTEGERS = pa.list_(pa.int32())


class RowLayout(NamedTuple):
    """A layout that rows are written in.

    Attributes:
      schema: of the file.
      record: from a row to its record; a row that the layout has no place for is a `ValueError`.
      lost: what a reader of the file does not get back.
    """

    schema: pa.Schema
    record: Callable[[Row], dict[str, Any]]
    lost: str


def rows_record(row: Row) -> dict[str, Any]:
    """The record of a row in layout `rows`: everything that the row has; a number that is not known is null."""
    completions, (names, components_CxK) = row.completions, component_table(row)
    return {
        "id": row.id,
        "prompt": _messages(row.messages),
        "payload_json": row.payload or None,
        "completions": [c.text for c in completions],
        "rewards": _known([c.reward for c in completions]),
        "sources": [c.source for c in completions],
        "finished": [c.finished for c in completions],
        "log_probs": _known([c.log_prob for c in completions]),
        "reference_log_probs": _known([c.reference_log_prob for c in completions]),
        "token_ids": [c.tokens for c in completions],
        "reference_rewards": np.asarray(row.reference_rewards, np.float32),
        "preferences": [list(pair) for pair in row.preferences] or None,
        "component_names": names or None,
        "components": [_nulls(numbers) for numbers in components_CxK] if names else None,
    }


def qrpo_record(row: Row) -> dict[str, Any]:
    """The record of a row in the published layout.

    It is written only if it gives back the prompt, the pair and its rewards, and the rewards of all references.

    Raises:
      ValueError: a row of another kind, or with a text that the layout cannot hold.
    """
    pair = [c for c in row.completions if c.source == "dataset"]
    sampled = [c for c in row.completions if c.source == "reference"]
    rewards = [c.reward for c in sampled] + np.asarray(row.reference_rewards, np.float32).tolist()
    if len(pair) != 2 or len(row.completions) != 2 + len(sampled) or not rewards:
        raise ValueError("not a pair with references")
    if sampled and len(row.reference_rewards):
        raise ValueError("some references have a text, and others none")
    prompt, (chosen, rejected) = _messages(row.messages), pair
    texts = json.dumps([c.text for c in sampled], ensure_ascii=False)
    record = {
        "id": row.id,
        "chosen": [*prompt, _message(ASSISTANT, chosen.text)],
        "rejected": [*prompt, _message(ASSISTANT, rejected.text)],
        "chosen_rewards": chosen.reward,
        "rejected_rewards": rejected.reward,
        "ref_rewards": rewards,
        "ref_completions": [*prompt, _message(ASSISTANT, texts)] if sampled else None,
        "payload_json": row.payload or None,
    }
    if _facts(_read(record)) != _facts(row):
        raise ValueError("a text or a reward that the layout does not give back")
    return record


ROW_LAYOUTS = {
    "qrpo": RowLayout(
        pa.schema(
            [
                ("id", pa.string()),
                ("chosen", _MESSAGES),
                ("rejected", _MESSAGES),
                ("chosen_rewards", pa.float64()),
                ("rejected_rewards", pa.float64()),
                ("ref_rewards", _DOUBLES),
                ("ref_completions", _MESSAGES),
                ("payload_json", pa.string()),
            ]
        ),
        qrpo_record,
        "log-probs, token ids, components of rewards, and which completions ended; read again, "
        "references are known by their rewards alone",
    ),
    "rows": RowLayout(
        pa.schema(
            [
                ("id", pa.string()),
                ("prompt", _MESSAGES),
                ("payload_json", pa.string()),
                ("completions", _TEXTS),
                ("rewards", _FLOATS),
                ("sources", _TEXTS),
                ("finished", pa.list_(pa.bool_())),
                ("log_probs", _FLOATS),
                ("reference_log_probs", _FLOATS),
                ("token_ids", pa.list_(_INTEGERS)),
                ("reference_rewards", _FLOATS),
                ("preferences", pa.list_(_INTEGERS)),
                ("component_names", _TEXTS),
                ("components", pa.list_(_FLOATS)),
            ]
        ),
        rows_record,
        "",
    ),
}


def fits(rows: Iterable[Row], layout: str) -> bool:
    """Whether a layout has a place for every row; reads no further than the first that it has none for."""
    record = ROW_LAYOUTS[layout].record
    try:
        return all(record(row) for row in rows)
    except ValueError:
        return False


def row_groups(rows: Iterable[Row], layout: str) -> Iterator[pa.Table]:
    """Tables of rows, each small enough for memory.

    Raises:
      UserError: about `layout`: a row that it has no place for.
    """
    records: list[dict[str, Any]] = []
    size, (schema, record, _) = 0, ROW_LAYOUTS[layout]
    for row in rows:
        try:
            records.append(record(row))
        except ValueError as error:
            raise UserError(
                f"row {row.id!r} does not fit layout {layout!r}: {error}; choose layout 'rows'", about="layout"
            ) from None
        size += sum(len(c.text) + c.tokens.nbytes for c in row.completions) + sum(len(m.content) for m in row.messages)
        if size >= GROUP_BYTES or len(records) >= GROUP_ROWS:
            yield pa.Table.from_pylist(records, schema)
            records, size = [], 0
    if records:
        yield pa.Table.from_pylist(records, schema)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _messages(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [_message(message.role, message.content) for message in messages]


def _known(numbers: list[float]) -> list[float | None] | None:
    """Numbers with null for NaN; null alone where none is known."""
    known = _nulls(numbers)
    return None if known.count(None) == len(known) else known


def _nulls(numbers: list[float]) -> list[float | None]:
    return [None if math.isnan(number) else number for number in numbers]


def _read(record: dict[str, Any]) -> Row | None:
    """The row that a reader of layout `qrpo` gets; None if it would drop or refuse the record."""
    layout = LAYOUTS["qrpo"]
    there = [column for column, value in record.items() if value is not None]
    at = At("", layout.found(there), strict=False)
    try:
        return read_row({key: record[column] for key, column in at.columns.items()}, at, "")
    except (UserError, DroppedError):
        return None


def _facts(row: Row | None) -> Any:
    """What layout `qrpo` keeps of a row."""
    if row is None:
        return None
    pair = [(c.text, c.reward) for c in row.completions if c.source == "dataset"]
    references = [c.reward for c in row.completions if c.source == "reference"]
    references += np.asarray(row.reference_rewards, np.float32).tolist()
    return row.id, row.messages, row.payload, pair, references
