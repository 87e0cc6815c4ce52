"""Text to tokens and back: the only place where prompts, completions and special tokens are put together.

The chat layout is the tokenizer's own chat template, with these rules.

- Prompts are what `apply_chat_template(..., add_generation_prompt=True)` gives, token by token. The template alone
  decides about the beginning-of-sequence token; nothing adds a second one.
- A string that looks like a special token is plain text wherever a message or a completion holds it, so nobody's
  text can forge a turn; `special_strings` counts them. Turn marks that are plain text in a template, such as
  Tülu's `<|user|>`, cannot be told from text.
- A completion is what the template makes of an answer (some strip it), and the template's own end of turn if the
  completion ended. What the template writes after that is nobody's. Prompt and completion are, token by token, the
  template's whole conversation up to the end of turn, but for strings that look special and for an answer whose
  first characters would merge with the prompt's last ones: it is encoded apart, as it would have been sampled.
- Templates that write today's date write DATE, so that a run that goes on tomorrow reads the same tokens.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qrpo_jax.data.rows import Message
from qrpo_jax.hugging_face.json_values import read_json

# A generation prompt ends where the policy's own tokens begin, and the end token closes only the answer.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)
TEMPLATES = ("chat", "plain")
DATE = datetime(2024, 7, 26)  # the day that Llama 3.1 templates fall back to
QUESTION, ANSWER = "a", "An answer."  # what a template is tried with


class Turn(NamedTuple):
    """What a chat template writes around an answer."""

    prompt: str  # everything before the answer's turn, here to QUESTION
    lead: str  # between the prompt and the answer: Mistral's space
    shown: str  # what `lead` decodes to: some tokenizers put a space after every special token
    tail: str  # everything after the answer: the end of turn, perhaps a line break after it
    close: str  # what of the tail comes before the end of turn


class Conversation(NamedTuple):
    """A prompt and its completion as a policy reads them."""

    tokens: np.ndarray  # int32 [L]
    mask: np.ndarray  # bool [L], what the policy is trained on: the completion, its end token included


class Text(NamedTuple):
    """A tokenizer and how prompts are laid out with it.

    `template` is "chat" (the tokenizer's own chat template) or "plain" (the beginning-of-sequence token, if
    the tokenizer has one, then the messages' contents). Made by `make_text`.
    """

    tokenizer: Any
    template: str
    end_tokens: tuple[int, ...]  # all that end a completion; the first is what closes one that is given as text
    chat_template: str = ""  # the tokenizer's, with the date pinned
    special: re.Pattern = re.compile("(?!)")  # strings of special tokens
    control: re.Pattern = re.compile("(?!)")  # these, and added tokens that the template writes
    contexts: tuple[tuple[str, tuple[int, ...]], ...] = ()  # texts that a completion can be encoded behind
    turn: Turn | None = None  # None in the plain layout

    def conversation(
        self, messages: Sequence[Message], answer: str, finished: bool = True, where: str = "prompt"
    ) -> Conversation:
        """Tokens of a prompt and an answer, and which of them the policy is trained on.

        Earlier answers in `messages` are prompt. Completions that were sampled keep the tokens they were sampled
        with; only their `prompt` is made here.

        Raises:
          ValueError: see `prompt`.
        """
        prompt, completion = self.prompt(messages, where), self.completion(answer, finished)
        mask = np.arange(len(prompt) + len(completion)) >= len(prompt)
        return Conversation(np.concatenate([prompt, completion]), mask)

    def prompt(self, messages: Sequence[Message], where: str = "prompt") -> np.ndarray:
        """Tokens int32 [L] that the policy is conditioned on, special tokens included exactly once.

        Args:
          where: what an error names, such as "row 'ID'".

        Raises:
          ValueError: the chat template refuses the messages, or an assistant has the last word.
        """
        if self.turn is None:
            start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
            return np.asarray(start + self.encode("".join(m.content for m in messages)), np.int32)
        if messages and messages[-1].role == "assistant":
            raise ValueError(f"{where}: the last message is an assistant's; a chat prompt must end before the answer")
        forged = any(self.special_strings(text, m.role) for m in messages for text in (m.role, m.content))
        ids = self._apply(messages, where, add_generation_prompt=True, tokenize=True, sanitize_control_tokens=forged)
        return np.asarray(ids, np.int32)

    def completion(self, text: str, finished: bool = True) -> np.ndarray:
        """Tokens int32 [T] the policy is trained on; the end token only if the completion really ended."""
        end = [self.end_tokens[0]] * finished
        if self.turn is None:
            return np.asarray(self._behind(text, forged=True) + end, np.int32)
        lead, answer = self._answer(text)
        answer += self.turn.close * finished
        if self.special_strings(text, "assistant"):
            ids = (self._behind(lead) if lead else []) + self._behind(answer, forged=True)
        else:
            ids = self._behind(lead + answer)
        return np.asarray(ids + end, np.int32)

    def whole(self, messages: Sequence[Message], answer: str, where: str = "prompt") -> np.ndarray:
        """Tokens int32 [L] of a conversation as its chat template writes it, to the very end; for reward models.

        Unlike `conversation`, whose completion ends with the end of turn, this has what the template writes behind it
        (Qwen's line break), and merges of tokens between prompt and answer are as they fall.

        Raises:
          ValueError: see `prompt`; or the plain layout, which has no turns.
        """
        if self.turn is None:
            raise ValueError(f"{where}: the plain layout has no turns; a reward model needs a chat template")
        if messages and messages[-1].role == "assistant":
            raise ValueError(f"{where}: the last message is an assistant's; a chat prompt must end before the answer")
        turns = [*messages, Message("assistant", answer)]
        forged = any(self.special_strings(text, m.role) for m in turns for text in (m.role, m.content))
        return np.asarray(self._apply(turns, where, tokenize=True, sanitize_control_tokens=forged), np.int32)

    def special_strings(self, text: str, role: str = "user") -> int:
        """How many strings in `text` look like special tokens, and are encoded as plain text therefore.

        Added tokens that are not special, such as <think>, are an assistant's to write and nobody else's.
        """
        return len((self.special if role == "assistant" else self.control).findall(text))

    def encode(self, text: str) -> list[int]:
        """Tokens of text that nobody vouches for: what looks like a special token in it is plain text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def decode(self, tokens: np.ndarray, finished: bool) -> str:
        """Text of a completion without its end token and what the template writes around answers.

        Other special tokens stay visible.
        """
        body = (tokens[:-1] if finished else tokens).tolist()
        known = self.contexts[-1][1] if self.contexts else ()
        before, whole = self._decoded(known), self._decoded([*known, *body])
        text = whole[len(before) :] if whole.startswith(before) else self._decoded(body)
        if self.turn is None:
            return text
        return text.removeprefix(self.turn.shown).removesuffix(self.turn.close if finished else "")

    def _apply(self, messages: Sequence[Message], where: str, **options: Any) -> Any:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            options |= {"chat_template": self.chat_template, "return_dict": False}
            return self.tokenizer.apply_chat_template(turns, **options)
        except (
            TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            roles, reason = ", ".join(m.role for m in messages), " ".join(str(error).split())
            raise ValueError(
                f"{where}: the tokenizer's chat template refuses messages of roles {roles}: "
                f"{reason}; change them, or the layout (config.model.template)"
            ) from None

    def _answer(self, text: str) -> tuple[str, str]:
        """What the template writes before an answer, and what it makes of the answer itself."""
        assert self.turn is not None
        turns = Message("user", QUESTION), Message("assistant", text)
        whole = self._apply(turns, "completion", tokenize=False)
        prompt, lead, tail = self.turn.prompt, self.turn.lead, self.turn.tail
        if not (whole.startswith(prompt) and whole.endswith(tail) and len(whole) >= len(prompt) + len(tail)):
            return lead, text  # this template does not go on where its own prompt ends
        body = whole[len(prompt) : len(whole) - len(tail)]
        return (lead, body[len(lead) :]) if body.startswith(lead) else ("", body)

    def _behind(self, text: str, forged: bool = False) -> list[int]:
        """Tokens of text that does not begin a sequence; some tokenizers put a space before what does."""
        encode = self.encode if forged else self._encode_special
        for before, known in self.contexts:
            ids = encode(before + text)
            if tuple(ids[: len(known)]) == known:
                return ids[len(known) :]
        return encode(text)

    def _encode_special(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _decoded(self, ids: Sequence[int]) -> str:
        # Some tokenizers would tidy up spaces before punctuation, which were sampled nevertheless.
        options = dict(skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(self.tokenizer.decode(list(ids), **options))


def open_text(folder: Path, template: str) -> Text:
    """The tokenizer of a Hugging Face folder; no code of the folder is run.

    Raises:
      ValueError: no tokenizer, no chat template though one is asked for, or no end token.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"no tokenizer.json in {folder}; point config.model.path at a Hugging Face model folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())  # transformers reads config.json too, and may refuse it in several lines
        raise ValueError(f"the tokenizer in {folder} cannot be read ({reason}); see config.model.path") from error
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            named = read_json(folder / name).get("eos_token_id")
            listed = named if isinstance(named, list) else [] if named is None else [named]
            if any(not isinstance(one, int) or isinstance(one, bool) or one < 0 for one in listed):
                raise ValueError(
                    f"{folder / name} sets eos_token_id={named!r}; it must be a token id or several (config.model.path)"
                )
            ends += listed
    return make_text(tokenizer, template, tuple(dict.fromkeys(ends)))


def make_text(tokenizer: Any, template: str, end_tokens: tuple[int, ...]) -> Text:
    """A tokenizer in a layout.

    Args:
      end_tokens: what ends a completion; the chat template's own end of turn goes before them.

    Raises:
      ValueError: an unknown layout, no chat template though one is asked for, one that cannot lay out a question
        and its answer, or no end token.
    """
    if template not in TEMPLATES:
        raise ValueError(f"template is {template!r}; allowed: {', '.join(TEMPLATES)} (config.model.template)")
    if template == "chat" and not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; set config.model.template='plain'")
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special}
    text = Text(tokenizer, template, end_tokens, special=_any_of(special), control=_any_of(special))
    contexts = ["\n", "a"]  # an answer that begins with a line break may merge with the first
    if template == "chat":
        chat_template = tokenizer.get_chat_template()
        written = {token.content for token in added if token.content in chat_template and not token.content.isspace()}
        text = text._replace(chat_template=_pin_date(chat_template), control=_any_of(special | written))
        turn, ends = _try_turn(text)
        text = text._replace(turn=turn, end_tokens=tuple(dict.fromkeys(ends + end_tokens)))
        contexts.insert(0, turn.prompt)
    if not text.end_tokens:
        raise ValueError("neither tokenizer nor config names an end token (eos); completions could not end")
    tokens = [(context, tuple(text._encode_special(context))) for context in contexts]
    text = text._replace(contexts=tuple(x for x in tokens if tokenizer.unk_token_id not in x[1]))
    if text.turn:
        plain = text._replace(turn=None).decode(text.completion(ANSWER), finished=True)
        text = text._replace(turn=text.turn._replace(shown=plain.partition(ANSWER)[0] if ANSWER in plain else ""))
    return text


def _try_turn(text: Text) -> tuple[Turn, tuple[int, ...]]:
    """What the chat template writes around the answer to one question, and the token of its end of turn if any."""
    question, answer = Message("user", QUESTION), Message("assistant", ANSWER)
    where = "config.model.path"
    prompt = text._apply([question], where, add_generation_prompt=True, tokenize=False)
    whole = text._apply([question, answer], where, tokenize=False)
    lead, found, tail = whole[len(prompt) :].partition(ANSWER)
    if not (whole.startswith(prompt) and found):
        lead, tail = "", whole.rpartition(ANSWER)[2]
    end = text.control.search(tail)
    if end is None:
        return Turn(prompt, lead, lead, tail, ""), ()
    return Turn(prompt, lead, lead, tail, tail[: end.start()]), (text.tokenizer.convert_tokens_to_ids(end[0]),)


def _any_of(strings: Iterable[str]) -> re.Pattern:
    return re.compile("|".join(map(re.escape, sorted(strings, key=len, reverse=True))) or "(?!)")


def _pin_date(chat_template: str) -> str:
    """The template with DATE for today: `strftime_now` is all that it can know the day from."""
    if "strftime_now" not in chat_template:
        return chat_template
    formats = re.findall(r"""strftime_now\(\s*(?:format\s*=\s*)?(["'])(.*?)\1""", chat_template)
    known = {form: DATE.strftime(form) for _, form in formats}
    other = DATE.strftime("%Y-%m-%d")
    return (
        f"{{%- macro strftime_now(format) -%}}{{{{ {known!r}.get(format, {other!r}) }}}}{{%- endmacro +%}}"
        + chat_template
    )


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
