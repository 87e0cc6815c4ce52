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

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qrpo_jax.data.rows import NO_TOKENS, Completion, Message, Row
from qrpo_jax.data.sources.listed import ListedRows
from qrpo_jax.data.sources.source import Source, SourceOptions
from qrpo_jax.errors import UserError

PAIR_SIDES = ("chosen", "rejected")
PAIR_REWARDS = {side: f"{side}_reward" for side in PAIR_SIDES}
KEYS = {"id", "prompt", "payload", "completions", "rewards", "reference_rewards", *PAIR_SIDES, *PAIR_REWARDS.values()}


def open_jsonl(settings: SourceOptions) -> Mapping[str, Source]:
    """Opens the file; stage `sft` learns from the rows that are trained on.

    Raises:
      UserError: about `path` or `held_out`; see `read_jsonl` and `split_rows`.
    """
    train, held_out = split_rows(read_jsonl(settings.path), settings.held_out, settings.count)
    return {"sft": ListedRows(train), "train": ListedRows(train), "eval": ListedRows(held_out)}


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
    """All rows of a file, in order.

    Raises:
      UserError: there is no such file, it is not UTF-8 or has no row; or, with file and line: not JSON, an unknown
        key, a repeated id, an empty prompt or completion, or a reward that is not a finite number.
    """
    rows: list[Row] = []
    line_of: dict[str, int] = {}
    # Not splitlines: it would also cut at separators that may occur inside JSON strings.
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = _parse(line, where, default_id=f"line-{number}")
        if row.id in line_of:
            raise _fault(where, f"id {row.id!r} is also that of line {line_of[row.id]}; give each line its own id")
        line_of[row.id] = number
        rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no row; at least one prompt is needed", about="path")
    return rows


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"no file {path}; name a JSON-lines file", about="path")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert the file", about="path"
        ) from None


def _fault(where: str, message: str) -> UserError:
    return UserError(f"{where}: {message}", about="path")


def _parse(line: str, where: str, default_id: str) -> Row:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise _fault(where, f"not JSON ({error.msg}); correct the line") from None
    if not isinstance(record, dict) or "prompt" not in record:
        raise _fault(where, "needs an object with a 'prompt'; correct the line")
    if unknown := record.keys() - KEYS:
        raise _fault(where, f"unknown key {min(unknown)!r}; allowed: {', '.join(sorted(KEYS))}")
    references = [_reward(value, where) for value in _list(record, "reference_rewards", where)]
    return Row(
        id=str(record["id"]) if "id" in record else default_id,
        messages=_messages(record["prompt"], where),
        payload=json.dumps(record["payload"]) if "payload" in record else "",
        completions=_completions(record, where),
        reference_rewards=np.asarray(references, np.float32),
    )


def _messages(prompt: Any, where: str) -> tuple[Message, ...]:
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    try:
        messages = tuple(Message(_text(turn["role"]), _text(turn["content"])) for turn in turns)
    except (TypeError, KeyError):
        raise _fault(where, "'prompt' must be text or a list of messages with role and content") from None
    if not any(message.content.strip() for message in messages):
        raise _fault(where, "the prompt is empty; give it content or remove the line")
    return messages


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
            raise _fault(where, f"a completion is {text!r}; it must be text that is not empty")
    scored = bool(record.keys() & {"rewards", *PAIR_REWARDS.values()})
    numbers = [_reward(reward, where) if scored else math.nan for reward in rewards]
    return tuple(
        Completion(text, NO_TOKENS, True, "dataset", number) for text, number in zip(texts, numbers, strict=True)
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _list(record: dict[str, Any], key: str, where: str) -> list[Any]:
    value = record.get(key, [])
    if not isinstance(value, list):
        raise _fault(where, f"{key!r} is {value!r}; it must be a list")
    return list(value)


def _reward(value: Any, where: str) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max:
        raise _fault(where, f"a reward is {value!r}; it must be a finite number")
    return float(value)
