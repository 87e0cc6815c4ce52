"""Text to tokens and back: the only place where prompts, completions and special tokens are put together.

There are two layouts. `chat` is the tokenizer's own chat template (see `chat`). `plain` is the beginning-of-sequence
token, if the tokenizer has one, followed by the contents of the messages.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from qrpo_jax.data.chat import chat_text
from qrpo_jax.data.encoder import Encoder, any_of, check_end_tokens, make_encoder, special_tokens
from qrpo_jax.data.rows import Message
from qrpo_jax.errors import UserError

TEMPLATES = ("chat", "plain")


class Text(Protocol):
    """A tokenizer and how prompts and completions are laid out with it."""

    @property
    def encoder(self) -> Encoder:
        """The tokenizer, and the contexts that completions are encoded behind."""

    @property
    def tokenizer(self) -> Any:
        """A fast tokenizer of transformers."""

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """All tokens that end a completion; the first closes completions that are given as text."""

    @property
    def chat_template(self) -> str:
        """The chat template that writes prompts, empty in the plain layout."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the layout does that its user may not expect; clauses after "the chat template"."""

    def prompt(self, messages: Sequence[Message], where: str = "prompt") -> np.ndarray:
        """Tokens int32 [L] that the policy is conditioned on; `where` is what an error names."""

    def completion(self, text: str, finished: bool = True) -> np.ndarray:
        """Tokens int32 [T] the policy is trained on; the end token only if the completion really ended."""

    def decode(self, tokens: np.ndarray, finished: bool) -> str:
        """Text of a completion [T], without its end token if it is `finished`."""

    def special_strings(self, text: str, role: str = "user") -> int:
        """Number of strings in `text` that look like special tokens and are therefore encoded as plain text."""

    def encode(self, text: str) -> list[int]:
        """Tokenizes untrusted text; strings that look like special tokens stay plain text."""


@dataclass(frozen=True)
class PlainText:
    """The plain layout: the beginning-of-sequence token, if there is one, then the contents of the messages.

    Attributes:
      encoder: the tokenizer and the contexts that completions are encoded behind.
      end_tokens: see `Text`.
      special: matches strings of special tokens.
    """

    encoder: Encoder
    end_tokens: tuple[int, ...]
    special: re.Pattern

    @property
    def tokenizer(self) -> Any:
        return self.encoder.tokenizer

    @property
    def chat_template(self) -> str:
        return ""

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def prompt(self, messages: Sequence[Message], where: str = "prompt") -> np.ndarray:
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        return np.asarray(bos + self.encode("".join(m.content for m in messages)), np.int32)

    def completion(self, text: str, finished: bool = True) -> np.ndarray:
        tokens = self.encoder.encode_within(text, untrusted=True)
        return np.asarray(tokens + [self.end_tokens[0]] * finished, np.int32)

    def decode(self, tokens: np.ndarray, finished: bool) -> str:
        """Text of a completion [T] without its end token; other special tokens stay visible."""
        return self.encoder.decode_within(tokens[:-1] if finished else tokens)

    def special_strings(self, text: str, role: str = "user") -> int:
        return len(self.special.findall(text))

    def encode(self, text: str) -> list[int]:
        return self.encoder.encode(text)


def make_text(tokenizer: Any, template: str, end_tokens: tuple[int, ...], thinking: str = "template") -> Text:
    """A tokenizer in a layout.

    Args:
      template: "chat" or "plain".
      end_tokens: tokens that end a completion; a chat template's own end token is put before them.
      thinking: "on" or "off" switches thoughts in prompts; "template" leaves them as the chat template has them.

    Raises:
      UserError: an unknown layout, no chat template though the layout is "chat", one that cannot lay out a question
        and its answer, no thoughts to switch, or no end token.
    """
    if template not in TEMPLATES:
        raise UserError(f"template is {template!r}; allowed: {', '.join(TEMPLATES)}", about="template")
    if template == "plain":
        if thinking != "template":
            raise UserError(
                f"thinking is {thinking!r}, and template 'plain' has no thoughts; set thinking to 'template'",
                about="thinking",
            )
        check_end_tokens(end_tokens)
        return PlainText(make_encoder(tokenizer), end_tokens, any_of(special_tokens(tokenizer)))
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template; set the template to 'plain'", about="template")
    return chat_text(tokenizer, end_tokens, thinking)
