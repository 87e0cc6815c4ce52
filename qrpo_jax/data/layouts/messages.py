"""Messages of chats as data sets have them: with role and content, or with from and value."""

import json
from collections.abc import Sequence
from typing import Any

from qrpo_jax.data.layouts.layout import At
from qrpo_jax.data.rows import Message
from qrpo_jax.errors import shown

MESSAGE_KEYS = ("role", "content")
SHARED_KEYS = ("from", "value")  # of ShareGPT
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
ASSISTANT = "assistant"
NO_TEXT = "a message has no text"


def read_prompt(value: Any, at: At, key: str = "prompt") -> tuple[Message, ...]:
    """A prompt: text, which is one message of the user, or messages."""
    value = decoded(value, at)
    turns = (Message("user", value),) if isinstance(value, str) else read_messages(value, at, key)
    if not any(message.content.strip() for message in turns):
        raise at.unusable("the prompt is empty", "the prompt is empty; give it content or remove the line")
    return turns


def read_messages(value: Any, at: At, key: str) -> tuple[Message, ...]:
    """Messages of a list; outside of strict layouts also one message alone, and a dict of lists.

    Raises:
      UserError: it is something else.
      DroppedError: a message has no text, or calls a tool.
    """
    turns = value if at.strict else _listed(decoded(value, at))
    if not isinstance(turns, list):
        rule = "must be text or a list of messages with role and content"
        raise at.fault(f"{at.column(key)} {rule}, and it is {shown(value)}")
    read = _own_message if at.strict else _message
    return tuple(read(turn, number, at, key) for number, turn in enumerate(turns, 1))


def decoded(value: Any, at: At) -> Any:
    """Messages that are stored as JSON in text, as where all columns are text; another value as it is."""
    if at.strict or not isinstance(value, str) or not value.startswith("[{"):
        return value
    try:
        turns = json.loads(value)
    except (ValueError, RecursionError):
        return value
    named = [
        isinstance(turn, dict) and (turn.keys() >= {*MESSAGE_KEYS} or turn.keys() >= {*SHARED_KEYS}) for turn in turns
    ]
    return turns if all(named) else value


def read_answer(value: Any, at: At, key: str) -> str | tuple[Message, ...]:
    """An answer: text that is not empty, or messages of which the last one is an assistant's."""
    value = decoded(value, at)
    if value is None and not at.strict:
        raise at.unusable(f"{at.column(key)} has one that is missing")
    if isinstance(value, str):
        if not value:
            raise at.unusable(
                f"{at.column(key)} is empty", f"a completion is {value!r}; it must be text that is not empty"
            )
        return value
    if not isinstance(value, list | dict):
        raise at.fault(f"a completion is {shown(value)}; it must be text that is not empty")
    turns = read_messages(value, at, key)
    if not turns or turns[-1].role != ASSISTANT or not turns[-1].content:
        raise at.unusable(f"{at.column(key)} does not end with an answer")
    return turns


def after_prompt(prompt: Sequence[Message], turns: tuple[Message, ...]) -> tuple[tuple[Message, ...], str]:
    """The messages before the last one, which is the answer, and its text.

    Messages that begin with an assistant's continue the prompt; others are the whole conversation, which repeats it.
    """
    *head, answer = turns
    if not head or head[0].role == ASSISTANT:
        return (*prompt, *head), answer.content
    system = [message for message in prompt if message.role == "system"] if head[0].role != "system" else []
    return (*system, *head), answer.content


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(isinstance(one, list) for one in value.values()):
        return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    return [value]


def _own_message(turn: Any, number: int, at: At, key: str) -> Message:
    role, content = (turn.get(name) for name in MESSAGE_KEYS) if isinstance(turn, dict) else (None, None)
    if not isinstance(role, str) or not isinstance(content, str) or not role:
        raise at.fault(
            f"{at.column(key)} must be text or a list of messages with role and content, both text; "
            f"message {number} is {shown(turn)}"
        )
    # Without a value, a key such as "tool_calls" changes nothing.
    if ignored := {name for name, value in turn.items() if value is not None} - set(MESSAGE_KEYS):
        raise at.fault(
            f"message {number} of {at.column(key)} has key {shown(min(ignored))}, which no chat template would get; "
            f"allowed: {', '.join(MESSAGE_KEYS)}"
        )
    return Message(role, content)


def _message(turn: Any, number: int, at: At, key: str) -> Message:
    names = SHARED_KEYS if isinstance(turn, dict) and "from" in turn else MESSAGE_KEYS
    role, content = (turn.get(name) for name in names) if isinstance(turn, dict) else (None, None)
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if isinstance(turn, dict) and turn.get("tool_calls"):
        raise at.unusable("a message calls a tool")
    if content is None and isinstance(role, str):
        raise at.unusable(NO_TEXT)
    if not isinstance(role, str) or not isinstance(content, str):
        rule = f"must have {' and '.join(names)}, both text"
        raise at.fault(f"message {number} of {at.column(key)} {rule}, and it is {shown(turn)}")
    return Message(ROLES.get(role, role), content)
