"""The two ways in which lm-evaluation-harness takes the final number of an answer to GSM8K.

`strict`: behind the first "The answer is", or "####". `flexible`: the last number of all. Both compare text, without
commas, $ and a full stop at the end. The reward `answer` compares values and has a rule of its own (`rewards.answers`).
"""

import re

STRICT = re.compile(r"(?:The answer is|####) (-?[0-9.,]+)")
NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
IGNORED = re.compile(r"[,$]")


def strict(text: str) -> str | None:
    """The number behind the first mark; None without one.

    >>> strict("So 40 + 2. The answer is 42."), strict("#### 1,018"), strict("It is 42.")
    ('42', '1018', None)
    """
    found = STRICT.search(text)
    return None if found is None else bare(found[1])


def flexible(text: str) -> str | None:
    """The last number; None without one.

    >>> flexible("The answer is 42, of 50."), flexible("$1,200.00 in all"), flexible("many")
    ('50', '1200.00', None)
    """
    found = NUMBER.findall(text)
    return bare(found[-1]) if found else None


def bare(number: str) -> str:
    """A number without what a comparison ignores."""
    return IGNORED.sub("", number).removesuffix(".")
