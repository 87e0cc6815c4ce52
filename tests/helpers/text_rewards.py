"""Rewards of texts that a tiny model can learn in a few steps."""

from collections.abc import Sequence
from typing import Any

DIGITS = frozenset("0123456789")


def digits(prompt: Sequence[Any], completion: str, payload: Any) -> float:
    """The share of digits among the characters of a completion."""
    return sum(letter in DIGITS for letter in completion) / max(len(completion), 1)


def any_digit(prompt: Sequence[Any], completion: str, payload: Any) -> float:
    """1 for a completion with a digit among its first four characters, else 0."""
    return float(any(letter in DIGITS for letter in completion[:4]))
