"""What a judge is asked and what it answers: a template that is filled, and a grade that is read."""

import json
import math
import re
from collections.abc import Callable
from typing import Any

from qrpo_jax.data.rows import Row
from qrpo_jax.errors import UserError, shown
from qrpo_jax.rewards.functions import prompt_of
from qrpo_jax.servers.failures import BadAnswerError

FIELD = re.compile(r"\{(\w+(?:\.\w+)*)\}")  # JSON in a template has quotes behind its braces, and is none
# "8/10" and "8 out of 10" are the grade 8: what a grade is out of is none.
NUMBER = re.compile(r"(?<![\w./])(?<!/ )(?<!\d of )(?<!out of )[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?!\w)")
JSON, LAST = "json:", "number"
FOUND = 20  # objects of an answer that are tried as JSON, the last ones


def check_template(template: str) -> None:
    """Refuses a template without the completion, and fields that there are none of.

    Raises:
      UserError: about `prompt`.
    """
    fields = FIELD.findall(template)
    wrong = [field for field in fields if field.partition(".")[0] not in ("prompt", "completion", "payload")]
    wrong += [field for field in fields if "." in field and not field.startswith("payload.")]
    if wrong:
        raise UserError(
            f"the judge's template has the field {{{wrong[0]}}}; allowed: {{prompt}}, {{completion}}, {{payload}} and "
            "{payload.KEY}",
            about="prompt",
        )
    if "completion" not in fields:
        raise UserError("the judge's template has no field {completion}", about="prompt")


def fill(template: str, row: Row, completion: str, where: str = "") -> str:
    """A template with a row's texts in the place of its fields; braces in these texts stay as they are.

    Args:
      where: where the row stands, for messages; by default its id.

    Raises:
      UserError: the row's payload lacks a key.

    >>> fill("{prompt} {completion}", Row("r", (), "{}"), "{prompt}")
    ' {prompt}'
    """

    def text(found: re.Match[str]) -> str:
        field = found[1]
        if field == "prompt":
            return prompt_of(row)
        return completion if field == "completion" else _payload(row, field, where or f"row {row.id!r}")

    return FIELD.sub(text, template)


def _payload(row: Row, field: str, where: str) -> str:
    """The payload, or the value of one of its keys: text as it is, anything else as JSON."""
    if field == "payload":
        return row.payload
    try:
        value: Any = json.loads(row.payload)
        for key in field.split(".")[1:]:
            value = value[key]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{where}: its payload is {shown(row.payload)}, and the judge's template asks for {{{field}}}",
            about="prompt",
        ) from None
    return value if isinstance(value, str) else json.dumps(value)


def make_reader(grade: str, low: float, high: float) -> Callable[[str], float]:
    """From a judge's words to a reward from 0 to 1.

    Args:
      grade: "number", the last one of the answer, without what a grade is out of ("7/10"); "json:KEY" of the last
        object that has it; or a regular expression whose last match has the grade, in its group if it has one.
      low, high: grades that are the rewards 0 and 1. The reader raises `BadAnswerError` for others, and for none.

    Raises:
      UserError: about `grade`: no regular expression. About `low` and `high`: their order.
    """
    if not low < high:
        raise UserError(
            f"the judge's grades are from {low:g} to {high:g}; the lower one comes first", about=("low", "high")
        )
    expression = NUMBER
    if grade != LAST and not grade.startswith(JSON):
        try:
            expression = re.compile(grade, re.MULTILINE)
        except (re.error, OverflowError, RecursionError) as error:
            rule = f"'{LAST}', '{JSON}KEY' or a regular expression of Python: {error}"
            raise UserError(f"the judge's grade is {grade!r}; it must be {rule}", about="grade") from None

    def read(answer: str) -> float:
        if grade.startswith(JSON):
            value = _of_json(answer, grade.removeprefix(JSON))
        else:
            matches = list(expression.finditer(answer))
            value = matches[-1][1 if expression.groups else 0] if matches else None
        number = _number(value)
        if number is None:
            raise BadAnswerError(f"has no grade: {shown(answer[-200:])}")
        if not low <= number <= high:
            raise BadAnswerError(f"has the grade {number:g}, which is not from {low:g} to {high:g}")
        return (number - low) / (high - low)

    return read


def _of_json(answer: str, key: str) -> Any:
    """The value of a key in the last JSON object of an answer that has it; None if there is none."""
    decoder = json.JSONDecoder()
    for start in [found.start() for found in re.finditer(r"\{", answer)][: -FOUND - 1 : -1]:
        try:
            value, _ = decoder.raw_decode(answer, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and key in value:
            return value[key]
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
