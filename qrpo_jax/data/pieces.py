"""The bytes that each token of a tokenizer adds to a completion, for what looks at text while tokens are drawn."""

import re

from qrpo_jax.data.encoder import Encoder

BYTE = re.compile("<0x([0-9A-F]{2})>")  # how SentencePiece names the token of a byte
UNKNOWN = "�"
BATCH = 4096


def pieces(encoder: Encoder) -> list[bytes]:
    """One for each token id, special tokens as they are written. Joined, they are the text that `decode_within` gives.

    A token that is no whole character has the bytes that its name stands for.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode  # here because it takes a second

    tokenizer = encoder.tokenizer
    bytes_of = {character: byte for byte, character in bytes_to_unicode().items()}

    def piece(text: str, name: str) -> bytes:
        if UNKNOWN not in text:
            return text.encode()
        if byte := BYTE.fullmatch(name):
            return bytes([int(byte.group(1), 16)])
        return bytes(bytes_of[c] for c in name) if all(c in bytes_of for c in name) else text.encode()

    texts = [text for first in range(0, len(tokenizer), BATCH) for text in _texts(encoder, first)]
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return [piece(text, name or "") for text, name in zip(texts, names, strict=True)]


def _texts(encoder: Encoder, first: int) -> list[str]:
    """What each of some tokens adds behind a context; by itself a tokenizer may drop the space before a word."""
    context = list(encoder.contexts[-1][1]) if encoder.contexts else []
    options = dict(skip_special_tokens=False, clean_up_tokenization_spaces=False)
    before = encoder.tokenizer.decode(context, **options)
    tokens = range(first, min(first + BATCH, len(encoder.tokenizer)))
    whole = encoder.tokenizer.batch_decode([[*context, token] for token in tokens], **options)
    return [text[len(before) :] if text.startswith(before) else text for text in whole]
