"""The tokenizer of a Hugging Face folder; no code of the folder is run."""

from pathlib import Path
from typing import Any

from qrpo_jax.data.text import Text, make_text
from qrpo_jax.errors import UserError, reason
from qrpo_jax.hugging_face.json_values import read_json


def open_text(folder: Path, template: str) -> Text:
    """A folder's tokenizer in a layout.

    Args:
      template: "chat" or "plain".

    Raises:
      UserError: no readable tokenizer, or a layout that `make_text` refuses.
    """
    tokenizer, end_tokens = open_tokenizer(folder)
    return make_text(tokenizer, template, end_tokens)


def open_tokenizer(folder: Path) -> tuple[Any, tuple[int, ...]]:
    """A folder's tokenizer, and the end tokens of the tokenizer, generation_config.json and config.json in this order.

    Raises:
      UserError: no tokenizer.json, a tokenizer that cannot be read, or end tokens that are no token ids.
    """
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"no tokenizer.json in {folder}; the path must be a Hugging Face model folder", about="path")
    # Imported here because it takes seconds: it imports PyTorch wherever that is installed.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        tokenizer.encode("a")  # some settings are only read here
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # of many types, and a panic of the Rust library is no Exception
        # transformers reads config.json too, and may refuse it in several lines.
        raise UserError(f"the tokenizer in {folder} cannot be read ({reason(error)})", about="path") from error
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            ends += _end_tokens(folder / name)
    return tokenizer, tuple(dict.fromkeys(ends))


def _end_tokens(path: Path) -> list[int]:
    value = read_json(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(one, int) or isinstance(one, bool) or one < 0 for one in ids):
        raise UserError(f"{path} sets eos_token_id={value!r}; it must be a token id or several", about="path")
    return ids
