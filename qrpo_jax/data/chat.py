"""The chat layout: a tokenizer's own chat template, and what one trial conversation shows about it.

- Prompts are what `apply_chat_template(..., add_generation_prompt=True)` gives, token by token. The template alone
  decides about the beginning-of-sequence token; nothing adds a second one.
- A string that looks like a special token is plain text wherever a message or a completion holds it, so no text can
  forge the end of a message; `special_strings` counts them. Marks that are plain text in a template, such as Tülu's
  `<|user|>`, cannot be distinguished from text.
- A completion is the answer as the template writes it (some templates strip it), followed by the template's own end
  token if the completion ended. Whatever the template writes after the end token is neither trained on nor sampled.
- Prompt and completion equal, token by token, the template's whole conversation up to the end token, except where
  * strings look special;
  * the first characters of an answer would merge with the last ones of the prompt. Such an answer is encoded on its
    own, as it would have been sampled;
  * the template would change more of an answer than its white space, as DeepSeek's, which drops thoughts. Such an
    answer stays as it is; a thought begins where the prompt opened it;
  * the template's conversations do not continue its own prompts: these open a thought, an answer that brings none
    shows another one or none. Then the completion ends the thought before the answer. `notes` says so.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qrpo_jax.data import thoughts
from qrpo_jax.data.answer_frame import ANSWER, QUESTION, AnswerFrame, try_template
from qrpo_jax.data.chat_template import apply_template, pin_date, read_template
from qrpo_jax.data.encoder import CONTEXTS, Encoder, any_of, check_end_tokens, make_encoder, special_tokens
from qrpo_jax.data.rows import Message
from qrpo_jax.data.template_notes import template_notes
from qrpo_jax.errors import UserError


@dataclass(frozen=True)
class ChatText:
    """A tokenizer with its chat template. Made by `chat_text`.

    Attributes:
      encoder: the tokenizer and the contexts that completions are encoded behind.
      end_tokens: all tokens that end a completion; the first closes completions that are given as text.
      chat_template: the tokenizer's, with the date pinned and thoughts switched on or off.
      frame: what the template writes around an answer.
      special: matches strings of special tokens.
      control: matches these, and strings of added tokens that the template writes.
      notes: what the template does that its user may not expect; clauses after "the chat template".
    """

    encoder: Encoder
    end_tokens: tuple[int, ...]
    chat_template: str
    frame: AnswerFrame
    special: re.Pattern
    control: re.Pattern
    notes: tuple[str, ...] = ()

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
        close = self.frame.close * finished
        if self.special_strings(text, "assistant"):
            tokens = self._trusted(lead) + self.encoder.encode_within(answer, untrusted=True) + self._trusted(close)
        else:
            tokens = self._trusted(lead + answer + close)
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

    def _trusted(self, text: str) -> list[int]:
        return self.encoder.encode_within(text, untrusted=False) if text else []

    def _answer(self, text: str) -> tuple[str, str]:
        """What comes before an answer, and the answer, as the template writes both in its own conversation."""
        conversation = Message("user", QUESTION), Message("assistant", text)
        whole = apply_template(self.tokenizer, self.chat_template, conversation, "completion", tokenize=False)
        frame = self.frame
        opened = thoughts.opening(frame.prompt)
        bare = thoughts.without_opening(text, opened)
        # An answer with a thought does not need the empty one that the template writes before others.
        lead = "" if thoughts.has_marks(text) and thoughts.has_marks(frame.lead) else frame.lead
        body = _between(whole, frame.before, frame.tail)
        if body is not None and (lead, bare) == (frame.lead, text) and _letters(body) == _letters(text):
            return lead, body
        body = _between(whole, frame.prompt, frame.tail)
        if body is not None:
            letters = _letters(body)
            # Qwen 3 adds the mark of a thought of which an answer brings only the end.
            added = "" if opened else next((mark for mark, _ in thoughts.MARKS if letters.startswith(mark)), "")
            if letters in (_letters(bare), _letters(lead + bare), added + _letters(bare)):
                return "", body
        return lead, bare


def chat_text(tokenizer: Any, end_tokens: tuple[int, ...], thinking: str = "template") -> ChatText:
    """A tokenizer with its own chat template, which it must have.

    Args:
      end_tokens: tokens that end a completion; the chat template's own end token is put before them.
      thinking: "on" or "off" switches thoughts in prompts; "template" leaves them as the template has them.

    Raises:
      UserError: a template that cannot lay out a question and its answer, or has no thoughts to switch; no end token.
    """
    template, special = read_template(tokenizer), special_tokens(tokenizer)
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    written = {token for token in added if token in template and not token.isspace()}
    control, pinned = any_of(special | written), pin_date(template)
    chosen = thoughts.set_thinking(tokenizer, pinned, thinking)
    frame, end = try_template(tokenizer, chosen, control, end_tokens)
    notes = template_notes(tokenizer, chosen, frame, bool(end))
    end_tokens = tuple(dict.fromkeys(end + end_tokens))
    check_end_tokens(end_tokens)
    encoder = make_encoder(tokenizer, (frame.prompt, *CONTEXTS))
    text = ChatText(encoder, end_tokens, chosen, frame, any_of(special), control, notes)
    body = encoder.decode_within(text.completion(ANSWER)[:-1])
    shown = body.partition(ANSWER)[0] if ANSWER in body else ""
    return dataclasses.replace(text, frame=frame._replace(shown=shown))


def _between(whole: str, before: str, after: str) -> str | None:
    """What stands between two texts, None if a text does not begin and end with them."""
    if not (whole.startswith(before) and whole.endswith(after) and len(whole) >= len(before) + len(after)):
        return None
    return whole[len(before) : len(whole) - len(after)]


def _letters(text: str) -> str:
    """A text without white space, which templates may change."""
    return "".join(text.split())


def _check_last(messages: Sequence[Message], where: str) -> None:
    if messages and messages[-1].role == "assistant":
        raise UserError(
            f"{where}: the last message is an assistant's; a chat prompt must end before the answer", about="messages"
        )
