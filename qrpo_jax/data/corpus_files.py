"""A corpus on disk, in parts: each has a file of tokens, a file of columns, and a record that vouches for both.

A part is complete or absent, as a unit of rows is (see `row_files`). Tokens are read in pieces with one system call
each, so they take no memory; columns are read whole.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qrpo_jax.data import ragged
from qrpo_jax.data.corpus import Corpus, columns_of, join
from qrpo_jax.errors import DamagedError
from qrpo_jax.faults.records import read_record, write_record
from qrpo_jax.files import sha256, whole_file
from qrpo_jax.stores.copies import local
from qrpo_jax.stores.path import as_path

TOKEN = np.dtype("<i4")
SUFFIXES = {"tokens": ".tokens", "columns": ".npz"}


def part_path(folder: Path, part: int, parts: int) -> Path:
    """A part's path without a suffix."""
    return as_path(folder) / f"part-{part:05d}-of-{parts:05d}"


def write_part(folder: Path, part: int, parts: int, corpus: Corpus, key: str, counts: Mapping[str, int]) -> None:
    """Writes a part, complete or not at all; one that is there is replaced.

    Args:
      key: of what the part was made from, see `part_done`.
      counts: what was left out of it, by reason.

    Raises:
      OSError: the files could not be written in full.
    """
    path = part_path(folder, part, parts)
    record = path.with_name(path.name + ".json")
    record.unlink(missing_ok=True)  # an old record must not vouch for new files
    files = {name: path.with_name(path.name + suffix) for name, suffix in SUFFIXES.items()}
    facts: dict[str, Any] = {"key": key, "counts": dict(counts), "tokens": corpus.token_count}
    for name, file in files.items():
        with whole_file(file) as temporary:
            if name == "tokens":
                temporary.write_bytes(corpus.tokens.read(0, corpus.token_count).astype(TOKEN).tobytes())
            else:
                with temporary.open("wb") as stream:
                    np.savez(stream, allow_pickle=False, **columns_of(corpus))
            facts |= {f"{name} bytes": temporary.stat().st_size, f"{name} sha256": sha256(temporary)}
    write_record(record, facts)


def part_facts(folder: Path, part: int, parts: int) -> dict[str, Any] | None:
    """The record of a part; None if the part is not complete, judged by the sizes of its files."""
    path = part_path(folder, part, parts)
    try:
        facts = read_record(path.with_name(path.name + ".json"))
        sizes = {name: path.with_name(path.name + suffix).stat().st_size for name, suffix in SUFFIXES.items()}
    except (FileNotFoundError, DamagedError):
        return None
    return facts if all(facts[f"{name} bytes"] == size for name, size in sizes.items()) else None


def part_whole(folder: Path, part: int, parts: int, key: str) -> bool:
    """Whether a part is complete, of that key, and what was written; reads its files."""
    facts, path = part_facts(folder, part, parts), part_path(folder, part, parts)
    return (
        facts is not None
        and facts["key"] == key
        and all(facts[f"{name} sha256"] == sha256(path.with_name(path.name + end)) for name, end in SUFFIXES.items())
    )


def read_parts(folder: Path, parts: int, bos_token: int | None) -> tuple[Corpus, list[dict[str, int]]]:
    """The corpus of parts that are all complete, and what was left out of each, by reason.

    Args:
      bos_token: see `Corpus`.

    Raises:
      DamagedError: a part is not complete.
    """
    tokens, left_out, columns, files = [], [], [], []
    for part in range(parts):
        path, facts = part_path(folder, part, parts), part_facts(folder, part, parts)
        if facts is None:
            raise DamagedError(path, "a part of the tokens is not complete", "remove it and run again")
        tokens.append(facts["tokens"])
        left_out.append(facts["counts"])
        files.append(path.with_name(path.name + SUFFIXES["tokens"]))
        with np.load(local(path.with_name(path.name + SUFFIXES["columns"])), allow_pickle=False) as arrays:
            columns.append(dict(arrays))
    return join(columns, TokenFiles(files, tokens), bos_token), left_out


class TokenFiles:
    """Tokens in files, read in pieces that lie within one file; by any number of threads.

    A file stays open once it was read, because opening costs far more than reading, above all over a network.

    Args:
      counts: tokens of each file.
    """

    def __init__(self, files: Sequence[Path], counts: Sequence[int]) -> None:
        self._files, self._first = list(files), ragged.starts(counts)
        self._open: dict[int, BinaryIO] = {}
        self._lock = threading.Lock()

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens from `start` on, int32 [count].

        Raises:
          DamagedError: the file is shorter than it was.
        """
        if not count:  # behind the last token there is no file
            return np.zeros(0, TOKEN)
        part = int(np.searchsorted(self._first, start, side="right")) - 1
        at = (start - int(self._first[part])) * TOKEN.itemsize
        content = os.pread(self._descriptor(part), count * TOKEN.itemsize, at)
        if len(content) != count * TOKEN.itemsize:
            raise DamagedError(self._files[part], "it is shorter than it was", "remove it and run again")
        return np.frombuffer(content, TOKEN)

    def _descriptor(self, part: int) -> int:
        with self._lock:
            if part not in self._open:
                self._open[part] = local(self._files[part]).open("rb", buffering=0)
            return self._open[part].fileno()
