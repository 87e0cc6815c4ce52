"""Prompts of a JSON-lines file, one a line, with completions and rewards where the file has them.

Keys of a line:

- `prompt`: text, or a list of chat messages with `role` and `content`.
- `id`: differs from line to line; by default `line-N`.
- `payload`: any JSON, which the reward function receives.
- `completions` (texts) and `rewards` (one number each).
- `chosen` and `rejected` (texts), `chosen_reward` and `rejected_reward` (numbers): a pair.
- `reference_rewards`: numbers of further reference completions whose text is not in the file.

All but `prompt` are optional.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.data.rows import LARGEST_REWARD, NO_TOKENS, Completion, Message, Row
from qrpo_jax.data.sources import json_lines
from qrpo_jax.data.sources.listed import ListedRows
from qrpo_jax.data.sources.source import Source, SourceOptions
from qrpo_jax.errors import UserError, shown

PAIR_SIDES = ("chosen", "rejected")
PAIR_REWARDS = {side: f"{side}_reward" for side in PAIR_SIDES}
KEYS = {"id", "prompt", "payload", "completions", "rewards", "reference_rewards", *PAIR_SIDES, *PAIR_REWARDS.values()}
MESSAGE_KEYS = ("role", "content")


class Lines(NamedTuple):
    """The rows of a file.

    Attributes:
      places: "FILE, line N" of each row, by its id.
      reversed_pairs: ids of rows whose chosen completion has the lower reward.
    """

    rows: tuple[Row, ...]
    places: Mapping[str, str]
    reversed_pairs: frozenset[str]


def open_jsonl(settings: SourceOptions) -> Mapping[str, Source]:
    """Opens the file; stage `sft` learns from the rows that are trained on.

    Raises:
      UserError: about `path` or `held_out`; see `read_lines` and `split_rows`.
    """
    lines = read_lines(settings.path)
    train, held_out = split_rows(lines.rows, settings.held_out, settings.count)
    left_out = len(lines.rows) - len(train) - len(held_out)
    known = lines.places, lines.reversed_pairs, left_out
    trained = ListedRows(train, *known)
    return {"sft": trained, "train": trained, "eval": ListedRows(held_out, *known)}


def split_rows(rows: Sequence[Row], held_out: int, count: int = 0) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows.

    Args:
      held_out: how many rows at the end are held out.
      count: how many rows at the beginning are trained on; 0 for all that are not held out.

    Raises:
      UserError: no row is left to train on.
    """
    rest = len(rows) - held_out
    if rest <= 0:
        raise UserError(f"held_out is {held_out} of {len(rows)} prompts; leave some to train on", about="held_out")
    return list(rows[: min(count, rest) if count else rest]), list(rows[rest:])


def read_jsonl(path: Path) -> list[Row]:
    """All rows of a file, in order; see `read_lines`."""
    return list(read_lines(path).rows)


def read_lines(path: Path) -> Lines:
    """All rows of a file, in order, and what else is known about its lines.

    Raises:
      UserError: see `json_lines.objects`; the file has no row; or, with file and line: an unknown key, a repeated id,
        an empty prompt or completion, or a reward that is not a number, or not finite in float32.
    """
    # Several checks and stages read the file; it is parsed again only where it has changed.
    return _read(path, *json_lines.version(path))


@functools.lru_cache(maxsize=2)
def _read(path: Path, *_: int) -> Lines:
    rows: list[Row] = []
    line_of: dict[str, int] = {}
    reversed_pairs = set()
    for number, record in json_lines.objects(path):
        where = f"{path}, line {number}"
        row = _row(record, where, default_id=f"line-{number}")
        if row.id in line_of:
            raise _fault(where, f"id {shown(row.id)} is also that of line {line_of[row.id]}; give each line its own id")
        line_of[row.id] = number
        rows.append(row)
        chosen, rejected = (record.get(PAIR_REWARDS[side], math.nan) for side in PAIR_SIDES)
        if chosen < rejected:
            reversed_pairs.add(row.id)
    if not rows:
        raise UserError(f"{path} holds no row; at least one prompt is needed", about="path")
    places = {row_id: f"{path}, line {number}" for row_id, number in line_of.items()}
    return Lines(tuple(rows), places, frozenset(reversed_pairs))


def _fault(where: str, message: str) -> UserError:
    return UserError(f"{where}: {message}", about="path")


def _row(record: dict[str, Any], where: str, default_id: str) -> Row:
    if "prompt" not in record:
        raise _fault(where, "needs an object with a 'prompt'; correct the line")
    if unknown := record.keys() - KEYS:
        raise _fault(where, f"unknown key {shown(min(unknown))}; allowed: {', '.join(sorted(KEYS))}")
    references = [_reward(value, where) for value in _list(record, "reference_rewards", where)]
    return Row(
        id=_id(record["id"], where) if "id" in record else default_id,
        messages=_messages(record["prompt"], where),
        payload=_payload(record["payload"], where) if "payload" in record else "",
        completions=_completions(record, where),
        reference_rewards=np.asarray(references, np.float32),
    )


def _id(value: Any, where: str) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise _fault(where, f"'id' is {shown(value)}; it must be text or a whole number")
    return str(value)


def _payload(value: Any, where: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        raise _fault(where, "'payload' holds NaN or an infinity, which is not JSON; correct the line") from None


def _messages(prompt: Any, where: str) -> tuple[Message, ...]:
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(turns, list):
        raise _fault(
            where, f"'prompt' must be text or a list of messages with role and content, and it is {shown(prompt)}"
        )
    messages = tuple(_message(turn, number, where) for number, turn in enumerate(turns, 1))
    if not any(message.content.strip() for message in messages):
        raise _fault(where, "the prompt is empty; give it content or remove the line")
    return messages


def _message(turn: Any, number: int, where: str) -> Message:
    role, content = (turn.get(key) for key in MESSAGE_KEYS) if isinstance(turn, dict) else (None, None)
    if not isinstance(role, str) or not isinstance(content, str) or not role:
        raise _fault(
            where,
            "'prompt' must be text or a list of messages with role and content, both text; "
            f"message {number} is {shown(turn)}",
        )
    # Without a value, a key such as "tool_calls" changes nothing.
    if ignored := {key for key, value in turn.items() if value is not None} - set(MESSAGE_KEYS):
        raise _fault(
            where,
            f"message {number} of 'prompt' has key {shown(min(ignored))}, which no chat template would get; "
            f"allowed: {', '.join(MESSAGE_KEYS)}",
        )
    return Message(role, content)


def _completions(record: dict[str, Any], where: str) -> tuple[Completion, ...]:
    """Those of `completions`, then chosen and rejected; unscored (NaN) if the line has no reward at all."""
    texts = _list(record, "completions", where)
    rewards = _list(record, "rewards", where) if "rewards" in record else [None] * len(texts)
    if len(rewards) != len(texts):
        raise _fault(where, f"{len(texts)} completions but {len(rewards)} rewards; give one reward each")
    for side, reward in PAIR_REWARDS.items():
        if side in record:
            texts.append(record[side])
            rewards.append(record.get(reward))
        elif reward in record:
            raise _fault(where, f"{reward!r} without {side!r}; give the completion too")
    for text in texts:
        if not isinstance(text, str) or not text:
            raise _fault(where, f"a completion is {shown(text)}; it must be text that is not empty")
    scored = bool(record.keys() & {"rewards", *PAIR_REWARDS.values()})
    numbers = [_reward(reward, where) if scored else math.nan for reward in rewards]
    return tuple(
        Completion(text, NO_TOKENS, True, "dataset", number) for text, number in zip(texts, numbers, strict=True)
    )


def _list(record: dict[str, Any], key: str, where: str) -> list[Any]:
    value = record.get(key, [])
    if not isinstance(value, list):
        raise _fault(where, f"{key!r} is {shown(value)}; it must be a list")
    return list(value)


def _reward(value: Any, where: str) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) <= LARGEST_REWARD:
        raise _fault(
            where, f"a reward is {shown(value)}; it must be a finite number of at most {LARGEST_REWARD:.2g} in size"
        )
    return float(value)
