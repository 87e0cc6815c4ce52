"""Answers that are numbers: which number a completion ends with, and whether it is the one in the row's payload.

The final answer stands behind the last mark, of the first kind of mark that has an answer behind it on its line:

1. `####`, as the solutions of GSM8K end (github.com/openai/grade-school-math, dataset.py: `#### (\\-?[0-9\\.\\,]+)`);
2. `\\boxed{`;
3. `A:` at the start of a line with a number right behind it, as GSM8K's example solutions end;
4. `answer is` and `answer:`.

It is the first number on that line, behind the last `=` if there is one. What is part of an expression, such as 2^3 or
2 + 3, is no answer. Without a mark the answer is the last number of all.

lm-evaluation-harness grades GSM8K in two ways: filter "strict-match" wants `####`, "flexible-extract" takes the last
number; both compare text without commas and $. Here values are compared, as exact fractions: 18.0, 36/2 and $18 are 18,
and 0.33 is not 1/3. A unit or % behind a number is not part of it: 50% is 50.
"""

import json
import re
from contextlib import suppress
from fractions import Fraction
from typing import Any

from qrpo_jax.data.rows import Row
from qrpo_jax.errors import UserError
from qrpo_jax.rewards.code_reward import PASSED, Judged

WRONG, NO_ANSWER = "wrong", "no answer"  # verdicts
MOST_DIGITS = 400  # of a number; a longer one is none
NEAR = 200  # characters behind a mark that are looked at
MOST_MARKS = 10  # of a kind that are looked at, the last ones

WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
DECIMAL = rf"(?:{WHOLE}(?:\.\d+)?|\.\d+)"
SIGN = r"(?P<sign>(?<![\w.)\]}])[-−+])?(?:\\?[$€£]\s?(?P<second>[-−])?)?"
FRACTION = rf"\\[dt]?frac\s?\{{\s?(?P<top>{DECIMAL})\s?\}}\s?\{{\s?(?P<bottom>{DECIMAL})\s?\}}"
PLAIN = rf"(?<![\w.])(?P<number>{DECIMAL})(?:[eE](?P<power>[+-]?\d{{1,2}})(?!\w))?(?:\s?/\s?(?P<over>{DECIMAL}))?"
NUMBER = re.compile(rf"{SIGN}(?:{FRACTION}|{PLAIN})")
MARKS = (
    re.compile(r"####"),
    re.compile(r"\\boxed\s?\{"),
    re.compile(rf"^[ \t]*A:(?=\s*{NUMBER.pattern})", re.MULTILINE),
    re.compile(r"\banswer(?: is\b|\s?:)", re.IGNORECASE),
)
# Around a number, they make it part of an expression; `*` before it is a sign of bold text.
BEFORE = re.compile(r"\\(?:sqrt|pi|cdot|times|div|pm|log)|[√×·^]|\d")
AFTER = re.compile(r"\s*(?:\\(?:sqrt|pi|cdot|times|div|pm)|[√×·^/+]|\*(?!\*)|[-−]\s*\d|\d|[xyz]\b)")


def read_answer(row: Row, where: str = "") -> Fraction:
    """The number in a row's payload, `{"answer": "18"}`.

    Args:
      where: where the row stands, for messages; by default its id.

    Raises:
      UserError: the payload is not of this form.
    """
    payload: Any = None
    with suppress(ValueError):
        payload = json.loads(row.payload)
    answer = payload.get("answer") if isinstance(payload, dict) else None
    found = NUMBER.match(str(answer).strip()) if type(answer) in (str, int, float) else None
    number = _value(found) if found else None
    if number is None or AFTER.match(str(answer).strip(), found.end() if found else 0):
        raise UserError(
            f"{where or f'row {row.id!r}'}: its payload is {row.payload[:40]!r}, reward 'answer' needs "
            '{"answer": "18"} with a number (docs/data.md); correct the prompts, or set another reward: math_verify'
        )
    return number


def judge(row: Row) -> list[Judged]:
    """What became of each completion of a row: reward 1 for the right answer, else 0.

    Raises:
      UserError: a payload without an answer.
    """
    answer = read_answer(row)
    verdicts = [verdict(completion.text, answer) for completion in row.completions]
    return [Judged(float(one == PASSED), one) for one in verdicts]


def verdict(completion: str, answer: Fraction) -> str:
    """Whether a completion ends with `answer`.

    >>> [verdict(text, Fraction(18)) for text in ("That is 2 * 9 = $18.00 a day.", "A: 81", "eighteen")]
    ['passed', 'wrong', 'no answer']
    """
    found = final_answer(completion)
    if found is None:
        return NO_ANSWER
    return PASSED if found == answer else WRONG


def final_answer(text: str) -> Fraction | None:
    """The number that a text ends with, by the rule above; None without one.

    >>> [str(final_answer(text)) for text in ("7 of 9\\n#### 1,018", r"\\boxed{\\frac{1}{2}}", "3/4 of it, or 75%.")]
    ['1018', '1/2', '75']
    """
    for mark in MARKS:
        for found in reversed(list(mark.finditer(text))[-MOST_MARKS:]):
            line = text[found.end() : found.end() + NEAR].lstrip().partition("\n")[0].rpartition("=")[2]
            if number := NUMBER.search(line):
                apart = not BEFORE.search(line[: number.start()]) and not AFTER.match(line, number.end())
                return _value(number) if apart else None
    numbers = [number for number in map(_value, NUMBER.finditer(text)) if number is not None]
    return numbers[-1] if numbers else None


def _value(number: re.Match[str]) -> Fraction | None:
    """The value of a `NUMBER`; None for one that is too long, or that divides by 0."""
    if number.end() - number.start() > MOST_DIGITS:
        return None
    top, bottom = (number[name] or number[other] or "1" for name, other in (("number", "top"), ("over", "bottom")))
    value = Fraction(top.replace(",", "")) * Fraction(10) ** int(number["power"] or 0)
    divisor = Fraction(bottom.replace(",", ""))
    if not divisor:
        return None
    negative = (number["sign"] or "") in ("-", "−") or number["second"] is not None
    return (-value if negative else value) / divisor
