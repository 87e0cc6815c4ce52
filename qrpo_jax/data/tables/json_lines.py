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
from qrpo_jax.data.tables.spans import Spans, of_items, of_lines
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(f"key {shown(next(key for key in keys if keys.count(key) > 1))} is twice in an object")
    return record


DECODER = json.JSONDecoder(object_pairs_hook=_unique)  # to make one takes longer than to read a short line


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
        return sum(len(_spans(path, version).starts_N) for path, version in self._files)

    @property
    def _files(self) -> Iterator[tuple[Path, tuple[int, ...]]]:
        return zip(self.paths, self.versions, strict=True)

    def place(self, index: int) -> str:
        for path, version in self._files:
            spans = _spans(path, version)
            if index < len(spans.starts_N):
                return _place(path, spans, index)
            index -= len(spans.starts_N)
        raise IndexError(index)

    def records(self, start: int, stop: int, columns: Collection[str]) -> Iterator[Record]:
        return (Record(place, without_nulls(values)) for place, values in self.objects(start, stop))

    def objects(self, start: int, stop: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Places and objects as they are written, from number `start` to before `stop`.

        Raises:
          UserError: with file and line: not UTF-8, not JSON, no object, a key twice, or text that is not Unicode.
        """
        first = 0
        for path, version in self._files:
            if first >= stop:
                return
            spans = _spans(path, version)
            count = len(spans.starts_N)
            yield from _objects(path, version, spans, max(start - first, 0), min(stop - first, count))
            first += count

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


def _objects(
    path: Path, version: tuple[int, ...], spans: Spans, start: int, stop: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    if start >= stop:
        return
    with files.plain(path, version).open("rb") as file:
        for index in range(start, stop):
            begin, place = int(spans.starts_N[index]), _place(path, spans, index)
            file.seek(begin)
            content = file.read(int(spans.sizes_N[index]))
            try:
                line = content.decode()
            except UnicodeDecodeError as error:
                at = begin + error.start
                raise UserError(
                    f"{place}: the file is not UTF-8 ({error.reason} at byte {at}); convert the file", about="path"
                ) from None
            yield place, _object(line, place)


@functools.lru_cache(maxsize=8)
def _columns(table: JsonLines, records: int) -> tuple[str, ...]:
    """The keys of the first records, in the order in which they first occur."""
    return tuple(dict.fromkeys(key for _, values in table.objects(0, records) for key in values))


@functools.lru_cache(maxsize=4096)
def _spans(path: Path, version: tuple[int, ...]) -> Spans:
    """Where the records of a file stand.

    Raises:
      UserError: it cannot be read, or is of another format.
    """
    content = files.plain(path, version)
    try:
        with content.open("rb") as file:
            head = file.read(max(map(len, FORMATS)))
        for beginning, advice in FORMATS.items():
            if head.startswith(beginning):
                raise UserError(f"{path} {advice}", about="path")
        return of_items(content, path) if _is_list(path) else of_lines(content)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", about="path") from None


def _place(path: Path, spans: Spans, index: int) -> str:
    return f"{path}, {'item' if _is_list(path) else 'line'} {spans.numbers_N[index]}"


@functools.lru_cache(maxsize=4096)
def _is_list(path: Path) -> bool:
    name = path.with_suffix("") if path.suffix in files.COMPRESSIONS else path
    return name.suffix == ".json"


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        record = DECODER.decode(line)
        if "\\ud" in line or "\\uD" in line:
            json.dumps(record, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        whole = "; each line must hold a whole object" if line.strip()[:1] in ("[", "{") else ""
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
