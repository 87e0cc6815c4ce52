"""Where prompts come from: rows before anything has been sampled or scored."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qrpo_jax.data import programs
from qrpo_jax.data.rows import Completion, Message, Row

SOURCES = ("programs", "jsonl", "model")
NO_REWARDS = np.zeros(0, np.float32)
NO_TOKENS = np.zeros(0, np.int32)


def program_row(seed: int, split: str, index: int) -> Row:
    """A programming problem: the prompt shows calls, the payload holds the hidden tests."""
    problem = programs.problem(seed, split, index)
    return Row(
        id=f"{split}-{index}",
        messages=(Message("user", problem.prompt),),
        payload=json.dumps({"tests": problem.tests}),
        completions=(),
        reference_rewards=NO_REWARDS,
    )


def program_solution_row(seed: int, split: str, index: int) -> Row:
    """The same kind of problem with what the SFT corpus answers, to learn from."""
    problem = programs.problem(seed, split, index)
    solution = Completion(problem.demonstration, NO_TOKENS, True, "dataset")
    row = program_row(seed, split, index)
    return Row(row.id, row.messages, row.payload, (solution,), row.reference_rewards)


def text_row(row_id: str, text: str) -> Row:
    return Row(row_id, (Message("user", text),), "", (), NO_REWARDS)


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a JSON-lines file, one prompt a line.

    Keys: `prompt` (text, or chat messages with role and content); optional `id`, `payload` (any JSON, handed to
    the reward), `completions` (texts) with `rewards` (numbers), `chosen` and `rejected` (texts) with
    `chosen_reward` and `rejected_reward`, `reference_rewards` (numbers).

    Raises:
      ValueError: naming file and line: not JSON, an unknown key, an id given twice, an empty prompt or
        completion, or a reward that is no number.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}; set config.prompts.path to a JSON-lines file")
    rows = []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); mend the file") from None
    # Not splitlines, which would also cut at separators that JSON strings may hold as they are.
    seen: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error.msg}); mend the file") from None
        row = _record_row(record, where, f"line-{number}")
        if row.id in seen:
            raise ValueError(
                f"{where}: id {row.id!r} is also that of line {seen[row.id]}; ids must differ, mend the file"
            )
        seen[row.id] = number
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no row; at least one prompt is needed (config.prompts.path)")
    return rows


KEYS = {"id", "prompt", "payload", "completions", "rewards", "reference_rewards"}
PAIR_KEYS = {"chosen", "rejected", "chosen_reward", "rejected_reward"}


def _record_row(record: Any, where: str, default_id: str) -> Row:
    if not isinstance(record, dict) or "prompt" not in record:
        raise ValueError(f"{where}: needs an object with a 'prompt'; mend the file")
    if unknown := set(record) - KEYS - PAIR_KEYS:
        allowed = ", ".join(sorted(KEYS | PAIR_KEYS))
        raise ValueError(f"{where}: unknown key {min(unknown)!r}; allowed: {allowed}")
    prompt = record["prompt"]
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    try:
        messages = tuple(Message(_text(turn["role"]), _text(turn["content"])) for turn in turns)
    except (TypeError, KeyError):
        raise ValueError(f"{where}: 'prompt' must be text or a list of messages with role and content") from None
    if not any(message.content.strip() for message in messages):
        raise ValueError(f"{where}: the prompt is empty; give it content or remove the line")
    texts = _list(record, "completions", where)
    rewards = _list(record, "rewards", where) if "rewards" in record else [None] * len(texts)
    if len(rewards) != len(texts):
        raise ValueError(f"{where}: {len(texts)} completions but {len(rewards)} rewards; give one reward each")
    for side in ("chosen", "rejected"):
        if side in record:
            texts.append(record[side])
            rewards.append(record.get(f"{side}_reward"))
        elif f"{side}_reward" in record:
            raise ValueError(f"{where}: '{side}_reward' without '{side}'; give the completion too")
    for text in texts:
        if not isinstance(text, str) or not text:
            raise ValueError(f"{where}: a completion is {text!r}; it must be text that is not empty, mend the file")
    given = "rewards" in record or any(f"{side}_reward" in record for side in ("chosen", "rejected"))
    numbers = [math.nan if r is None and not given else _number(r, where) for r in rewards]
    completions = tuple(
        Completion(text, NO_TOKENS, True, "dataset", reward) for text, reward in zip(texts, numbers, strict=True)
    )
    references = _list(record, "reference_rewards", where)
    return Row(
        id=str(record["id"]) if "id" in record else default_id,
        messages=messages,
        payload=json.dumps(record["payload"]) if "payload" in record else "",
        completions=completions,
        reference_rewards=np.asarray([_number(r, where) for r in references], np.float32),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _list(record: dict[str, Any], key: str, where: str) -> list[Any]:
    value = record.get(key, [])
    if not isinstance(value, list):
        raise ValueError(f"{where}: {key!r} is {value!r}; it must be a list, mend the file")
    return list(value)


def _number(value: Any, where: str) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise ValueError(f"{where}: a reward is {value!r}; it must be a finite number, mend the file")
    return float(value)


def split_rows(rows: Sequence[Row], held_out: int, count: int = 0) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows: the last `held_out` prompts are held out, of the others the first `count` (0: all).

    Raises:
      ValueError: nothing would be left to train on.
    """
    if held_out >= len(rows):
        raise ValueError(f"held_out is {held_out} of {len(rows)} prompts; leave some to train on (config.prompts)")
    train = list(rows[: len(rows) - held_out])
    return train[:count] if count else train, list(rows[len(rows) - held_out :])
