"""Reading JSON lines: one object a line, in UTF-8; whatever else a file holds is refused by its line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qrpo_jax.errors import UserError, shown

# The first bytes of files that are not text, and what to do with them.
FORMATS = {
    b"\x1f\x8b": "is compressed (gzip); decompress it",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd); decompress it",
    b"\xfd7zXZ": "is compressed (xz); decompress it",
    b"BZh": "is compressed (bzip2); decompress it",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"PAR1": "is a Parquet file; convert it to JSON lines",
    b"ARROW1": "is an Arrow file; convert it to JSON lines",
}


class _TwiceError(ValueError):
    """An object has a key twice."""


def version(path: Path) -> tuple[int, ...]:
    """Inode, size and time of the last change of a file: another content has another version. Empty without a file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # a name with a NUL is a ValueError
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The object of each line that is not blank, with its line number from 1.

    Raises:
      UserError: there is no such file or it is not UTF-8; or, with file and line: not JSON, no object, a key twice, or
        text that is not Unicode.
    """
    # Not splitlines: it would also cut at separators that may occur inside JSON strings.
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield number, _object(line, f"{path}, line {number}")


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            what = "no file is named" if path == Path() else f"{path} is a folder"
            raise UserError(f"{what}; name a JSON-lines file", about="path")
        if not path.is_file():
            raise UserError(f"no file {path}; name a JSON-lines file", about="path")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a JSON-lines file", about="path") from None
    for beginning, advice in FORMATS.items():
        if content.startswith(beginning):
            raise UserError(f"{path} {advice}", about="path")
    try:
        # Line breaks of other systems, and the mark with which some of them begin a file, are no content.
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert the file", about="path"
        ) from None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line, object_pairs_hook=_unique)
        if "\\ud" in line.lower():
            json.dumps(record, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        whole = "; each line must hold a whole object" if line.strip()[0] in "[{" else ""
        fault = f"not JSON ({error.msg}){whole}; correct the line"
    except RecursionError:
        fault = "lists or objects are nested too deeply; correct the line"
    except _TwiceError as error:
        fault = f"{error}; name it once"
    except UnicodeEncodeError as error:
        fault = f"text holds {shown(error.object[error.start])}, half of a character; correct the line"
    except ValueError:  # Python reads integers of up to 4300 digits
        fault = "a number has too many digits; correct the line"
    else:
        if isinstance(record, dict):
            return record
        fault = "needs an object with a 'prompt'; correct the line"
    raise UserError(f"{where}: {fault}", about="path")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(f"key {shown(next(key for key in keys if keys.count(key) > 1))} is twice in an object")
    return record
