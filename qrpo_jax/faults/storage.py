"""Storage that fails: a full disk, a quota, a folder that is read-only or gone. Told from bugs, and said in one line.

Our own writers raise OSError. ArrayRecord, safetensors and Orbax raise other types, often from threads and wrapped in
each other, and say in their message what the operating system said.
"""

import errno
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from qrpo_jax.files import TEMPORARY
from qrpo_jax.stores.path import as_path
from qrpo_jax.stores.store import StoreError

_ROOM, _RIGHTS, _BACK = "make room", "make it writable", "make it available again"
# What can only be the storage's fault, wherever the file is.
_ANYWHERE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EROFS: _RIGHTS,
    errno.ENAMETOOLONG: "choose a shorter --workdir",
    errno.EIO: _BACK,
    errno.ESTALE: _BACK,
}
# What may be a bug or a mistake of the user elsewhere, and is the storage's fault in the work directory.
_INSIDE = {
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOTDIR: _BACK,
    errno.ENODEV: _BACK,
    errno.ENXIO: _BACK,
    errno.ENOTCONN: _BACK,
    errno.EREMOTEIO: _BACK,
}
_CODES = (*_ANYWHERE, *_INSIDE, errno.ENOENT)
RECORD = "settings.json"  # every stage's folder has it from the start
_ORBAX_TEMPORARY = ".orbax-checkpoint-tmp"


class _Failure(NamedTuple):
    code: int
    path: Path | None
    words: str


def explain(error: BaseException, workdir: Path) -> str | None:
    """One line with path, reason and what to do, if storage that failed is behind this error; None for any other.

    Args:
      error: also looked at are the errors that it was raised from, or while handling.
      workdir: a missing file counts only if this folder, or what the stage's folder in it held, is gone; else it is a
        bug. The folders themselves may be there again: libraries make them anew.
    """
    workdir = workdir.absolute()
    failures = [found for link in _chain(error) for found in _failures(link, workdir) if _counts(found, workdir)]
    if not failures:
        return None
    # Buffers that are flushed do not know their file, and the error that they replace often does.
    code, path, words = next((found for found in failures if found.path is not None), failures[0])
    advice = (_ANYWHERE | _INSIDE).get(code, _BACK)
    where = _final(path or workdir)
    return f"{where}: {words}; {advice} and run the same command: it goes on from what is complete"


def refuses(error: BaseException) -> bool:
    """Whether storage that cannot be read now is behind an error, and not a file that is missing or changed."""
    codes = {found.code for link in _chain(error) for found in _failures(link, Path("/"))}
    return bool(codes - {errno.ENOENT, errno.ENOTDIR})


def hush(workdir: Path) -> None:
    """Keeps threads and loggers from printing tracebacks of storage that fails: `main` says it once, in one line."""
    print_thread, print_unraisable = threading.excepthook, sys.unraisablehook

    def is_echo(error: BaseException | None) -> bool:
        # Orbax ends its event loop at the first error, and the writes that are still under way find it closed.
        closed = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        return closed or (error is not None and explain(error, workdir) is not None)

    def of_thread(args: threading.ExceptHookArgs) -> None:
        if not is_echo(args.exc_value):
            print_thread(args)

    def of_destructor(args: "sys.UnraisableHookArgs") -> None:
        if not is_echo(args.exc_value):
            print_unraisable(args)

    def is_news(record: logging.LogRecord) -> bool:
        return not is_echo(RuntimeError(record.getMessage())) and not (record.exc_info and is_echo(record.exc_info[1]))

    threading.excepthook, sys.unraisablehook = of_thread, of_destructor
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(is_news)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        link = waiting.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        inner = link.exceptions if isinstance(link, BaseExceptionGroup) else ()
        waiting += [one for one in (*inner, link.__cause__, link.__context__) if one is not None]


def _failures(error: BaseException, workdir: Path) -> list[_Failure]:
    """What one error says, by its number or in its text."""
    if isinstance(error, OSError) and error.errno is not None:
        name = error.filename2 or error.filename
        path = as_path(os.fsdecode(name)).absolute() if isinstance(name, str | bytes) else None
        words = str(error.strerror) if isinstance(error, StoreError) else os.strerror(error.errno)
        return [_Failure(error.errno, path, words)] if error.errno in _CODES else []
    text = str(error)
    found = re.search(re.escape(str(workdir)) + r"[^\"';\n]*", text)
    path = as_path(found[0].partition(": ")[0]) if found else None
    return [_Failure(code, path, os.strerror(code)) for code in _CODES if os.strerror(code) in text]


def _counts(failure: _Failure, workdir: Path) -> bool:
    if failure.code in _ANYWHERE:
        return True
    if failure.path is None or not failure.path.is_relative_to(workdir):
        return False
    parts = failure.path.relative_to(workdir).parts
    held = workdir / parts[0] / RECORD if len(parts) > 1 else workdir
    return failure.code in _INSIDE or not _exists(held)


def _exists(path: Path) -> bool:
    """Whether something is there; a store that does not answer has nothing."""
    try:
        return os.path.exists(path) if type(path) is type(Path()) else path.exists()
    except OSError:
        return False


def _final(path: Path) -> Path:
    """The name that a temporary file or folder would have got."""
    for i, part in enumerate(path.parts):
        if part.startswith(TEMPORARY):
            return Path(*path.parts[:i], re.sub(r"-[0-9a-f]{32}$", "", part.removeprefix(TEMPORARY)))
        if _ORBAX_TEMPORARY in part:
            return Path(*path.parts[:i], part.partition(_ORBAX_TEMPORARY)[0])
    return path
