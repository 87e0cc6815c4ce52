"""What a chat template does to conversations that its user may not expect, in words."""

from typing import Any

from qrpo_jax.data import thoughts
from qrpo_jax.data.answer_frame import ANSWER, QUESTION, AnswerFrame
from qrpo_jax.data.chat_template import DATE, apply_template, reads_date
from qrpo_jax.data.rows import Message
from qrpo_jax.errors import UserError

SYSTEM, THOUGHT, NEXT = "Be brief.", "Because.", "And then?"


def template_notes(tokenizer: Any, chat_template: str, frame: AnswerFrame, ends: bool) -> tuple[str, ...]:
    """One clause each, for a line that begins with "the chat template".

    Args:
      ends: whether the template writes an end token.
    """
    user, answer, reply = Message("user", QUESTION), Message("assistant", ANSWER), Message("user", NEXT)
    padded = f"  {ANSWER} \n"

    def written(*messages: Message, prompt: bool = True) -> str | None:
        options = {"add_generation_prompt": prompt, "tokenize": False}
        try:
            return str(apply_template(tokenizer, chat_template, messages, "trial conversation", **options))
        except UserError:
            return None  # a row with such messages is refused, with the template's own reason

    notes = _about_thoughts(frame)
    if not ends:
        notes.append("writes no end token after an answer, so answers end with the tokenizer's")
    if (text := written(Message("system", SYSTEM), user)) is not None and SYSTEM not in text:
        notes.append("leaves out system messages")
    for mark, close in thoughts.MARKS:
        thinking = Message("assistant", f"{mark}\n{THOUGHT}\n{close}\n\n{ANSWER}")
        if (text := written(user, thinking, reply)) is not None and THOUGHT not in text:
            notes.append(f"leaves thoughts ({mark}) out of earlier answers")
    asked, answered = written(Message("user", padded)), written(user, Message("assistant", padded), prompt=False)
    replied = written(user, answer, reply)
    if replied is not None and ANSWER not in replied:
        notes.append("leaves out earlier answers")
    stripped = [name for name, text in (("questions", asked), ("answers", answered)) if text and padded not in text]
    if stripped:
        notes.append(f"strips white space around {' and '.join(stripped)}")
    if reads_date(chat_template):
        notes.append(f"writes a date, always {DATE:%d %b %Y}")
    return tuple(notes)


def _about_thoughts(frame: AnswerFrame) -> list[str]:
    opened = thoughts.opening(frame.prompt)
    if opened and thoughts.has_marks(frame.lead):
        own = "as in its own conversations"
        if not frame.continues:
            empty = frame.before[frame.before.rfind(opened.rstrip()) :] if thoughts.closes_one(frame.before) else ""
            own = f"where its own conversations have {repr(empty) if empty else 'none'}"
        return [
            f"opens a thought in every prompt ({opened!r}), so an answer that brings none is trained behind the end of "
            f"an empty one ({frame.lead!r}), {own}; with thinking 'off' the prompt ends it"
        ]
    if opened:
        return [
            f"opens a thought in every prompt ({opened!r}), and its own conversations do not end it: an answer that "
            "brings no thought is trained inside one; with thinking 'off' the prompt ends it"
        ]
    notes = []
    if not frame.continues:
        notes.append(
            f"ends prompts with {frame.prompt[-24:]!r} where its own conversations have {frame.before[-24:]!r} before "
            "an answer; answers follow the prompt"
        )
    if thoughts.closes_one(frame.prompt):
        notes.append("ends prompts behind a thought that it closed; a thought that an answer brings comes after it")
    return notes
