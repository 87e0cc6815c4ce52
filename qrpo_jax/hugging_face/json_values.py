"""Values of a model folder's JSON files, checked; what does not fit is refused by file, key and value."""

import json
import math
from pathlib import Path
from typing import Any

LARGEST = 2**31 - 1  # of a whole number: what an int32 on a device can hold


def flag(folder: Path, key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise unsupported(folder, key, value, (True, False))
    return value


def number(folder: Path, key: str, value: Any, kind: type, most: int = LARGEST) -> Any:
    right = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not right or not 0 < value < math.inf:
        raise ValueError(f"{folder}/config.json sets {key}={value!r}; it must be a positive {kind.__name__}")
    if kind is int and value > most:
        raise ValueError(f"{folder}/config.json sets {key}={value!r:.40}; it must be at most {most}")
    try:
        return kind(value)
    except OverflowError:
        raise ValueError(f"{folder}/config.json sets {key}={value!r:.40}; it must be a finite float") from None


def unsupported(folder: Path, key: str, value: Any, allowed: tuple[Any, ...]) -> ValueError:
    named = ", ".join(map(repr, allowed))
    return ValueError(f"{folder}/config.json sets {key}={value!r}; supported: {named} (config.model.path)")


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no {path.name} in {path.parent}; config.model.path must be a Hugging Face model folder")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must hold an object")
    return content
