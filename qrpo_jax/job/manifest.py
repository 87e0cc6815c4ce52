"""What a stage was asked for and what it made: settings at its start, a manifest when it is complete."""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SETTINGS = "settings.json"
MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"  # a kill may leave such a file behind; it means nothing


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that is there in full or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex}")
    with temporary.open("w") as file:
        json.dump(value, file, indent=2, allow_nan=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"train.beta": 0.1, ...}, with tuples as lists, as JSON gives them back."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One phrase for each setting that differs."""
    absent = "(absent)"
    keys = sorted(k for k in old.keys() | new.keys() if (k in old) != (k in new) or old[k] != new[k])
    return [f"{k}: {old.get(k, absent)!r} -> {new.get(k, absent)!r}" for k in keys]


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Refuses a folder that was made, or begun, with other settings.

    Raises:
      ValueError: naming what differs.
    """
    path = folder / SETTINGS
    if not path.exists():
        if folder.exists() and any(not found.name.startswith(TEMPORARY) for found in folder.iterdir()):
            raise ValueError(f"{folder} was not made by this program; choose another --workdir")
        return
    changed = difference(json.loads(path.read_text()), settings)
    if changed:
        raise ValueError(
            f"{folder} was made with other settings ({'; '.join(changed)}); "
            f"choose another --workdir, set them back, or remove {folder} and the stages after it"
        )


def begin(folder: Path, settings: dict[str, Any]) -> None:
    for leftover in folder.glob(f"{TEMPORARY}*"):
        leftover.unlink(missing_ok=True)
    if not (folder / SETTINGS).exists():
        write_json(folder / SETTINGS, settings)


def complete(folder: Path, made: dict[str, Any]) -> None:
    write_json(folder / MANIFEST, made)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a stage made; None while it is not complete."""
    path = folder / MANIFEST
    return json.loads(path.read_text()) if path.exists() else None
