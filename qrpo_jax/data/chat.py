"""The chat layout: a tokenizer's own chat template, and what one trial conversation shows about it.

- Prompts are what `apply_chat_template(..., add_generation_prompt=True)` gives, token by token. The template alone
  decides about the beginning-of-sequence token; nothing adds a second one.
- A string that looks like a special token is plain text wherever a message or a completion holds it, so no text can
  forge the end of a message; `special_strings` counts them. Marks that are plain text in a template, such as Tülu's
  `<|user|>`, cannot be distinguished from text.
- A completion is the answer as the template writes it (some templates strip it), followed by the template's own end
  token if the completion ended. Whatever the template writes after the end token is neither trained on nor sampled.
- Prompt and completion equal, token by token, the template's whole conversation up to the end token, with two
  exceptions: strings that look special, and an answer whose first characters would merge with the last ones of the
  prompt. Such an answer is encoded on its own, as it would have been sampled.
- Templates that write today's date write DATE, so that a run that resumes tomorrow reads the same tokens.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from jinja2 import TemplateError

from qrpo_jax.data.encoder import CONTEXTS, Encoder, any_of, check_end_tokens, make_encoder, special_tokens
from qrpo_jax.data.rows import Message
from qrpo_jax.errors import UserError, reason

DATE = datetime(2024, 7, 26)  # the fallback date of Llama 3.1 templates
QUESTION, ANSWER = "a", "An answer."  # the trial conversation
# A template is code of the folder, run in a sandbox. Whatever it raises is the folder's fault.
TEMPLATE_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


class AnswerFrame(NamedTuple):
    """What a chat template writes around an answer."""

    prompt: str  # everything before the answer to QUESTION
    lead: str  # between the prompt and the answer: Mistral's space
    shown: str  # what `lead` decodes to: some tokenizers put a space after every special token
    tail: str  # everything after the answer: the end token, perhaps a line break after it
    close: str  # the part of the tail before the end token


@dataclass(frozen=True)
class ChatText:
    """A tokenizer with its chat template. Made by `chat_text`.

    Attributes:
      encoder: the tokenizer and the contexts that completions are encoded behind.
      end_tokens: all tokens that end a completion; the first closes completions that are given as text.
      chat_template: the tokenizer's, with the date pinned.
      frame: what the template writes around an answer.
      special: matches strings of special tokens.
      control: matches these, and strings of added tokens that the template writes.
    """

    encoder: Encoder
    end_tokens: tuple[int, ...]
    chat_template: str
    frame: AnswerFrame
    special: re.Pattern
    control: re.Pattern

    @property
    def tokenizer(self) -> Any:
        return self.encoder.tokenizer

    def prompt(self, messages: Sequence[Message], where: str = "prompt") -> np.ndarray:
        """Tokens int32 [L] that the policy is conditioned on, special tokens included exactly once.

        Args:
          where: what an error names, such as "row 'ID'".

        Raises:
          UserError: the chat template refuses the messages, or the last one is an assistant's.
        """
        _check_last(messages, where)
        return self._tokens(messages, where, add_generation_prompt=True)

    def completion(self, text: str, finished: bool = True) -> np.ndarray:
        """Tokens int32 [T] the policy is trained on; the end token only if the completion really ended."""
        lead, answer = self._answer(text)
        answer += self.frame.close * finished
        if self.special_strings(text, "assistant"):
            lead_tokens = self.encoder.encode_within(lead, untrusted=False) if lead else []
            tokens = lead_tokens + self.encoder.encode_within(answer, untrusted=True)
        else:
            tokens = self.encoder.encode_within(lead + answer, untrusted=False)
        return np.asarray(tokens + [self.end_tokens[0]] * finished, np.int32)

    def whole(self, messages: Sequence[Message], answer: str, where: str = "prompt") -> np.ndarray:
        """Tokens int32 [L] of a conversation as its chat template writes it, to the very end; for reward models.

        A completion ends with the end token. A whole conversation includes what the template writes behind it (Qwen's
        line break), and tokens may merge across prompt and answer.

        Raises:
          UserError: see `prompt`.
        """
        _check_last(messages, where)
        return self._tokens([*messages, Message("assistant", answer)], where)

    def special_strings(self, text: str, role: str = "user") -> int:
        """Number of strings in `text` that look like special tokens and are therefore encoded as plain text.

        Only an assistant may write added tokens that are not special, such as <think>.
        """
        return len((self.special if role == "assistant" else self.control).findall(text))

    def encode(self, text: str) -> list[int]:
        """Tokenizes untrusted text; strings that look like special tokens stay plain text."""
        return self.encoder.encode(text)

    def decode(self, tokens: np.ndarray, finished: bool) -> str:
        """Text of a completion [T] without its end token and without what the template writes around answers.

        Other special tokens stay visible.
        """
        text = self.encoder.decode_within(tokens[:-1] if finished else tokens)
        return text.removeprefix(self.frame.shown).removesuffix(self.frame.close if finished else "")

    def _tokens(self, messages: Sequence[Message], where: str, **options: Any) -> np.ndarray:
        # The slower encoding without special tokens is needed only where some text spells one.
        forged = any(self.special_strings(text, m.role) for m in messages for text in (m.role, m.content))
        options |= {"tokenize": True, "sanitize_control_tokens": forged}
        return np.asarray(apply_template(self.tokenizer, self.chat_template, messages, where, **options), np.int32)

    def _answer(self, text: str) -> tuple[str, str]:
        """What the template writes before an answer, and how it writes the answer itself."""
        conversation = Message("user", QUESTION), Message("assistant", text)
        whole = apply_template(self.tokenizer, self.chat_template, conversation, "completion", tokenize=False)
        prompt, lead, tail = self.frame.prompt, self.frame.lead, self.frame.tail
        if not (whole.startswith(prompt) and whole.endswith(tail) and len(whole) >= len(prompt) + len(tail)):
            return lead, text  # the whole conversation does not continue this template's own prompt
        body = whole[len(prompt) : len(whole) - len(tail)]
        return (lead, body[len(lead) :]) if body.startswith(lead) else ("", body)


def chat_text(tokenizer: Any, end_tokens: tuple[int, ...]) -> ChatText:
    """A tokenizer with its own chat template, which it must have.

    Args:
      end_tokens: tokens that end a completion; the chat template's own end token is put before them.

    Raises:
      UserError: a template that cannot lay out a question and its answer, or no end token.
    """
    template, special = read_template(tokenizer), special_tokens(tokenizer)
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    written = {token for token in added if token in template and not token.isspace()}
    control, pinned = any_of(special | written), pin_date(template)
    frame, end = try_template(tokenizer, pinned, control)
    end_tokens = tuple(dict.fromkeys(end + end_tokens))
    check_end_tokens(end_tokens)
    encoder = make_encoder(tokenizer, (frame.prompt, *CONTEXTS))
    text = ChatText(encoder, end_tokens, pinned, frame, any_of(special), control)
    body = encoder.decode_within(text.completion(ANSWER)[:-1])
    shown = body.partition(ANSWER)[0] if ANSWER in body else ""
    return dataclasses.replace(text, frame=frame._replace(shown=shown))


def read_template(tokenizer: Any) -> str:
    """The tokenizer's chat template; of several, the default one.

    Raises:
      UserError: there are several and none is the default, or it is not text.
    """
    try:
        template = tokenizer.get_chat_template()
        template.encode()
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"the tokenizer's chat template cannot be used ({reason(error)}); correct tokenizer_config.json",
            about="template",
        ) from None
    return str(template)


def try_template(tokenizer: Any, chat_template: str, control: re.Pattern) -> tuple[AnswerFrame, tuple[int, ...]]:
    """Lays out one question and its answer.

    Returns:
      What the template writes around the answer (`shown` is `lead` still), and its end token, if it has one.

    Raises:
      UserError: the template refuses the conversation, or leaves out the question or the answer.
    """
    question, answer, where = Message("user", QUESTION), Message("assistant", ANSWER), "trial conversation"
    how = {"add_generation_prompt": True, "tokenize": False}
    prompt = apply_template(tokenizer, chat_template, [question], where, **how)
    whole = apply_template(tokenizer, chat_template, [question, answer], where, tokenize=False)
    other = apply_template(tokenizer, chat_template, [Message("user", ANSWER)], where, **how)
    if prompt == other or ANSWER not in whole:
        left_out = "a user's message" if prompt == other else "an assistant's answer"
        raise UserError(f"the tokenizer's chat template leaves out {left_out}; correct it", about="template")
    lead, answer_text, tail = whole[len(prompt) :].partition(ANSWER)
    if not (whole.startswith(prompt) and answer_text):
        lead, tail = "", whole.rpartition(ANSWER)[2]
    end = control.search(tail)
    if end is None:
        return AnswerFrame(prompt, lead, lead, tail, ""), ()
    return AnswerFrame(prompt, lead, lead, tail, tail[: end.start()]), (tokenizer.convert_tokens_to_ids(end[0]),)


def apply_template(tokenizer: Any, chat_template: str, messages: Sequence[Message], where: str, **options: Any) -> Any:
    """Text or tokens of a conversation, by the tokenizer's `apply_chat_template`.

    Raises:
      UserError: the template raises anything.
    """
    conversation = [{"role": m.role, "content": m.content} for m in messages]
    try:
        return tokenizer.apply_chat_template(conversation, chat_template=chat_template, return_dict=False, **options)
    except TEMPLATE_ERRORS as error:
        roles, why = ", ".join(m.role for m in messages), " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{where}: the tokenizer's chat template refuses messages of roles {roles}: {why}; "
            "change the messages or the template",
            about="template",
        ) from None


def pin_date(chat_template: str) -> str:
    """The template with DATE in place of today, which templates can read from `strftime_now` alone."""
    if "strftime_now" not in chat_template:
        return chat_template
    formats = re.findall(r"""strftime_now\(\s*(?:format\s*=\s*)?(["'])(.*?)\1""", chat_template)
    dates = {form: DATE.strftime(form) for _, form in formats}
    fallback = DATE.strftime("%Y-%m-%d")
    return (
        f"{{%- macro strftime_now(format) -%}}{{{{ {dates!r}.get(format, {fallback!r}) }}}}{{%- endmacro +%}}"
        + chat_template
    )


def _check_last(messages: Sequence[Message], where: str) -> None:
    if messages and messages[-1].role == "assistant":
        raise UserError(
            f"{where}: the last message is an assistant's; a chat prompt must end before the answer", about="messages"
        )
