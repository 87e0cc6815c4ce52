"""The row of a record: its values by key, checked, whatever layout they came from."""

import json
import math
from decimal import Decimal
from typing import Any

import numpy as np

from qrpo_jax.data.layouts.layout import KEYS, PAIR_REWARDS, PAIR_SIDES, At, Values
from qrpo_jax.data.layouts.log_probs import UNKNOWN, pair_log_probs
from qrpo_jax.data.layouts.messages import ASSISTANT, after_prompt, read_answer, read_messages, read_prompt
from qrpo_jax.data.layouts.pairs import split_pair
from qrpo_jax.data.layouts.run_columns import with_run_columns
from qrpo_jax.data.rows import LARGEST_REWARD, NO_TOKENS, Completion, Message, Row
from qrpo_jax.errors import shown


def read_row(values: Values, at: At, default_id: str, written_by: str = "dataset") -> Row:
    """The row of a record.

    Args:
      values: by `KEYS` and `FURTHER`.
      default_id: of the row, if the record has none.
      written_by: `Completion.source` of `completions`.

    Raises:
      UserError: a value has another type than its key, or is missing, with place and column.
      DroppedError: a row that is not strict lacks prompt or answer.
    """
    for side, reward in PAIR_REWARDS.items():
        if reward in values and side not in values:
            raise at.fault(f"{at.column(reward)} without {at.column(side)}; give the completion too")
    messages, answers, rewards = _completions(values, at)
    sources = [written_by] * len(answers)
    preferences: tuple[tuple[int, int], ...] = ()
    sides = [side for side in PAIR_SIDES if side in values]
    log_probs = [UNKNOWN] * len(answers) + pair_log_probs(values, at, sides)
    if any(side in values for side in PAIR_SIDES):
        messages, pair, scores = _pair(values, messages, at)
        if len(pair) == 2 and not scores:
            preferences = ((len(answers), len(answers) + 1),)
        rewards = _both(rewards, len(answers), scores, len(pair), at)
        answers, sources = [*answers, *pair], [*sources, *["dataset"] * len(pair)]
    if not messages:
        raise at.fault(
            "needs an object with a 'prompt'; correct the line" if at.strict else "there is no prompt column"
        )
    numbers = rewards or [math.nan] * len(answers)
    references = [_reward(value, at) for value in _list(values, "reference_rewards", at)]
    row = Row(
        id=_id(values["id"], at) if "id" in values else default_id,
        messages=messages,
        payload=_payload(values["payload"], at) if "payload" in values else "",
        completions=tuple(
            Completion(text, NO_TOKENS, True, source, number, reference_log_prob=log_prob)
            for text, source, number, log_prob in zip(answers, sources, numbers, log_probs, strict=True)
        ),
        reference_rewards=np.asarray(references, np.float32),
        preferences=preferences,
    )
    return with_run_columns(row, values, at)


def check_keys(values: Values, at: At) -> None:
    """Refuses a record without a prompt, and keys that do not exist, such as misspelled ones.

    Raises:
      UserError: naming the first of them.
    """
    if "prompt" not in values:
        raise at.fault("needs an object with a 'prompt'; correct the line")
    if unknown := values.keys() - set(KEYS):
        raise at.fault(f"unknown key {shown(min(unknown))}; allowed: {', '.join(sorted(KEYS))}")


def is_reversed(values: Values) -> bool:
    """Whether the chosen answer of a record has the lower reward."""
    chosen, rejected = (values.get(reward) for reward in PAIR_REWARDS.values())
    return isinstance(chosen, int | float) and isinstance(rejected, int | float) and chosen < rejected


def _prompt(values: Values, at: At) -> tuple[Message, ...]:
    """The explicit prompt; empty without one."""
    messages = read_prompt(values["prompt"], at) if "prompt" in values else ()
    system = values.get("system")
    if system is not None and not isinstance(system, str):
        raise at.fault(f"{at.column('system')} is {shown(system)}; it must be text")
    return (Message("system", system), *messages) if system else messages


def _completions(values: Values, at: At) -> tuple[tuple[Message, ...], list[str], list[float]]:
    """The prompt, all answers but those of a pair, and their rewards; no rewards if the record has none."""
    messages = _prompt(values, at)
    answers, rewards = _texts(values, at), []
    if "rewards" in values:
        numbers = _list(values, "rewards", at)
        if len(numbers) != len(answers):
            raise at.fault(f"{len(answers)} completions but {len(numbers)} rewards; give one reward each")
        # A run scores the completions that it sampled after those that its data set brought.
        rewards = [math.nan if number is None and "sources" in values else _reward(number, at) for number in numbers]
    if "conversation" in values:
        turns = read_messages(values["conversation"], at, "conversation")
        if turns and turns[-1].role == ASSISTANT and not any(side in values for side in PAIR_SIDES):
            messages, answer = after_prompt(messages, turns)
            answers = [answer]
            if not answer:
                raise at.unusable("the answer is empty")
        else:
            messages = (*messages, *turns)
        if not any(message.content.strip() for message in messages if message.role != "system"):
            raise at.unusable("the prompt is empty")
    elif "completion" in values:
        given = read_answer(values["completion"], at, "completion")
        messages, answer = (messages, given) if isinstance(given, str) else after_prompt(messages, given)
        answers = [answer]
        rewards = [_label(values["label"], at)] if "label" in values else []
    return messages, answers, rewards


def _texts(values: Values, at: At) -> list[str]:
    texts = []
    for value in _list(values, "completions", at):
        if at.strict and not isinstance(value, str):
            raise at.fault(f"a completion is {shown(value)}; it must be text that is not empty")
        if value == "" and "token_ids" in values:  # a model may end its text at once
            texts.append(value)
            continue
        answer = read_answer(value, at, "completions")
        texts.append(answer if isinstance(answer, str) else answer[-1].content)
    return texts


def _pair(
    values: Values, prompt: tuple[Message, ...], at: At
) -> tuple[tuple[Message, ...], tuple[str, ...], list[float]]:
    """The prompt of a pair, its answers and their rewards; one side alone is a completion."""
    there = [side for side in PAIR_SIDES if side in values]
    scored = any(reward in values for reward in PAIR_REWARDS.values())
    scores = [_reward(values.get(PAIR_REWARDS[side]), at) for side in there] if scored else []
    if len(there) < 2 and not at.strict:
        raise at.unusable(f"{at.column('chosen' if there == ['rejected'] else 'rejected')} is missing")
    sides = [read_answer(values[side], at, side) for side in there]
    if len(sides) == 2:
        messages, texts = split_pair(prompt, sides[0], sides[1], at)
        if texts[0] == texts[1] and not at.strict:
            raise at.unusable("chosen and rejected are the same text")
        return messages, texts, scores
    (answer,) = sides
    messages, text = (prompt, answer) if isinstance(answer, str) else after_prompt(prompt, answer)
    return messages, (text,), scores


def _both(rewards: list[float], count: int, scores: list[float], pair: int, at: At) -> list[float]:
    """Rewards of `count` completions and of the `pair` after them; all are scored, or none is."""
    if not rewards and not scores:
        return []
    if (count and not rewards) or not scores:
        raise at.fault("a reward is None; give all completions of the row a reward, or none")
    return [*rewards, *scores]


def _id(value: Any, at: At) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise at.fault(f"'id' is {shown(value)}; it must be text or a whole number")
    return str(value)


def _payload(value: Any, at: At) -> str:
    try:
        return json.dumps(value, allow_nan=False, sort_keys=True)  # files with types have an order of their own
    except ValueError:
        raise at.fault("'payload' holds NaN or an infinity, which is not JSON; correct the line") from None
    except TypeError:
        raise at.fault(f"'payload' is {shown(value)}, which JSON cannot hold; make it text") from None


def _list(values: Values, key: str, at: At) -> list[Any]:
    value = values.get(key, [])
    if not isinstance(value, list):
        raise at.fault(f"{at.column(key)} is {shown(value)}; it must be a list")
    return list(value)


def _label(value: Any, at: At) -> float:
    if value not in (True, False):
        raise at.fault(f"{at.column('label')} is {shown(value)}; it must be true or false")
    return float(value)


def _reward(value: Any, at: At) -> float:
    if not at.strict and (value is None or (isinstance(value, float) and math.isnan(value))):
        raise at.unusable("a reward is missing")
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if not is_number or not abs(value) <= LARGEST_REWARD:
        raise at.fault(
            f"a reward is {shown(value)}; it must be a finite number of at most {LARGEST_REWARD:.2g} in size"
        )
    return float(value)
