"""Prompts as a server is given them: token ids, text or messages."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.data.rows import Message
from qrpo_jax.data.text import Text


class ServedPrompt(NamedTuple):
    """A prompt for a server.

    Attributes:
      content: token ids, a text, or messages.
      tokens: [L] int32, that the policy is conditioned on.
    """

    content: Any
    tokens: np.ndarray

    def seen_by(self, server_tokens: list[int] | int | None) -> bool | None:
        """Whether the server saw these tokens; None if it did not say.

        Args:
          server_tokens: token ids, or their number alone.
        """
        if server_tokens is None:
            return True if isinstance(self.content, list) and self.content == self.tokens.tolist() else None
        if isinstance(server_tokens, int):
            return server_tokens == len(self.tokens)
        return server_tokens == self.tokens.tolist()


def served_prompt(text: Text, kind: str, messages: Sequence[Message], tokens: np.ndarray) -> ServedPrompt:
    """A prompt in one of the kinds of `sampling.openai.KINDS`.

    Args:
      tokens: `text.prompt(messages)`.
    """
    if kind == "chat":
        return ServedPrompt([{"role": m.role, "content": m.content} for m in messages], tokens)
    if kind == "tokens":
        return ServedPrompt(tokens.tolist(), tokens)
    return ServedPrompt(prompt_text(text.tokenizer, tokens), tokens)


def prompt_text(tokenizer: Any, tokens: np.ndarray) -> str:
    """The text of a prompt, from which a server's tokenizer makes these tokens if any text does so.

    A tokenizer that adds a beginning-of-sequence token by itself needs a text without it.
    """
    whole = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    bare = whole.removeprefix(tokenizer.bos_token or "")
    for candidate in (whole, bare, bare.removeprefix(" ")):
        if tokenizer(candidate)["input_ids"] == tokens.tolist():
            return candidate
    return whole
