"""Smallest values of config keys that depend on other keys. What a key allows on its own is in `configs/default.py`."""

from collections.abc import Mapping
from typing import Any

from qrpo_jax.config.keys import refuse


def value_at(config: Any, key: str) -> Any:
    """The value of a key such as "train.beta"."""
    section, _, name = key.rpartition(".")
    return config[section][name] if section else config[name]


def check_least(config: Any, least: Mapping[str, int]) -> None:
    """Refuses whole numbers below the minimum of their key.

    Args:
      least: for each key the minimum.

    Raises:
      UserError: naming the first such key.
    """
    for key, low in least.items():
        value = value_at(config, key)
        if value < low:
            raise refuse(key, f"{value}; it must be at least {low}")
