"""Pairs of answers to one prompt, with the prompt apart (explicit) or at the beginning of both (implicit)."""

import os
import re
from collections.abc import Sequence

from qrpo_jax.data.layouts.layout import PAIR_SIDES, At
from qrpo_jax.data.layouts.messages import after_prompt
from qrpo_jax.data.rows import Message

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
TURN = re.compile(r"\n\nHuman: ?|\n\nAssistant: ?")  # Anthropic's HH writes dialogues so
Answer = str | tuple[Message, ...]
OTHER_PROMPTS = "chosen and rejected answer different prompts"
NO_PROMPT = "there is no prompt"


def split_pair(
    prompt: Sequence[Message], chosen: Answer, rejected: Answer, at: At
) -> tuple[tuple[Message, ...], tuple[str, str]]:
    """The prompt of a pair, and both answers.

    Args:
      prompt: the explicit one; empty if there is none.
      chosen, rejected: text, or messages that end with an assistant's.

    Raises:
      UserError: one is text and the other is messages.
      DroppedError: their prompts differ, or there is none.
    """
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt:
            return tuple(prompt), (chosen, rejected)
        return _split_texts(chosen, rejected, at)
    if isinstance(chosen, str) or isinstance(rejected, str):
        columns = " and ".join(map(at.column, PAIR_SIDES))
        raise at.fault(f"{columns} must both be text, or both be messages")
    (first, better), (second, worse) = (after_prompt(prompt, turns) for turns in (chosen, rejected))
    if first != second:
        raise at.unusable(OTHER_PROMPTS)
    if not any(message.content.strip() for message in first):
        raise at.unusable(NO_PROMPT)
    return first, (better, worse)


def _split_texts(chosen: str, rejected: str, at: At) -> tuple[tuple[Message, ...], tuple[str, str]]:
    """Texts that begin with the same prompt: dialogues, else cut at a space of what they share."""
    dialogues = [list(TURN.finditer(text)) for text in (chosen, rejected)]
    if all(turns and turns[-1][0].startswith("\n\nAssistant") for turns in dialogues):
        heads = [text[: turns[-1].end()] for text, turns in zip((chosen, rejected), dialogues, strict=True)]
        if heads[0] != heads[1]:
            raise at.unusable(OTHER_PROMPTS)
        better, worse = (text[len(heads[0]) :] for text in (chosen, rejected))
        messages = _dialogue(heads[0])
    else:
        shared = os.path.commonprefix([chosen, rejected])
        if len(shared) < min(len(chosen), len(rejected)):
            shared = shared[: max((shared.rfind(blank) for blank in " \n"), default=-1) + 1]
        shared = shared.rstrip()
        better, worse = chosen[len(shared) :], rejected[len(shared) :]
        messages = (Message("user", shared),)
    if not any(message.content.strip() for message in messages):
        raise at.unusable(NO_PROMPT)
    if not better or not worse:
        raise at.unusable("an answer is empty")
    return messages, (better, worse)


def _dialogue(text: str) -> tuple[Message, ...]:
    """The messages of a dialogue that ends with "Assistant:"."""
    turns = list(TURN.finditer(text))
    messages = []
    for turn, after in zip(turns, turns[1:], strict=False):
        speaker = turn[0].strip().rstrip(":").strip()
        messages.append(Message(SPEAKERS[speaker], text[turn.end() : after.start()].strip()))
    return tuple(messages)
