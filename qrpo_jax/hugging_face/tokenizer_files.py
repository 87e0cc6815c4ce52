"""The files of a tokenizer in an export, in words that transformers 4 and 5 both know."""

import shutil
from pathlib import Path
from typing import Any

from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face.json_values import read_json, write_json
from qrpo_jax.hugging_face.tokenizer import SETTINGS, open_tokenizer, tokenizer_files

# Classes that came with transformers 5. The class that transformers 4 has for the same tokenizer.json is known to both.
NEW_CLASSES = ("TokenizersBackend", "SentencePieceBackend", "PythonBackend", "MistralCommonBackend")
OLD_CLASS = "PreTrainedTokenizerFast"


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes a tokenizer so that transformers 4 and 5 load it.

    Where it came from a folder, its files are copied. To save it anew would lose settings, such as whether transformers
    4 puts a token before every text.

    Args:
      folder: of a model, with its config.json; it is there and has no tokenizer yet.

    Raises:
      UserError: the files that are copied are no longer those that the tokenizer was opened from.
    """
    source = Path(tokenizer.name_or_path or "made here")
    copied = (source / "tokenizer.json").is_file()
    if copied:
        settings = _copy(source, folder)
    else:
        tokenizer.save_pretrained(folder)
        settings = read_json(folder / SETTINGS)
    if settings:
        write_json(folder / SETTINGS, _for_both(settings))
    if copied and _content(open_tokenizer(folder)[0]) != _content(tokenizer):
        raise UserError(f"the tokenizer in {source} changed while the job ran; put back its files", about="path")


def _copy(source: Path, folder: Path) -> dict[str, Any]:
    """Copies the files of a tokenizer without its settings, and returns these."""
    for name in tokenizer_files(source):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, folder / name)
    config, settings = (
        read_json(source / name) if (source / name).is_file() else {} for name in ("config.json", SETTINGS)
    )
    # Old folders name the class of their tokenizer in config.json.
    old = {"tokenizer_class": config["tokenizer_class"]} if config.get("tokenizer_class") else {}
    return old | settings


def _for_both(settings: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json in words that transformers 4 and 5 know.

    `auto_map` is left out: it points at code that is not exported.
    """
    settings = {key: settings[key] for key in settings.keys() - {"auto_map", "backend", "is_local", "local_files_only"}}
    if settings.get("tokenizer_class") in NEW_CLASSES:
        settings["tokenizer_class"] = OLD_CLASS
    # A list under this name is new; transformers 4 wants an object there.
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return settings


def _content(tokenizer: Any) -> tuple[Any, ...]:
    return tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.special_tokens_map
