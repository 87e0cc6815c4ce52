"""Files that an address names: a path or a pattern, on disk or in an object store, plain or compressed."""

import bz2
import errno
import functools
import gzip
import hashlib
import lzma
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from qrpo_jax.data.tables.table import named_in
from qrpo_jax.errors import UserError
from qrpo_jax.files import sha256
from qrpo_jax.stores.copies import local, scratch
from qrpo_jax.stores.path import as_path

WILD = re.compile(r"[*?\[]")


PART = 1 << 20  # bytes that are decompressed at a time
COMPRESSIONS: Mapping[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".zst": lambda path: pa.input_stream(str(path), compression="zstd"),
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
BROKEN = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, pa.ArrowException)


def find(address: str, what: str) -> list[Path]:
    """The files of a path, or all that match a pattern such as `data/*.jsonl`, in order of their names.

    Args:
      what: the user should name, for messages.

    Raises:
      UserError: about `path`: there is none, or it is a folder.
    """
    path = as_path(address)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
        found = [path] if is_file or not WILD.search(address) else _matching(address)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name {what}", about="path") from None
    except (ValueError, NotImplementedError):  # a NUL; a pattern that the place cannot match
        is_file, is_folder, found = False, False, []
    if not address or is_folder:
        kind = f"{path} is a folder" if address else "no file is named"
        raise UserError(f"{kind}; name {what}", about="path")
    if WILD.search(address) and not found:
        raise UserError(f"no file matches {address}; name {what}", about="path")
    if not found or found == [path] and not is_file:
        raise UserError(f"no file {path}; name {what}", about="path")
    return found


def _matching(pattern: str) -> list[Path]:
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if WILD.search(part))
    folder = as_path("/".join(parts[:first]) or ("/" if pattern.startswith("/") else "."))
    return sorted(path for path in folder.glob("/".join(parts[first:])) if path.is_file())


def of_split(paths: list[Path], split: str, without: str) -> list[Path]:
    """The files whose names have the split as a word, such as test-00000-of-00002.parquet; all for "".

    Args:
      without: a split whose files are left out.

    Raises:
      UserError: about `split`: no file has it.
    """
    kept = [path for path in paths if not split or named_in(split, path.parts)]
    kept = [path for path in kept if not without or not named_in(without, path.parts)]
    if not kept:
        names = ", ".join(path.name for path in paths[:5]) + (", ..." if len(paths) > 5 else "")
        missing = f"no file of split {split!r}" if split else f"no file beside those of split {without!r}"
        raise UserError(f"{missing}; it must be a word of a file's name, and the files are {names}", about="split")
    return kept


def version(path: Path) -> tuple[int, ...]:
    """Inode, size and time of the last change of a file: another content has another version. Empty without a file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # a name with a NUL is a ValueError
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=4096)
def plain(path: Path, _: tuple[int, ...]) -> Path:
    """A local file with the content of `path`, decompressed as the end of its name says.

    A decompressed copy lies in the folder of this process, which goes with it.

    Args:
      _: the file's `version`: changed files are read again.

    Raises:
      UserError: about `path`: it cannot be read.
    """
    try:
        whole = local(path)
        unpack = COMPRESSIONS.get(path.suffix)
        if unpack is None:
            return whole
        with unpack(whole) as packed:
            return _unpacked(packed, path)
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{path} cannot be read ({error.strerror})", about="path") from None
        raise UserError(
            f"{path} is not whole, or not compressed as its name says; copy it again", about="path"
        ) from None


def _unpacked(packed: BinaryIO, path: Path) -> Path:
    copy = scratch(path.stem)
    try:
        with copy.open("wb") as file:
            shutil.copyfileobj(packed, file, PART)
    except BROKEN as error:
        copy.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise UserError(
                f"{path} does not fit decompressed into {copy.parent.parent}; set TMPDIR to a folder with more space, "
                "or decompress the file",
                about="path",
            ) from None
        raise
    return copy


def identity(paths: tuple[Path, ...]) -> str:
    """One digest of the contents of files."""
    return hashlib.sha256("".join(_digest(path, version(path)) for path in paths).encode()).hexdigest()


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, _: tuple[int, ...]) -> str:
    return sha256(path)
