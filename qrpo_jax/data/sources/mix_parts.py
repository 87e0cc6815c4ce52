"""The sources of a mix, as the user writes them: one text each, with options at its end."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from qrpo_jax.errors import UserError, shown

OPTION = re.compile(r"(?P<rest>.*\S)\s+(?P<key>name|weight|split|held_out|layout|columns)=(?P<value>\S+)\s*", re.DOTALL)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ENDINGS = re.compile(r"(\.(jsonl|json|parquet|gz|zst|bz2|xz))+$")
EXAMPLE = "'jsonl:a.jsonl weight=0.3 layout=scored'"


class Part(NamedTuple):
    """One source of a mix; empty options are those of the mix.

    Attributes:
      name: begins the ids of its rows.
      source: "KIND:ADDRESS".
      weight: share of the rows, with that of the other sources; None if the user gives none.
      held_out: as in `SourceOptions`; None for that of the mix.
    """

    name: str
    source: str
    weight: float | None = None
    split: str = ""
    held_out: int | float | str | None = None
    layout: str = ""
    columns: tuple[str, ...] = ()


def parse_mix(texts: Sequence[str]) -> tuple[Part, ...]:
    """The sources of a mix.

    Raises:
      UserError: about `mix`: there is none, a text has another form, or two have the same name.

    >>> parse_mix(["parquet:b/train-*.parquet weight=3", "jsonl:a.jsonl weight=1 columns=prompt=title;rewards=marks"])
    ... # doctest: +NORMALIZE_WHITESPACE
    (Part(name='train', source='parquet:b/train-*.parquet', weight=3.0, split='', held_out=None, layout='', columns=()),
     Part(name='a', source='jsonl:a.jsonl', weight=1.0, split='', held_out=None, layout='',
          columns=('prompt=title', 'rewards=marks')))
    """
    if not texts:
        raise UserError(f"mix is empty; name its sources, such as {EXAMPLE}", about="mix")
    parts = tuple(map(_parse, texts))
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two sources of the mix are called {name!r}; add name=... to one of them", about="mix")
    if len({part.weight is None for part in parts}) > 1:
        raise UserError("some sources of the mix have no weight=...; give all of them one, or none", about="mix")
    return parts


def _parse(text: str) -> Part:
    source, options = text.strip(), dict[str, str]()
    while found := OPTION.fullmatch(source):
        source = found["rest"]
        if found["key"] in options:
            raise UserError(f"mix has {shown(text)}, where {found['key']} is twice", about="mix")
        options[found["key"]] = found["value"]
    name = options.get("name") or default_name(source)
    if not NAME.fullmatch(name):
        raise UserError(f"mix has {shown(text)}; name it with letters and digits, such as name=chat", about="mix")
    weight = None
    if "weight" in options:
        weight = _number(options["weight"])
        if weight is None or not 0 < weight < math.inf:
            raise UserError(f"mix has {shown(text)}, whose weight must be a number above 0", about="mix")
    columns = tuple(options["columns"].split(";")) if "columns" in options else ()
    return Part(
        name, source, weight, options.get("split", ""), _held_out(options, text), options.get("layout", ""), columns
    )


def _held_out(options: dict[str, str], text: str) -> int | float | str | None:
    if "held_out" not in options:
        return None
    value = options["held_out"]
    number = _number(value)
    if number is None:
        return value
    if number >= 0 and number == int(number) and "." not in value:
        return int(number)
    if 0 < number < 1:
        return number
    raise UserError(
        f"mix has {shown(text)}, whose held_out must be a number of prompts, a share below 1, or a split", about="mix"
    )


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def default_name(source: str) -> str:
    """The last word of an address.

    >>> [default_name(one) for one in ("hf:org/name:config", "jsonl:chats/*.jsonl.gz", "disk:my data/saved/")]
    ['name', 'chats', 'saved']
    """
    address = source.partition(":")[2]
    words = [ENDINGS.sub("", re.split("[*?[:@]", word)[0]).strip("-_. ") for word in address.split("/")]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", next((word for word in reversed(words) if word), ""))
