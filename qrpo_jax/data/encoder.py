"""A tokenizer on untrusted text: no message and no completion can write a special token."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qrpo_jax.errors import UserError

# An answer that begins with a line break may merge with the first of these.
CONTEXTS = ("\n", "a")


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, and the texts that a completion can be encoded behind.

    Some tokenizers put a space before the first word of a text. A completion is not the beginning of a text, so it is
    encoded behind a context, whose tokens are then cut off.

    Attributes:
      tokenizer: a fast tokenizer of transformers.
      contexts: texts with their tokens; the first that keeps its tokens in front of the completion is used.
    """

    tokenizer: Any
    contexts: tuple[tuple[str, tuple[int, ...]], ...]

    def encode(self, text: str) -> list[int]:
        """Tokenizes untrusted text; strings that look like special tokens stay plain text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def encode_template(self, text: str) -> list[int]:
        """Tokenizes text that a chat template wrote; strings of special tokens become those tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def encode_within(self, text: str, untrusted: bool) -> list[int]:
        """Tokenizes text that does not begin a sequence."""
        encode = self.encode if untrusted else self.encode_template
        for context, context_tokens in self.contexts:
            tokens = encode(context + text)
            if tuple(tokens[: len(context_tokens)]) == context_tokens:
                return tokens[len(context_tokens) :]
        return encode(text)

    def decode_within(self, tokens: np.ndarray) -> str:
        """Text of tokens that do not begin a sequence; special tokens stay visible."""
        context_tokens = self.contexts[-1][1] if self.contexts else ()
        before = self._decode(context_tokens)
        whole = self._decode([*context_tokens, *tokens.tolist()])
        return whole[len(before) :] if whole.startswith(before) else self._decode(tokens.tolist())

    def _decode(self, tokens: Sequence[int]) -> str:
        # Some tokenizers would remove spaces before punctuation, although they were sampled.
        options = dict(skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(self.tokenizer.decode(list(tokens), **options))


def make_encoder(tokenizer: Any, contexts: Sequence[str] = CONTEXTS) -> Encoder:
    """An encoder with those contexts that the tokenizer knows all characters of."""
    plain = Encoder(tokenizer, ())
    tokens = [(context, tuple(plain.encode_template(context))) for context in contexts]
    return Encoder(tokenizer, tuple(pair for pair in tokens if tokenizer.unk_token_id not in pair[1]))


def special_tokens(tokenizer: Any) -> set[str]:
    """Strings of the tokenizer's special tokens."""
    return {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}


def any_of(strings: Iterable[str]) -> re.Pattern:
    """A pattern that matches any of these strings, longer ones first; without strings it matches nothing."""
    return re.compile("|".join(map(re.escape, sorted(strings, key=len, reverse=True))) or "(?!)")


def check_end_tokens(end_tokens: tuple[int, ...]) -> None:
    """Refuses a layout whose completions could not end.

    Raises:
      UserError: there is no end token.
    """
    if not end_tokens:
        raise UserError(
            "neither tokenizer nor config names an end token (eos); completions could not end", about="path"
        )
