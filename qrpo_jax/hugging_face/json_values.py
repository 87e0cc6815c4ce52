"""JSON files of a model folder: values are checked, and what does not fit is refused by file, key and value."""

import json
import math
from pathlib import Path
from typing import Any

from qrpo_jax import files
from qrpo_jax.errors import UserError

LARGEST = 2**31 - 1  # of a whole number: what an int32 on a device can hold


def flag(folder: Path, key: str, value: Any) -> bool:
    """A value of config.json that must be true or false."""
    if not isinstance(value, bool):
        raise unsupported(folder, key, value, (True, False))
    return value


def number(folder: Path, key: str, value: Any, kind: type, largest: int = LARGEST) -> Any:
    """A value of config.json that must be a positive int or float.

    Args:
      kind: int or float; a float may be written as an int.
      largest: bound of ints.

    Raises:
      UserError: another type, not positive, not finite, or too large.
    """
    right = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not right or not 0 < value < math.inf:
        raise setting_error(folder, key, value, f"it must be a positive {kind.__name__}")
    if kind is int and value > largest:
        raise UserError(f"{folder}/config.json sets {key}={value!r:.40}; it must be at most {largest}", about="path")
    try:
        return kind(value)
    except OverflowError:
        raise UserError(
            f"{folder}/config.json sets {key}={value!r:.40}; it must be a finite float", about="path"
        ) from None


def setting_error(folder: Path, key: str, value: Any, rule: str) -> UserError:
    """The error of a key of config.json with a value that breaks a rule."""
    return UserError(f"{folder}/config.json sets {key}={value!r}; {rule}", about="path")


def unsupported(folder: Path, key: str, value: Any, allowed: tuple[Any, ...]) -> UserError:
    """The error of a key of config.json with none of the supported values."""
    return setting_error(folder, key, value, f"supported: {', '.join(map(repr, allowed))}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model folder.

    Raises:
      UserError: there is no such file, or it does not hold an object.
    """
    if not path.is_file():
        raise UserError(f"no {path.name} in {path.parent}; the path must be a Hugging Face model folder", about="path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error})", about="path") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; it must hold an object", about="path")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file of a model folder, with its keys sorted."""
    files.write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
