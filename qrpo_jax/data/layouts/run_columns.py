"""Columns that only rows of a run have: who wrote each completion, whether it ended, its tokens, its log-probs, and the
components of its reward.
"""

import dataclasses
import json
import math
from typing import Any

import numpy as np

from qrpo_jax.data.layouts.layout import RUN_KEYS, At, Values
from qrpo_jax.data.layouts.log_probs import read_log_prob
from qrpo_jax.data.rows import COMPLETION_SOURCES, COMPONENTS, Row, known_components
from qrpo_jax.errors import shown

LARGEST_TOKEN = 2**31 - 1


def with_run_columns(row: Row, values: Values, at: At) -> Row:
    """The row of a record with what its columns of a run say.

    Args:
      values: by `KEYS`; of `RUN_KEYS`, all but `preferences`, `payload_json` and `component_names` have one entry a
        completion.

    Raises:
      UserError: a value has another type or length, with place and column.
    """
    if not values.keys() & set(RUN_KEYS):
        return row
    columns = {
        "source": _column(row, values, "sources", at, _source),
        "finished": _column(row, values, "finished", at, _switch),
        "log_prob": _column(row, values, "log_probs", at, _number),
        "reference_log_prob": _column(row, values, "reference_log_probs", at, read_log_prob),
        "tokens": _column(row, values, "token_ids", at, _tokens),
        "components": _components(row, values, at),
    }
    there = {name: column for name, column in columns.items() if column is not None}
    completions = tuple(
        dataclasses.replace(completion, **{name: column[i] for name, column in there.items()})
        for i, completion in enumerate(row.completions)
    )
    row = dataclasses.replace(row, completions=completions)
    if "preferences" in values:
        row = dataclasses.replace(row, preferences=_preferences(row, values["preferences"], at))
    return dataclasses.replace(row, payload=_payload(values, at)) if "payload_json" in values else row


def _column(row: Row, values: Values, key: str, at: At, read: Any) -> list[Any] | None:
    """The entries of a column, one a completion; None if the record does not have it."""
    if key not in values:
        return None
    entries = values[key]
    if not isinstance(entries, list) or len(entries) != len(row.completions):
        number = len(entries) if isinstance(entries, list) else shown(entries)
        raise at.fault(f"{len(row.completions)} completions but {at.column(key)} has {number}; give one entry each")
    return [read(entry, key, at) for entry in entries]


def _components(row: Row, values: Values, at: At) -> list[Any] | None:
    """The components of each completion: names for all, and a list of numbers or nulls for each."""
    names, there = values.get("component_names"), [key for key in COMPONENTS if key in values]
    if not there:
        return None
    if len(there) == 1:
        raise at.fault(
            f"{at.column(there[0])} is there alone; {' and '.join(map(at.column, COMPONENTS))} need each other"
        )
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise at.fault(f"{at.column('component_names')} is {shown(names)}; it must be a list of names")
    if len(set(names)) < len(names):
        raise at.fault(f"{at.column('component_names')} has a name twice: {shown(names)}; give each once")

    def read(value: Any, key: str, at: At) -> tuple[tuple[str, float], ...]:
        if not isinstance(value, list) or len(value) != len(names):
            raise at.fault(f"{at.column(key)} has {shown(value)}; it must be a list of {len(names)} numbers")
        return known_components(names, [_number(number, key, at) for number in value])

    return _column(row, values, "components", at, read)


def _source(value: Any, key: str, at: At) -> str:
    if value not in COMPLETION_SOURCES:
        raise at.fault(f"{at.column(key)} has {shown(value)}; allowed: {', '.join(COMPLETION_SOURCES)}")
    return str(value)


def _switch(value: Any, key: str, at: At) -> bool:
    if not isinstance(value, bool):
        raise at.fault(f"{at.column(key)} has {shown(value)}; it must be true or false")
    return value


def _number(value: Any, key: str, at: At) -> float:
    """A log-prob or a component; null if it is not known."""
    if value is None:
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isinf(value):
        raise at.fault(f"{at.column(key)} has {shown(value)}; it must be a finite number or null")
    return float(value)


def _tokens(value: Any, key: str, at: At) -> np.ndarray:
    whole = isinstance(value, list) and all(isinstance(token, int) and not isinstance(token, bool) for token in value)
    if not whole or not all(0 <= token <= LARGEST_TOKEN for token in value):
        raise at.fault(f"{at.column(key)} has {shown(value)}; it must be a list of token ids")
    return np.asarray(value, np.int32)


def _preferences(row: Row, value: Any, at: At) -> tuple[tuple[int, int], ...]:
    """Pairs of indices of completions."""
    count = len(row.completions)
    if not isinstance(value, list) or not all(_is_pair(pair, count) for pair in value):
        rule = f"pairs of different indices of its {count} completions, the better one first"
        raise at.fault(f"{at.column('preferences')} is {shown(value)}; it must be {rule}")
    return tuple((better, worse) for better, worse in value)


def _is_pair(pair: Any, count: int) -> bool:
    indices = pair if isinstance(pair, list) and len(pair) == 2 else []
    return len({index for index in indices if type(index) is int and 0 <= index < count}) == 2


def _payload(values: Values, at: At) -> str:
    """A payload as JSON in text, for columns that hold values of one type."""
    text = values["payload_json"]
    try:
        json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise at.fault(f"{at.column('payload_json')} is {shown(text)}; it must be JSON in text") from None
    if "payload" in values:
        raise at.fault("'payload' and 'payload_json' are both there; give one of them")
    return str(text)
