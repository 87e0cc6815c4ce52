"""log π_ref of the completions that a data set brings: a sum over the tokens of each, end of turn included."""

from collections.abc import Sequence
from typing import Any

from qrpo_jax.data.layouts.layout import PAIR_LOG_PROBS, At, Values
from qrpo_jax.data.rows import LARGEST_REWARD
from qrpo_jax.errors import shown

UNKNOWN = float("nan")
ROUNDING = 1e-3  # above 0, which a sum of log-probs of certain tokens may be


def pair_log_probs(values: Values, at: At, sides: Sequence[str]) -> list[float]:
    """log π_ref of each side of a pair in nats; NaN where the record has none.

    Args:
      values: by `KEYS`.
      sides: those that are there.

    Raises:
      UserError: a value that no log-probability has, or one of a side that is not there.
    """
    for side, key in PAIR_LOG_PROBS.items():
        if key in values and side not in sides:
            raise at.fault(f"{at.column(key)} without {at.column(side)}; give the completion too")
    return [read_log_prob(values.get(PAIR_LOG_PROBS[side]), PAIR_LOG_PROBS[side], at) for side in sides]


def read_log_prob(value: Any, key: str, at: At) -> float:
    """A log-prob; null if it is not known.

    Raises:
      UserError: it is none, with place and column.
    """
    if value is None:
        return UNKNOWN
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -LARGEST_REWARD <= value <= ROUNDING:  # not NaN either
        raise at.fault(
            f"{at.column(key)} has {shown(value)}; it must be a finite number or null, and at most 0: the sum of "
            "log π_ref over the tokens of its completion"
        )
    return float(value)
