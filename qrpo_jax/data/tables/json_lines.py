"""Tables of JSON lines: one object a line, in UTF-8; whatever else a file holds is refused by its line.

A file whose name ends with .json holds one list of objects. Files may be compressed, as the end of their names says.
"""

import functools
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrpo_jax.data.tables import files
from qrpo_jax.data.tables.table import Record, without_nulls
from qrpo_jax.errors import UserError, shown

WHAT = "a JSON-lines file"
LOOKED_AT = 1000  # records, for the names of columns
# The first bytes of files that are not text, and what to do with them.
FORMATS = {
    b"\x1f\x8b": "is compressed (gzip); decompress it, or let its name end with .gz",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd); decompress it, or let its name end with .zst",
    b"\xfd7zXZ": "is compressed (xz); decompress it, or let its name end with .xz",
    b"BZh": "is compressed (bzip2); decompress it, or let its name end with .bz2",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"PAR1": "is a Parquet file; convert it to JSON lines, or name it with parquet: in place of jsonl:",
    b"ARROW1": "is an Arrow file; convert it to JSON lines",
}


class _TwiceError(ValueError):
    """An object has a key twice."""


@dataclass(frozen=True)
class JsonLines:
    """The records of some files, one after the other; `versions` makes tables of changed files differ."""

    paths: tuple[Path, ...]
    versions: tuple[tuple[int, ...], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return _columns(self, LOOKED_AT)

    @property
    def leading(self) -> tuple[str, ...]:
        return _columns(self, 1)

    @property
    def count(self) -> int:
        return sum(map(_count, self.paths, self.versions))

    def records(self, start: int, stop: int, columns: Collection[str]) -> Iterator[Record]:
        return (Record(place, without_nulls(values)) for place, values in self.objects(start, stop))

    def objects(self, start: int, stop: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Places and objects as they are written, from number `start` to before `stop`."""
        first = 0
        for path, version in zip(self.paths, self.versions, strict=True):
            if first >= stop:
                return
            after = first + (_count(path, version) if len(self.paths) > 1 else stop)
            if after > start:
                yield from objects(path, max(start - first, 0), stop - first)
            first = after

    def identity(self) -> str:
        return files.identity(self.paths)


def open_table(address: str, split: str = "", without: str = "") -> JsonLines:
    """The table of a file, or of all files that match a pattern.

    Args:
      split, without: as in `files.of_split`.

    Raises:
      UserError: about `path` or `split`.
    """
    paths = tuple(files.of_split(files.find(address, WHAT), split, without))
    return JsonLines(paths, tuple(map(files.version, paths)))


def objects(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, from number `start` to before `stop`, each with its place: "FILE, line N".

    Raises:
      UserError: it is not UTF-8; or, with file and line: not JSON, no object, a key twice, or text that is not Unicode.
    """
    text = _text(path)
    if _is_list(path):
        for number, item in enumerate(_items(text, path)[start:stop], start + 1):
            yield f"{path}, item {number}", item
        return
    for index, (number, line) in enumerate(_lines(text)):
        if stop is not None and index >= stop:
            return
        if index >= start:
            place = f"{path}, line {number}"
            yield place, _object(line, place)


@functools.lru_cache(maxsize=8)
def _columns(table: JsonLines, records: int) -> tuple[str, ...]:
    """The keys of the first records, in the order in which they first occur."""
    return tuple(dict.fromkeys(key for _, values in table.objects(0, records) for key in values))


@functools.lru_cache(maxsize=4096)
def _count(path: Path, _: tuple[int, ...]) -> int:
    text = _text(path)
    return len(_items(text, path)) if _is_list(path) else sum(1 for _ in _lines(text))


def _is_list(path: Path) -> bool:
    name = path.with_suffix("") if path.suffix in files.COMPRESSIONS else path
    return name.suffix == ".json"


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    # Not splitlines: it would also cut at separators that may occur inside JSON strings.
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _items(text: str, path: Path) -> list[dict[str, Any]]:
    advice = "let the name of JSON lines end with .jsonl"
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); {advice}", about="path") from None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UserError(f"{path} holds no list of objects; {advice}", about="path")
    return items


def _text(path: Path) -> str:
    content = files.read(path)
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
