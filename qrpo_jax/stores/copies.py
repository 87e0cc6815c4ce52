"""Local copies of objects, for libraries that read and write files; in a folder that this process alone uses."""

import atexit
import fcntl
import functools
import hashlib
import os
import shutil
import tempfile
import threading
import uuid
from pathlib import Path

from qrpo_jax.stores.path import StorePath

PREFIX = "qrpo-jax-copies-"  # of the folder's name
_LOCK = threading.Lock()


def local(path: Path) -> Path:
    """A file with the content of `path`: itself, or a copy of an object, which is fetched once for each version.

    Raises:
      FileNotFoundError: there is no such object.
    """
    if not isinstance(path, StorePath):
        return path
    info = path.look_up()
    if info is None or info.folder:
        raise FileNotFoundError(2, "no such object", str(path))
    copy = named(path, info.version)
    with _LOCK:
        if not copy.exists():
            partial = scratch(path.name)
            path.store.fetch(str(path), partial)
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, copy)
    return copy


def keep(path: StorePath, file: Path) -> None:
    """Takes a local file, which has just been put, as the copy of an object."""
    info = path.look_up()
    if info is not None and info.size == file.stat().st_size:
        copy = named(path, info.version)
        copy.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, copy)


def named(path: StorePath, version: str) -> Path:
    """Where the copy of a version of an object or folder lies, if it has been fetched."""
    key = hashlib.sha256(f"{path} {version}".encode()).hexdigest()[:32]
    return folder() / "copies" / key / path.name


def scratch(name: str) -> Path:
    """A new path in the folder of this process, whose last part is `name`; the folder around it exists."""
    parent = folder() / uuid.uuid4().hex
    parent.mkdir()
    return parent / name


@functools.cache
def folder() -> Path:
    """The folder of this process, which goes with it; those of processes that were killed go now."""
    home = Path(tempfile.gettempdir())
    for left in home.glob(f"{PREFIX}*"):
        if _lock(left) is not None:
            shutil.rmtree(left, ignore_errors=True)
    # Locked before it gets the name by which others look for folders that nobody has locked.
    unnamed, process = Path(tempfile.mkdtemp(prefix="qrpo-jax-")), os.getpid()
    _lock(unnamed)
    mine = unnamed.rename(home / f"{PREFIX}{uuid.uuid4().hex}")
    atexit.register(lambda: shutil.rmtree(mine, ignore_errors=True) if os.getpid() == process else None)
    return mine


def _lock(place: Path) -> int | None:
    """A file in a folder, locked until this process ends, however it ends; None if another process has it locked."""
    try:
        file = os.open(place / "lock", os.O_RDWR | os.O_CREAT)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file
