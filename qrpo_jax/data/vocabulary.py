"""A tokenizer over a fixed list of strings, for models that are trained from scratch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The generation prompt adds nothing, so the policy continues the prompt itself; the end token closes only answers.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def vocabulary_tokenizer(vocabulary: Sequence[str]) -> "PreTrainedTokenizerFast":
    """A tokenizer whose tokens are SPECIAL and then the vocabulary; longer strings match first.

    Raises:
      ValueError: an empty string, a repeated one, or one that is a special token.
    """
    from transformers import PreTrainedTokenizerFast  # here because it takes a second

    ids = {token: i for i, token in enumerate([*SPECIAL, *vocabulary])}
    if len(ids) != len(SPECIAL) + len(vocabulary) or "" in ids:
        raise ValueError("a vocabulary may hold neither empty, repeated nor special strings; mend its list of words")
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    longest_first = sorted(vocabulary, key=lambda word: (-len(word), word))
    escaped = "|".join("".join(f"\\x{{{ord(c):x}}}" for c in word) for word in longest_first)
    # Any other character is an unknown token on its own; several together could spell a special token.
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
