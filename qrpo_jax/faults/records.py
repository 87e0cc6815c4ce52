"""Records: the JSON files of a run that tell when they were changed, cut, or put in another's place."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qrpo_jax.errors import DamagedError
from qrpo_jax.files import write_json

SUM = "record_sha256"  # the key of a checksum; content has no such key


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object with its checksum, whole or not at all."""
    write_json(path, sealed(content, place(path)))


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object that `write_record` wrote to this path, without its checksum.

    Raises:
      FileNotFoundError: there is no such file.
      DamagedError: it is not what was written there.
    """
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise DamagedError(path, "it is no JSON") from None
    return unsealed(record, place(path), path)


def place(path: Path) -> str:
    """The names of a file and of its folder, so that a work directory may move and two records may not swap places."""
    return f"{path.absolute().parent.name}/{path.name}"


def sealed(content: Mapping[str, Any], place: str) -> dict[str, Any]:
    """JSON content with a checksum of it and of the place where it will be."""
    return dict(content) | {SUM: _sum(content, place)}


def unsealed(record: Any, place: str, path: Path) -> dict[str, Any]:
    """The content of a record from this place.

    Args:
      path: of the record, for the message.

    Raises:
      DamagedError: it is not the content that was sealed for this place.
    """
    if not isinstance(record, dict) or SUM not in record:
        raise DamagedError(path, "it has no checksum")
    content = {key: value for key, value in record.items() if key != SUM}
    if record[SUM] != _sum(content, place):
        raise DamagedError(path, "it is not what was written here")
    return content


def _sum(content: Mapping[str, Any], place: str) -> str:
    # A round trip, so that what is summed is what a reader will see: keys are text, and tuples are lists.
    seen = json.loads(json.dumps(dict(content)))
    return hashlib.sha256(json.dumps([place, seen], sort_keys=True).encode()).hexdigest()
