"""Where each record stands in a text file: the bytes of lines, or of the items of one list, found in one pass."""

import codecs
import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from qrpo_jax.errors import UserError

BREAK = re.compile(rb"\r\n|\r|\n")
BLANK = re.compile(r"[ \t\n\r]*")  # what JSON allows between values
PART = 1 << 20  # bytes of a list that are read at a time, at first
ADVICE = "let the name of JSON lines end with .jsonl"


class Spans(NamedTuple):
    """N records of a file.

    Attributes:
      starts_N, sizes_N: int64 and uint32, bytes.
      numbers_N: uint32, of the line or of the item, from 1; blank lines have a number and no record.
    """

    starts_N: np.ndarray
    sizes_N: np.ndarray
    numbers_N: np.ndarray


def of_lines(path: Path) -> Spans:
    """The lines that are not blank. The mark with which some systems begin a file is no content."""
    with path.open("rb") as file:
        return _spans(_lines(file))


def of_items(path: Path, shown: Path) -> Spans:
    """The items of a list, which may be longer than the memory.

    Args:
      shown: the file's name for messages.

    Raises:
      UserError: about `path`: it holds no list of objects.
    """
    with path.open("rb") as file:
        return _spans(_items(file, shown))


def _spans(spans: Iterator[tuple[int, int, int]]) -> Spans:
    starts, sizes, numbers = array("q"), array("I"), array("I")
    for start, size, number in spans:
        starts.append(start)
        sizes.append(size)
        numbers.append(number)
    return Spans(np.frombuffer(starts, np.int64), np.frombuffer(sizes, np.uint32), np.frombuffer(numbers, np.uint32))


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    start, number = 0, 0
    for line in file:
        if not number and line.startswith(codecs.BOM_UTF8):
            start, line = len(codecs.BOM_UTF8), line.removeprefix(codecs.BOM_UTF8)
        if b"\r" not in line:
            number += 1
            if not line.isspace():
                yield start, len(line), number
            start += len(line)
            continue
        # Lines of other systems end with \r\n, or with \r, where this loop takes several of them for one.
        after = 0
        for end in BREAK.finditer(line):
            number += 1
            if line[after : end.start()].strip():
                yield start + after, end.start() - after, number
            after = end.end()
        if after < len(line):
            number += 1
            if line[after:].strip():
                yield start + after, len(line) - after, number
        start += len(line)


class _Window:
    """A text file of which a part is in memory. `at` is where reading stands, in `text` and, as bytes, in the file."""

    def __init__(self, file: BinaryIO, shown: Path) -> None:
        self._file, self._shown, self._size = file, shown, PART
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        mark = file.read(len(codecs.BOM_UTF8))
        self.byte = len(mark) if mark == codecs.BOM_UTF8 else 0
        file.seek(self.byte)
        self.text, self.at, self.ended = "", 0, False

    def grow(self) -> None:
        """Drops what has been read, and reads on, further each time until something has been read."""
        if self.at:
            self._size = PART
        content = self._file.read(self._size)
        self._size *= 2
        self.ended = not content
        try:
            self.text = self.text[self.at :] + self._decoder.decode(content, final=self.ended)
        except UnicodeDecodeError as error:
            raise UserError(f"{self._shown} is not UTF-8 ({error.reason}); convert the file", about="path") from None
        self.at = 0

    def skip(self, to: int) -> int:
        """Passes over text; returns its bytes."""
        size = len(self.text[self.at : to].encode())
        self.at, self.byte = to, self.byte + size
        return size

    def next(self) -> str:
        """The next character that is not blank; "" at the end of the file."""
        while True:
            found = BLANK.match(self.text, self.at)
            assert found is not None
            self.skip(found.end())
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.grow()

    def value(self, what: str) -> object:
        """Passes over the next value, and returns it."""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:
                    self.skip(end)
                    return value
            except (ValueError, RecursionError) as error:
                if self.ended:
                    fault = error.msg if isinstance(error, json.JSONDecodeError) else error
                    raise UserError(f"{what}: not JSON ({fault}); {ADVICE}", about="path") from None
            self.grow()


def _items(file: BinaryIO, shown: Path) -> Iterator[tuple[int, int, int]]:
    window = _Window(file, shown)
    if window.next() != "[":
        window.value(str(shown))
        more = window.next()
        fault = f"{shown}: not JSON (Extra data)" if more else f"{shown} holds no list of objects"
        raise UserError(f"{fault}; {ADVICE}", about="path")
    window.skip(window.at + 1)
    number, character = 0, window.next()
    while character != "]":
        number += 1
        start = window.byte
        if not isinstance(window.value(f"{shown}, item {number}"), dict):
            raise UserError(f"{shown} holds no list of objects; {ADVICE}", about="path")
        yield start, window.byte - start, number
        character = window.next()
        if character == ",":
            window.skip(window.at + 1)
            window.next()  # the next item, whatever it is
        elif character != "]":
            raise UserError(f"{shown}: not JSON (after item {number} stands {character!r}); {ADVICE}", about="path")
    window.skip(window.at + 1)
    if window.next():
        raise UserError(f"{shown}: not JSON (Extra data); {ADVICE}", about="path")
