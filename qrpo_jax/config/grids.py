"""The key of a sweep: for each swept config key the list of its values."""

import ast
from collections.abc import Mapping
from typing import Any

from qrpo_jax.config.keys import Key, NotAllowedError
from qrpo_jax.errors import shown

Grid = tuple[tuple[str, tuple[Any, ...]], ...]  # (("train.beta", (0.1, 0.3)), ...)
SHAPE = 'a dict of lists, such as {"train.beta": [0.1, 0.3], "seed": [0, 1, 2]}, or a list of such dicts'


class Grids(Key):
    """Grids of config keys: a dict of lists, or a list of such dicts. It is kept as tuples, which a config can hold.

    Which keys there are, and which values they allow, `sweep.points` checks when the rest of the config is known.

    >>> Grids().check({"train.beta": [0.1, 0.3], "seed": [0, 1]})
    ((('train.beta', (0.1, 0.3)), ('seed', (0, 1))),)
    >>> Grids().check({"train.beta": []})
    Traceback (most recent call last):
    qrpo_jax.config.keys.NotAllowedError: train.beta must have at least one value
    """

    default: tuple[Grid, ...] = ()

    def check(self, value: Any) -> tuple[Grid, ...]:
        if isinstance(value, Mapping):
            return (self._grid(value),) if value else ()
        if not isinstance(value, tuple | list):
            raise NotAllowedError(f"it must be {SHAPE}")
        return tuple(self._grid(one) for one in value)

    def _grid(self, value: Any) -> Grid:
        # A grid that has been checked before is a tuple of pairs.
        items = list(value.items()) if isinstance(value, Mapping) else value
        if not isinstance(items, tuple | list) or not items:
            raise NotAllowedError(f"it must be {SHAPE}")
        return tuple(self._axis(item) for item in items)

    def _axis(self, item: Any) -> tuple[str, tuple[Any, ...]]:
        if not isinstance(item, tuple | list) or len(item) != 2 or not isinstance(item[0], str):
            raise NotAllowedError(f"it must be {SHAPE}")
        name, values = item
        if not isinstance(values, tuple | list):
            raise NotAllowedError(f"{name} has {shown(values)}, and must have a list of values")
        if not values:
            raise NotAllowedError(f"{name} must have at least one value")
        twice = next((one for i, one in enumerate(values) if one in values[:i]), None)
        if twice is not None:
            raise NotAllowedError(f"{name} has {shown(twice)} twice")
        return name, tuple(values)

    def parse(self, text: str) -> Any:
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text

    def allowed(self) -> str:
        return "a dict of lists, or a list of such dicts"
