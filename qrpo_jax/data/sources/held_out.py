"""Which records are trained on, and which are held out: a number, a share, or a split of its own."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from qrpo_jax.data.sources.source import SourceOptions
from qrpo_jax.errors import UserError


class Parts(NamedTuple):
    """Ranges of records.

    Attributes:
      held_out: of the held-out split if there is one, else of the same table.
      left_out: number of records that neither has.
    """

    train: range
    held_out: range
    left_out: int


def divide(count: int, other: int | None, options: SourceOptions) -> Parts:
    """Training and held-out records.

    Args:
      count: records of the split to train on.
      other: records of the held-out split; None if the last ones of `count` are held out.

    Raises:
      UserError: about `held_out`: nothing is left to train on.
    """
    last = 0 if other is not None else held_out_number(count, options.held_out)
    rest = count - last
    if rest <= 0 < count:
        raise UserError(f"held_out is {options.held_out} of {count} prompts; leave some to train on", about="held_out")
    used = min(options.count, rest) if options.count else rest
    return Parts(range(used), range(rest, count) if other is None else range(other), rest - used)


def held_out_number(count: int, held_out: int | float | str) -> int:
    """How many of `count` records are held out: so many, or the share of them, rounded up.

    >>> held_out_number(1000, 20), held_out_number(1000, 0.05)
    (20, 50)
    """
    if isinstance(held_out, str):
        return 0
    return held_out if isinstance(held_out, int) else math.ceil(count * held_out)


@contextmanager
def about_held_out() -> Iterator[None]:
    """What is wrong with a split inside is wrong with `held_out`, which names it."""
    try:
        yield
    except UserError as error:
        error.about = tuple("held_out" if argument == "split" else argument for argument in error.about)
        raise
