"""A row as the model reads it: its chat template written out, token by token, with the tokens that are trained on."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.data.rows import Row
from qrpo_jax.data.text import Text

CONTEXT = 8  # tokens before a token, with which it is decoded
UNFINISHED = "\ufffd"  # what a token decodes to that ends inside a character
MOST_PROMPT, MOST_COMPLETION = 600, 400  # tokens that are shown
MOST_COMPLETIONS = 2  # of a row that are shown


class Trained(NamedTuple):
    """A completion behind its prompt.

    Attributes:
      pieces: texts of its tokens; a character that several tokens write is one piece.
      tokens: in all, with the end token.
      left_out: tokens that are not in `pieces`.
      fits: whether prompt and completion have at most `pack.max_tokens`.
    """

    pieces: list[str]
    tokens: int
    left_out: int
    reward: float
    source: str
    fits: bool


class Rendered(NamedTuple):
    """A row, written out.

    Attributes:
      place: where it stands.
      prompt: texts of the prompt's tokens, on which nothing is trained.
      tokens: of the prompt.
      left_out: tokens from its middle that are not in `prompt`.
      split: index in `prompt` at which tokens are left out.
      completions: the first ones.
      brought: number of completions that the row has.
    """

    id: str
    place: str
    prompt: list[str]
    tokens: int
    left_out: int
    split: int
    completions: list[Trained]
    brought: int


def render_row(text: Text, row: Row, place: str, max_tokens: int) -> Rendered:
    """A row as it is trained on.

    Args:
      max_tokens: of prompt and completion together.

    Raises:
      UserError: the chat template refuses its messages.
    """
    prompt = text.prompt(row.messages, place)
    half = MOST_PROMPT // 2
    whole = len(prompt) <= MOST_PROMPT
    head = pieces(text.tokenizer, prompt if whole else prompt[:half])
    tail = [] if whole else pieces(text.tokenizer, prompt[-half:])
    trained = []
    for completion in row.completions[:MOST_COMPLETIONS]:
        tokens = completion.tokens if len(completion.tokens) else text.completion(completion.text, completion.finished)
        shown = pieces(text.tokenizer, tokens[:MOST_COMPLETION], before=prompt[-CONTEXT:])
        fits = len(prompt) + len(tokens) <= max_tokens
        left_out = max(len(tokens) - MOST_COMPLETION, 0)
        trained.append(Trained(shown, len(tokens), left_out, completion.reward, completion.source, fits))
    left_out = 0 if whole else len(prompt) - 2 * half
    return Rendered(row.id, place, head + tail, len(prompt), left_out, len(head), trained, len(row.completions))


def pieces(tokenizer: Any, tokens: np.ndarray, before: Sequence[int] | np.ndarray = ()) -> list[str]:
    """The text that each token adds; together they are the text.

    Args:
      before: tokens in front of the first one.
    """
    known = [*(int(token) for token in before)]
    found: list[str] = []
    start = len(known)  # of the tokens whose text is not found yet
    for token in np.asarray(tokens).tolist():
        known.append(token)
        context = known[max(start - CONTEXT, 0) : start]
        old, new = _decode(tokenizer, context), _decode(tokenizer, [*context, *known[start:]])
        if new.endswith(UNFINISHED) and len(known) - start < CONTEXT:
            continue
        found.append(new[len(old) :] if new.startswith(old) else _decode(tokenizer, known[start:]))
        start = len(known)
    return found + ([_decode(tokenizer, known[start:])] if start < len(known) else [])


def _decode(tokenizer: Any, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))
