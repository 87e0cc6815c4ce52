"""The parts of a weighted reward, as a config names them: "length(100, 400) weight=-0.1 clip=0:1"."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from qrpo_jax.errors import UserError, shown

SUM = "sum"
OPTIONS = ("weight", "mean", "std", "clip", "name")
# The options stand at the end, so that an expression in the parentheses of a reward may hold whatever it likes.
OPTION = re.compile(r"(.*[^\s])\s+([a-z_]+)=(\S*)", re.DOTALL)


class Part(NamedTuple):
    """One part.

    Attributes:
      reward: name of the reward, such as "tests" or "package.module:function".
      name: of its component in the rows.
      mean, std: the z-score is (component - mean) / std.
      low, high: bounds of the z-score.
    """

    reward: str
    name: str
    weight: float = 1.0
    mean: float = 0.0
    std: float = 1.0
    low: float = -math.inf
    high: float = math.inf

    def value(self, component: float) -> float:
        """What a component adds to the sum.

        >>> Part("length", "length", weight=-0.5, mean=100, std=50, high=2).value(150), read_part("judge").value(0.7)
        (-0.5, 0.7)
        """
        return self.weight * min(max((component - self.mean) / self.std, self.low), self.high)


def read_parts(texts: Sequence[str]) -> list[Part]:
    """The parts of a sum.

    Raises:
      UserError: about `parts`: a text that is no part, none at all, or a reward or a name that is there twice.
    """
    if not texts:
        raise UserError(
            f"reward.name is {SUM!r} without parts; name at least one, such as 'tests weight=1'", about="parts"
        )
    parts = [read_part(text) for text in texts]
    for what, names in (("reward", [part.reward for part in parts]), ("name", [part.name for part in parts])):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"reward.parts has the {what} {shown(twice)} twice; each must be another", about="parts")
    return parts


def read_part(text: str) -> Part:
    """The part that a text means.

    >>> read_part("format(a = b) weight=0.5 clip=0:1 name=tags")
    Part(reward='format(a = b)', name='tags', weight=0.5, mean=0.0, std=1.0, low=0.0, high=1.0)

    Raises:
      UserError: about `parts`.
    """
    reward, options = text.strip(), dict[str, str]()
    while found := OPTION.fullmatch(reward):
        reward, option, value = found.groups()
        if option not in OPTIONS:
            raise _fault(text, f"has the option {shown(option)}; allowed: {', '.join(OPTIONS)}")
        if option in options:
            raise _fault(text, f"has the option {option!r} twice")
        options[option] = value
    if reward == SUM:
        raise _fault(text, "is a sum itself; name its parts")
    numbers: dict[str, float] = {
        option: _number(text, option, options[option]) for option in ("weight", "mean", "std") if option in options
    }
    if numbers.get("weight") == 0:
        raise _fault(text, "has the weight 0; leave it out of the parts")
    if not numbers.get("std", 1.0) > 0:
        raise _fault(text, f"has std={options['std']}; it must be above 0")
    if "clip" in options:
        low, colon, high = options["clip"].partition(":")
        bounds = (_number(text, "clip", low), _number(text, "clip", high)) if colon else (0.0, 0.0)
        if not bounds[0] < bounds[1]:
            raise _fault(text, f"has clip={options['clip']}; it must be LOW:HIGH, the lower one first")
        numbers |= {"low": bounds[0], "high": bounds[1]}
    name = options.get("name", reward)
    if not name:
        raise _fault(text, "has an empty name")
    return Part(reward, name, **numbers)


def reward_names(name: str, parts: Sequence[str]) -> list[str]:
    """The rewards that a config names: one, or those of a sum.

    Raises:
      UserError: see `read_parts`; or there are parts beside another reward.
    """
    if name == SUM:
        return [part.reward for part in read_parts(parts)]
    if parts:
        raise UserError(
            f"reward.parts is set, but reward {name!r} is one alone; set reward.name={SUM!r}, or no parts",
            about="parts",
        )
    return [name]


def kind(name: str) -> str:
    """A reward's name without its parentheses: "length" for "length(3, 5)"."""
    return name.partition("(")[0] if name.endswith(")") else name


def _number(text: str, option: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _fault(text, f"has {option}={shown(value)}; it must be a finite number")
    return number


def _fault(text: str, message: str) -> UserError:
    return UserError(f"reward.parts: {shown(text)} {message}", about="parts")
