"""Bounds of config values that stages check: choices, least numbers, ranges."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from qrpo_jax.errors import UserError


def value_at(config: Any, key: str) -> Any:
    """The value of a key such as "train.beta"."""
    section, _, name = key.rpartition(".")
    return config[section][name] if section else config[name]


def refuse(key: str, message: str, verb: str = "is") -> UserError:
    """The error of one config key, "KEY is MESSAGE"; of a list, "KEY has MESSAGE"."""
    error = UserError(f"{key} {verb} {message}")
    error.keys = (key,)
    return error


def check_choices(config: Any, choices: Mapping[str, Iterable[str]]) -> None:
    """Refuses values that are not among those allowed for their key.

    Raises:
      UserError: naming the first such key.
    """
    for key, allowed in choices.items():
        value, names = value_at(config, key), tuple(allowed)
        if value not in names:
            raise refuse(key, f"{value!r}; allowed: {', '.join(names)}")


def check_least(config: Any, least: Mapping[str, int]) -> None:
    """Refuses whole numbers below the least that their key allows.

    Raises:
      UserError: naming the first such key.
    """
    for key, low in least.items():
        value = value_at(config, key)
        if value < low:
            raise refuse(key, f"{value}; it must be at least {low}")


def check_range(config: Any, key: str, low: float, high: float = math.inf, *, below: bool = False) -> None:
    """Refuses a number that is not finite or not in [low, high], or with `below` not in [low, high).

    Raises:
      UserError: naming the key.
    """
    value = value_at(config, key)
    below = below or math.isinf(high)
    if not (low <= value < high if below else low <= value <= high):
        least = "above 0" if 0 < low < 1e-6 else f"at least {low:g}"
        most = "" if math.isinf(high) else f", {'below' if below else 'at most'} {high:g}"
        raise refuse(key, f"{value}; it must be finite, {least}{most}")
