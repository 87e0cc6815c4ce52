"""Text to tokens and back: the only place where prompts, completions and special tokens are put together."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import TemplateError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qrpo_jax.rows import Message

# A generation prompt ends where the policy's own tokens begin, and the end token closes only the answer.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)
TEMPLATES = ("chat", "plain")


class Text(NamedTuple):
    """A tokenizer and how prompts are laid out with it.

    `template` is "chat" (the tokenizer's own chat template) or "plain" (the beginning-of-sequence token, if
    the tokenizer has one, then the messages' contents).
    """

    tokenizer: Any
    template: str
    end_tokens: tuple[int, ...]
    newline: tuple[int, ...] = ()  # tokens of a line break, where the tokenizer has it

    def prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """Tokens int32 [L] that the policy is conditioned on, special tokens included exactly once."""
        if self.template == "chat":
            turns = [{"role": m.role, "content": m.content} for m in messages]
            try:
                ids = self.tokenizer.apply_chat_template(
                    turns, add_generation_prompt=True, tokenize=True, return_dict=False
                )
            except TemplateError as error:
                roles = ", ".join(m.role for m in messages)
                raise ValueError(f"the tokenizer's chat template refuses messages of roles {roles}: {error}") from None
        else:
            start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
            ids = start + self.encode("".join(m.content for m in messages))
        return np.asarray(ids, np.int32)

    def completion(self, text: str, finished: bool = True) -> np.ndarray:
        """Tokens int32 [T] the policy is trained on; the end token only if the completion really ended."""
        # Some tokenizers put a space before whatever begins a text, and a completion does not begin one: it is
        # encoded behind a line break, which is then taken away, unless the two merge into one token.
        behind, known = self.encode(f"\n{text}"), list(self.newline)
        ids = behind[len(known) :] if known and behind[: len(known)] == known else self.encode(text)
        return np.asarray(ids + [self.end_tokens[0]] * finished, np.int32)

    def encode(self, text: str) -> list[int]:
        """Tokens of text that nobody vouches for: what looks like a special token in it is plain text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def decode(self, tokens: np.ndarray, finished: bool) -> str:
        """Text of a completion without its end token; other special tokens stay visible."""
        body = (tokens[:-1] if finished else tokens).tolist()
        before = self._plain(self.newline)
        whole = self._plain([*self.newline, *body])
        return whole[len(before) :] if whole.startswith(before) else self._plain(body)

    def _plain(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))


def open_text(folder: Path, template: str) -> Text:
    """The tokenizer of a Hugging Face folder; no code of the folder is run.

    Raises:
      ValueError: no tokenizer, no chat template though one is asked for, or no end token.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"no tokenizer.json in {folder}; point config.model.path at a Hugging Face model folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the tokenizer in {folder} cannot be read ({error}); see config.model.path") from error
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            try:
                named = json.loads((folder / name).read_text()).get("eos_token_id")
            except json.JSONDecodeError as error:
                raise ValueError(f"{folder / name} is not JSON ({error.msg}); see config.model.path") from None
            ends += [named] if isinstance(named, int) else named or []
    return make_text(tokenizer, template, tuple(dict.fromkeys(ends)))


def make_text(tokenizer: Any, template: str, end_tokens: tuple[int, ...]) -> Text:
    if template not in TEMPLATES:
        raise ValueError(f"template is {template!r}; allowed: {', '.join(TEMPLATES)} (config.model.template)")
    if template == "chat" and not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; set config.model.template='plain'")
    if not end_tokens:
        raise ValueError("neither tokenizer nor config names an end token (eos); completions could not end")
    text = Text(tokenizer, template, end_tokens)
    newline = tuple(text.encode("\n"))
    return text if tokenizer.unk_token_id in newline else text._replace(newline=newline)


def vocabulary_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer over a fixed list of strings, for models trained from nothing; longer strings match first.

    Raises:
      ValueError: an empty string, one that stands twice, or one that is a special token.
    """
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    ids = {token: i for i, token in enumerate([*special, *vocabulary])}
    if len(ids) != len(special) + len(vocabulary) or "" in ids:
        raise ValueError("a vocabulary may hold neither empty, repeated nor special strings; mend its list of words")
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    longest_first = sorted(vocabulary, key=lambda word: (-len(word), word))
    escaped = "|".join("".join(f"\\x{{{ord(c):x}}}" for c in word) for word in longest_first)
    # Any other character is a piece of its own and unknown; left together they could spell a special token.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{escaped}|[\\s\\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
