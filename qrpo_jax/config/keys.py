"""Kinds of config keys: a default, the allowed values, and how a command line writes them.

`configs/default.py` defines every key with one of these. A key checks its value alone; what must hold between keys,
data and machine is checked by the stage that needs it.
"""

import ast
import difflib
import math
import os
import re
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Any

from qrpo_jax.errors import UserError, shown

MOST = 2**31 - 1  # counts and sizes become int32 in arrays


class NotAllowedError(ValueError):
    """Says what a value must be: "it must be at least 1"."""


class Key:
    """A kind of key."""

    default: Any

    def check(self, value: Any) -> Any:
        """The value in the type of the default.

        Raises:
          NotAllowedError: it has another type, or is not allowed.
        """
        raise NotImplementedError

    def parse(self, text: str) -> Any:
        """The value that a text on the command line means; text without a meaning is returned for `check` to refuse."""
        return text

    def allowed(self) -> str:
        """The allowed values in a few words, for the help; empty if the default says enough."""
        return ""


@dataclass(frozen=True)
class Whole(Key):
    """A whole number from `least` to `most`; True and False are none.

    >>> Whole(8, least=1).check(3)
    3
    >>> Whole(8, least=1).check(True)
    Traceback (most recent call last):
    qrpo_jax.config.keys.NotAllowedError: it must be a whole number, at least 1
    """

    default: int
    _: KW_ONLY
    least: int | None = None
    most: int = MOST

    def check(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral):
            bounds = "" if self.least is None else f", {self._bounds()}"
            raise NotAllowedError(f"it must be a whole number{bounds}")
        whole = int(value)
        if whole > self.most or (self.least is not None and whole < self.least):
            raise NotAllowedError(f"it must be {self._bounds(whole > self.most)}")
        return whole

    def parse(self, text: str) -> Any:
        try:
            return int(text)
        except ValueError:
            return text

    def allowed(self) -> str:
        return "" if self.least is None else self._bounds()

    def _bounds(self, above: bool = False) -> str:
        if self.least is not None and self.most < MOST:
            return f"a whole number from {self.least} to {self.most}"
        return f"at most {self.most}" if above else f"at least {self.least}"


@dataclass(frozen=True)
class Number(Key):
    """A finite number within bounds: `least` and `most` are allowed themselves, `above` and `below` are not.

    >>> Number(0.9, least=0, below=1).check(0)
    0.0
    >>> Number(0.9, least=0, below=1).check(1.0)
    Traceback (most recent call last):
    qrpo_jax.config.keys.NotAllowedError: it must be finite, at least 0, below 1
    """

    default: float
    _: KW_ONLY
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def check(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise NotAllowedError(f"it must be {self._bounds() if self._closed() else f'a number, {self._bounds()}'}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        fits = (
            math.isfinite(number)
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )
        if not fits:
            raise NotAllowedError(f"it must be {self._bounds()}")
        return number

    def parse(self, text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            return text

    def allowed(self) -> str:
        return self._bounds().removeprefix("finite").removeprefix(", ")

    def _closed(self) -> bool:
        return self.least is not None and self.most is not None

    def _bounds(self) -> str:
        if self._closed():
            return f"a number from {self.least:g} to {self.most:g}"
        bounds = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return ", ".join(["finite", *(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)])


@dataclass(frozen=True, init=False)
class Choice(Key):
    """One of several names; the first is the default.

    >>> Choice("cosine", "linear").check("linar")
    Traceback (most recent call last):
    qrpo_jax.config.keys.NotAllowedError: allowed: cosine, linear; did you mean 'linear'?
    """

    default: str
    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "default", names[0])
        object.__setattr__(self, "names", names)

    def check(self, value: Any) -> str:
        if not isinstance(value, str) or value not in self.names:
            raise NotAllowedError(f"allowed: {', '.join(self.names)}{did_you_mean(value, self.names)}")
        return value

    def allowed(self) -> str:
        return " | ".join(self.names)


@dataclass(frozen=True)
class Switch(Key):
    """True or False."""

    default: bool

    def check(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise NotAllowedError("it must be True or False")
        return value

    def parse(self, text: str) -> Any:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower(), text)


@dataclass(frozen=True)
class Text(Key):
    """A text or path.

    Attributes:
      empty: it may be empty.
      lines: it may have several lines, or be line breaks and spaces alone.
    """

    default: str = ""
    _: KW_ONLY
    empty: bool = True
    lines: bool = False

    def check(self, value: Any) -> str:
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        kept = "\n\t" if self.lines else ""
        if not isinstance(value, str) or not all(letter.isprintable() or letter in kept for letter in value):
            raise NotAllowedError("it must be a text in quotes" + ("" if self.lines else ", of one line"))
        if not (value if self.lines else value.strip()) and not self.empty:
            raise NotAllowedError("it must not be empty")
        return value


@dataclass(frozen=True)
class Name(Key):
    """A word of letters, digits and `_ - . /` that begins with a letter.

    >>> Name().check("-1")
    Traceback (most recent call last):
    qrpo_jax.config.keys.NotAllowedError: it must be a name
    """

    default: str = ""

    def check(self, value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z][\w./-]*", value):
            raise NotAllowedError("it must be a name")
        return value

    def allowed(self) -> str:
        return "a name"


@dataclass(frozen=True, init=False)
class Either(Key):
    """A value of one of several kinds, the first of which has the default.

    >>> [Either(Whole(0, least=0), Name()).parse(text) for text in ("7", "test")]
    [7, 'test']
    """

    default: Any
    kinds: tuple[Key, ...]

    def __init__(self, *kinds: Key) -> None:
        object.__setattr__(self, "default", kinds[0].default)
        object.__setattr__(self, "kinds", kinds)

    def check(self, value: Any) -> Any:
        rules = []
        for kind in self.kinds:
            try:
                return kind.check(value)
            except NotAllowedError as error:
                rules.append(str(error).removeprefix("it must be "))
        raise NotAllowedError(f"it must be {', or '.join(rules)}")

    def parse(self, text: str) -> Any:
        for kind in self.kinds:
            value = kind.parse(text)
            try:
                return kind.check(value)
            except NotAllowedError:
                continue
        return text

    def allowed(self) -> str:
        return ", or ".join(filter(None, (kind.allowed() for kind in self.kinds)))


@dataclass(frozen=True)
class Several(Key):
    """A tuple of values of one kind. A command line writes a Python tuple, or values with commas between them.

    Attributes:
      of: the kind of each value.
      distinct: there is at least one value, and none is there twice.

    >>> Several(("log",), of=Text()).parse("log,affine(log, 0.5, 2)")
    ('log', 'affine(log, 0.5, 2)')
    """

    default: tuple[Any, ...]
    _: KW_ONLY
    of: Key
    distinct: bool = False

    def check(self, value: Any) -> tuple[Any, ...]:
        values = self.parse(value) if isinstance(value, str) else value
        if not isinstance(values, tuple | list):
            raise NotAllowedError("it must be a tuple or list")
        checked = tuple(self._check_one(one) for one in values)
        if self.distinct and (not checked or len(set(checked)) < len(checked)):
            raise NotAllowedError("name at least one, each once")
        return checked

    def _check_one(self, value: Any) -> Any:
        try:
            return self.of.check(value)
        except NotAllowedError as error:
            rule = str(error).replace("it must", "each must", 1)
            raise ElementError(value, rule) from None

    def parse(self, text: str) -> Any:
        try:
            values = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            values = text
        if isinstance(values, tuple | list):
            return tuple(values)
        found = words(text)
        # Commas and spaces alone may be meant as values, such as a line break that ends completions.
        return text if text and not found else tuple(self.of.parse(word) for word in found)

    def allowed(self) -> str:
        return self.of.allowed()


def words(text: str) -> list[str]:
    """What stands between commas; commas within parentheses belong to a name such as affine(log, 0.5, 2)."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


class ElementError(NotAllowedError):
    """Says what each value of several must be; `value` is the first that is not."""

    def __init__(self, value: Any, rule: str) -> None:
        super().__init__(rule)
        self.value = value


def refuse(key: str, message: str, verb: str = "is") -> UserError:
    """A `UserError` about one config key: "KEY is MESSAGE".

    Args:
      verb: "has" for a message about one element of a list.
    """
    error = UserError(f"{key} {verb} {message}")
    error.keys = (key,)
    return error


def checked(name: str, key: Key, value: Any) -> Any:
    """The value of the key called `name`, in the type of its default.

    Raises:
      UserError: naming the key, the value and what is allowed.
    """
    try:
        return key.check(value)
    except ElementError as error:
        raise refuse(name, f"{shown(error.value)}; {error}", "has") from None
    except NotAllowedError as error:
        raise refuse(name, f"{shown(value)}; {error}") from None


def did_you_mean(given: Any, names: Iterable[str], quote: str = "'") -> str:
    """The end of a message: "; did you mean 'NAME'?" with the nearest of the names; empty if none is near.

    >>> did_you_mean("quikstart", ["default", "quickstart"])
    "; did you mean 'quickstart'?"
    """
    near = difflib.get_close_matches(str(given), list(names), n=1)
    return f"; did you mean {quote}{near[0]}{quote}?" if near else ""
