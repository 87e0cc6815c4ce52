"""The tokenizer of a Hugging Face folder; no code of the folder is run."""

from pathlib import Path
from typing import Any

from qrpo_jax.data.text import Text, make_text
from qrpo_jax.errors import UserError, reason
from qrpo_jax.files import copy_file
from qrpo_jax.hugging_face.json_values import read_json
from qrpo_jax.stores import copies
from qrpo_jax.stores.path import StorePath

SETTINGS = "tokenizer_config.json"
# What a tokenizer may consist of beside its settings; chat templates have a folder where there are several.
FILES = """
tokenizer.json tokenizer.model spiece.model special_tokens_map.json added_tokens.json vocab.json vocab.txt merges.txt
chat_template.jinja chat_template.json
"""
TEMPLATES = "additional_chat_templates"


def open_text(folder: Path, template: str, thinking: str = "template") -> Text:
    """A folder's tokenizer in a layout.

    Args:
      template: "chat" or "plain".
      thinking: see `make_text`.

    Raises:
      UserError: no readable tokenizer, or a layout that `make_text` refuses.
    """
    tokenizer, end_tokens = open_tokenizer(folder)
    return make_text(tokenizer, template, end_tokens, thinking)


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
        tokenizer = AutoTokenizer.from_pretrained(str(_local(folder)), trust_remote_code=False, local_files_only=True)
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


def tokenizer_files(folder: Path) -> list[str]:
    """Names of the files that are there of a folder's tokenizer, without its settings."""
    names = [*FILES.split(), *(f"{TEMPLATES}/{path.name}" for path in folder.glob(f"{TEMPLATES}/*.jinja"))]
    return [name for name in names if (folder / name).is_file()]


def _local(folder: Path) -> Path:
    """A folder with the tokenizer of a model folder: itself, or a copy of one in an object store, without weights."""
    if not isinstance(folder, StorePath):
        return folder
    copy = copies.scratch(folder.name)
    for name in (*tokenizer_files(folder), SETTINGS, "config.json", "generation_config.json"):
        if (folder / name).is_file():
            copy_file(folder / name, copy / name)
    return copy


def _end_tokens(path: Path) -> list[int]:
    value = read_json(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(one, int) or isinstance(one, bool) or one < 0 for one in ids):
        raise UserError(f"{path} sets eos_token_id={value!r}; it must be a token id or several", about="path")
    return ids
