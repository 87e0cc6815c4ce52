"""What a chat template writes around an answer, found by laying out one question and its answer."""

import os
import re
from typing import Any, NamedTuple

from qrpo_jax.data import thoughts
from qrpo_jax.data.chat_template import apply_template, reads_parts
from qrpo_jax.data.rows import Message
from qrpo_jax.errors import UserError

QUESTION, ANSWER, NEXT = "a", "An answer.", "b"  # the trial conversation
WHERE = "trial conversation"


class AnswerFrame(NamedTuple):
    """What a chat template writes around an answer."""

    prompt: str  # the prompt that asks QUESTION
    before: str  # everything before the answer in the whole conversation; prompt + lead, if that continues the prompt
    lead: str  # between prompt and answer: Mistral's space, the end of a thought that the prompt opened
    shown: str  # what `lead` decodes to: some tokenizers put a space after every special token
    tail: str  # everything after the answer: the end token, perhaps a line break after it
    close: str  # between the answer and the end token

    @property
    def continues(self) -> bool:
        """Whether the whole conversation begins with the prompt."""
        return self.before == self.prompt + self.lead


def try_template(
    tokenizer: Any, chat_template: str, control: re.Pattern, end_tokens: tuple[int, ...]
) -> tuple[AnswerFrame, tuple[int, ...]]:
    """Lays out one question and its answer.

    Args:
      control: matches strings of tokens that only the template may write.
      end_tokens: those that tokenizer and configs name.

    Returns:
      What the template writes around the answer (`shown` is `lead` still), and its end token, if it has one.

    Raises:
      UserError: the template refuses the conversation, leaves out the question or the answer, or reads contents only
        as lists of parts.
    """
    question, answer = Message("user", QUESTION), Message("assistant", ANSWER)
    how = {"add_generation_prompt": True, "tokenize": False}
    try:
        prompt = apply_template(tokenizer, chat_template, [question], WHERE, **how)
        whole = apply_template(tokenizer, chat_template, [question, answer], WHERE, tokenize=False)
        other = apply_template(tokenizer, chat_template, [Message("user", ANSWER)], WHERE, **how)
        shared = len(os.path.commonprefix([prompt, whole]))
        start = whole.find(ANSWER, shared)
        if prompt == other or start < 0:
            left_out = "a user's message" if prompt == other else "an assistant's answer"
            raise UserError(f"the tokenizer's chat template leaves out {left_out}; correct it", about="template")
    except UserError:
        if not reads_parts(tokenizer, chat_template):
            raise
        raise UserError(
            "the tokenizer's chat template reads contents only as lists of parts, as models of images do, and loses "
            "contents that are text; set the template to 'plain', or change the folder's template so that it writes "
            "text",
            about="template",
        ) from None
    before, tail = whole[:start], whole[start + len(ANSWER) :]
    lead = before[len(prompt) :] if whole.startswith(prompt) else _lead(prompt, before, shared)
    close, end = _end(tail, _following(tokenizer, chat_template), control, set(end_tokens), tokenizer)
    return AnswerFrame(prompt, before, lead, lead, tail, close), end


def _lead(prompt: str, before: str, shared: int) -> str:
    """What closes a thought that the prompt opened, where the whole conversation does not continue the prompt."""
    opened = thoughts.opening(prompt)
    if not opened:
        return ""
    # Nemotron's conversation closes the thought directly behind the mark, DeepSeek's has no thought at all.
    behind_mark = shared >= len(prompt.rstrip())
    return before[shared:] if behind_mark and thoughts.closes_one(before) else thoughts.closing(opened)


def _following(tokenizer: Any, chat_template: str) -> str:
    """What the template writes behind an answer that the user replies to; "" where there can be no reply."""
    turns = [Message("user", QUESTION), Message("assistant", ANSWER), Message("user", NEXT)]
    try:
        return str(apply_template(tokenizer, chat_template, turns, WHERE, tokenize=False)).partition(ANSWER)[2]
    except UserError:
        return ""


def _end(
    tail: str, following: str, control: re.Pattern, named: set[int], tokenizer: Any
) -> tuple[str, tuple[int, ...]]:
    """What stands between an answer and its end token, and this token; ("", ()) where there is none.

    Command R closes an answer with one token and the turn with another, the one that its config names. GLM writes
    nothing behind the last answer; the token that begins the user's reply ends it, and its config names that.
    """
    index = tokenizer.convert_tokens_to_ids
    both = list(control.finditer(os.path.commonprefix([tail, following])))
    for text, ends in ((tail, [m for m in both if index(m[0]) in named]), (tail, list(control.finditer(tail)))):
        if ends:
            return text[: ends[0].start()], (index(ends[0][0]),)
    reply = control.search(following)
    if reply and index(reply[0]) in named:
        return following[: reply.start()], (index(reply[0]),)
    return "", ()
