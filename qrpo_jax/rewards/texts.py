"""Rewards that look at a completion alone: its format, its length, or words in quotes."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from qrpo_jax.data.rows import Completion, Row
from qrpo_jax.errors import UserError
from qrpo_jax.rewards.functions import UserFunction
from qrpo_jax.rewards.reward import Reward
from qrpo_jax.rewards.scores import OK, Scores

FORMAT = re.compile(r"format\((.*)\)", re.DOTALL)
FORMAT_SECONDS = 1.0  # time limit of one match; some expressions take exponential time


def dialogue_share(prompt: str, completion: str, payload: str) -> float:
    """Share of a completion's words inside double quotes; 0 for a completion without words.

    >>> dialogue_share("", 'He said, "Come here."', "")
    0.5
    """
    words = list(re.finditer(r"\S+", completion))
    # Counts words, not quotes, so that a word with several quotes counts once and the share stays at most one.
    quoted = [match.span(1) for match in re.finditer(r'"([^"]*)"', completion)]
    spoken = sum(any(max(word.start(), start) < min(word.end(), end) for start, end in quoted) for word in words)
    return spoken / len(words) if words else 0.0


TEXT_REWARDS = {"dialogue_share": dialogue_share}


def format_function(name: str) -> UserFunction:
    """The function of "format(REGEX)": 1 where the whole completion matches, else 0.

    Raises:
      UserError: the expression is none of `re`.
    """
    found = FORMAT.fullmatch(name)
    assert found is not None, name
    try:
        expression = re.compile(found[1])
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"reward {name!r} has no regular expression of Python: {error}", about="name") from None
    return UserFunction(name, lambda prompt, completion, payload: float(expression.fullmatch(completion) is not None))


class Length(NamedTuple):
    """What "length" counts, and between which numbers it gives 1; without these it gives the number itself."""

    unit: str
    bounds: tuple[int, int] | None

    def reward(self, number: int) -> float:
        """
        >>> Length("words", (3, 5)).reward(5), Length("words", (3, 5)).reward(6), Length("words", None).reward(6)
        (1.0, 0.0, 6.0)
        """
        return float(number) if self.bounds is None else float(self.bounds[0] <= number <= self.bounds[1])


def read_length(name: str) -> Length:
    """What "length", "length(words)", "length(LOW, HIGH)" or "length(LOW, HIGH, words)" means.

    >>> read_length("length"), read_length("length(3, 5, words)")
    (Length(unit='tokens', bounds=None), Length(unit='words', bounds=(3, 5)))

    Raises:
      UserError: it is none of these.
    """
    inside = re.fullmatch(r"length(?:\((.*)\))?", name, re.DOTALL)
    assert inside is not None, name
    words = [word.strip() for word in inside[1].split(",")] if inside[1] else []
    unit = words.pop() if words and words[-1] in ("tokens", "words") else "tokens"
    numbers = [int(word) for word in words if word.isdecimal() and len(word) < 10]
    if len(numbers) != len(words) or len(words) not in (0, 2) or sorted(numbers) != numbers:
        raise UserError(
            f"reward is {name!r}; allowed: length, length(words), length(LOW, HIGH) or length(LOW, HIGH, words) with "
            "whole numbers, the lower one first",
            about="name",
        )
    return Length(unit, (numbers[0], numbers[1]) if numbers else None)


class LengthReward(Reward):
    """Scores completions by their length.

    Args:
      tokens: number of tokens of a completion, with its end token.
    """

    def __init__(self, length: Length, tokens: Callable[[Completion], int]) -> None:
        self._length, self._tokens = length, tokens

    def score(self, rows: Sequence[Row]) -> Scores:
        count = self._tokens if self._length.unit == "tokens" else lambda completion: len(completion.text.split())
        rewards = [[self._length.reward(count(completion)) for completion in row.completions] for row in rows]
        return Scores(rewards, [[OK] * len(row) for row in rewards])
