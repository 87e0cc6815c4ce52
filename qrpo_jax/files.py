"""Files and folders that appear whole or not at all, on disk and in object stores, and checksums.

On disk they are written beside their place and renamed. In a store an object appears whole when it is put; a folder is
complete when the list of its objects is there, `NAME.objects.json` beside it, which is put last.
"""

import glob
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qrpo_jax.errors import DamagedError
from qrpo_jax.stores import copies
from qrpo_jax.stores.path import StorePath

# Names of unfinished files and folders begin with this. A kill may leave some behind; `sweep` removes them.
TEMPORARY = ".tmp-"
# Names of what was found damaged and set aside begin with this. Nothing reads it.
DAMAGED = "damaged-"
OBJECTS = ".objects.json"  # ends the name of the list of a folder's objects: {"NAME": [bytes, sha256], ...}
COMMITTED = "commit_success.txt"  # with this object Orbax marks a complete folder
TRANSFERS = 8  # objects that are put or fetched at a time


def sha256(path: Path) -> str:
    """Checksum of a file, as 64 hexadecimal digits."""
    with copies.local(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path next to `path`, which takes its place when the block ends without an error.

    The folder is made if it is missing, the content is synchronised to disk before it is renamed, and the permissions
    are those of any new file. Of an object, it is a local path that is put.
    """
    if isinstance(path, StorePath):
        file = copies.scratch(path.name)
        try:
            yield file
            path.store.put(str(path), file)
            copies.keep(path, file)
        finally:
            _remove(file.parent)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex}")
    try:
        yield temporary
        _synchronise(temporary)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk is met while buffers are written, which have no name
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new temporary folder next to `path`, which takes its place when the block ends without an error.

    Raises:
      FileExistsError: `path` is a file, or a folder that is not empty; in a store, a complete folder.
    """
    if isinstance(path, StorePath):
        if is_complete(path):
            raise FileExistsError(f"{path} exists")
        with put_folder(path) as folder:
            yield folder
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty")
    for leftover in path.parent.glob(f"{TEMPORARY}{glob.escape(path.name)}-{'[0-9a-f]' * 32}"):
        _remove(leftover)
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for entry in temporary.rglob("*"):
            if entry.is_file():
                _synchronise(entry)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def put_folder(path: StorePath) -> Iterator[Path]:
    """A new local folder, which is put in the place of a folder in a store when the block ends without an error."""
    folder = copies.scratch(path.name)
    folder.mkdir()
    try:
        yield folder
        put_copy(folder, path)
    finally:
        _remove(folder.parent)


def put_copy(folder: Path, path: StorePath) -> None:
    """Puts a local folder in the place of a folder in a store."""
    objects_list(path).unlink(missing_ok=True)  # an old list must not vouch for new objects
    list_objects(path, put_objects(folder, path))


def put_objects(folder: Path, path: StorePath) -> dict[str, list[Any]]:
    """Puts the files of a local folder below a folder in a store; returns their size and sha256 by name."""
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    # Orbax takes a folder for complete that has this object, so it comes after the others.
    marks = [name for name in names if name == COMMITTED]
    for some in ([name for name in names if name != COMMITTED], marks):
        _each(some, lambda name: path.store.put(str(path / name), folder / name))
    return {name: [(folder / name).stat().st_size, sha256(folder / name)] for name in names}


def list_objects(path: StorePath, objects: dict[str, list[Any]]) -> None:
    """Makes a folder in a store complete, whose objects are these; size and sha256 by name."""
    write_json(objects_list(path), dict(sorted(objects.items())))


def local_folder(path: Path) -> Path:
    """A folder with the files of `path`: itself, or a copy of a folder in a store, which is for reading.

    It is fetched once for each list of objects. A folder without a list, which another program has put, is taken as the
    store lists it.

    Raises:
      DamagedError: an object is missing, or is not what was put.
    """
    if not isinstance(path, StorePath):
        return path
    objects, folder = read_objects(path), copies.scratch(path.name)
    copy = copies.named(path, json.dumps(objects)) if objects is not None else folder
    if copy.exists():
        return copy

    def fetch(name: str) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.store.fetch(str(path / name), file)
        except FileNotFoundError:
            raise DamagedError(path / name, "it is missing") from None
        if objects is not None and [file.stat().st_size, sha256(file)] != objects[name]:
            raise DamagedError(path / name, "it is not what was put")

    folder.mkdir()
    _each(list(path.store.below(str(path)) if objects is None else objects), fetch)
    if copy != folder:
        copy.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder, copy)
    return copy


def is_complete(folder: Path) -> bool:
    """Whether a folder of `whole_folder` is there: on disk if it exists, in a store if it has a list of objects."""
    return objects_list(folder).exists() if isinstance(folder, StorePath) else folder.exists()


def objects_list(folder: StorePath) -> Path:
    """The list of the objects of a folder in a store."""
    return folder.with_name(folder.name + OBJECTS)


def read_objects(folder: StorePath) -> dict[str, list[Any]] | None:
    """Size and sha256 of the objects of a folder in a store, by name; None if it has no list of them.

    Raises:
      DamagedError: the list is none.
    """
    record = objects_list(folder)
    try:
        objects = json.loads(record.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise DamagedError(record, "it is no JSON") from None
    if not isinstance(objects, dict) or not all(isinstance(entry, list) for entry in objects.values()):
        raise DamagedError(record, "it is no list of objects")
    return objects


def move_folder(path: Path, target: Path) -> None:
    """Gives a folder another name, in the place of what had it before; in a store, by copies of its objects."""
    if not isinstance(path, StorePath):
        shutil.rmtree(target, ignore_errors=True)
        path.rename(target)
        return
    remove_folder(target)
    names = path.store.below(str(path))
    _each(names, lambda name: path.store.copy(str(path / name), str(target / name)))
    remove_folder(path)


def remove_folder(path: Path) -> None:
    """Removes a folder with all that it holds, if it is there; in a store, with its list of objects."""
    if not isinstance(path, StorePath):
        shutil.rmtree(path, ignore_errors=True)
        return
    for mark in (objects_list(path), path / COMMITTED):
        mark.unlink(missing_ok=True)
    _each(path.store.below(str(path)), lambda name: path.store.remove(str(path / name)))


def copy_file(path: Path, target: Path) -> None:
    """Copies a file, on disk or in a store; it appears whole or not at all."""
    source = copies.local(path)
    with whole_file(target) as temporary:
        shutil.copyfile(source, temporary)


def _each(names: list[str], transfer: Callable[[str], None]) -> None:
    """Transfers several objects at a time; raises what the first one raises that fails."""
    with ThreadPoolExecutor(TRANSFERS) as pool:
        list(pool.map(transfer, names))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes, whole or not at all."""
    if isinstance(path, StorePath):
        path.write_bytes(content)
        return
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=True) + "\n")


def grown(path: Path) -> Path:
    """Where a library lets a file or folder grow: at its place on disk; for a store, in a local copy."""
    return copies.scratch(path.name) if isinstance(path, StorePath) else path


def hand_over(local: Path, path: Path) -> None:
    """Puts what has grown in a local copy; what grows at its place is there already."""
    if local == path:
        return
    for file in local.rglob("*") if local.is_dir() else [local]:
        if file.is_file():
            copy_file(file, path / file.relative_to(local))


def unwritable(folder: Path) -> str:
    """Why files cannot be made in a folder on disk, or the folder itself cannot; "" if they can. Makes nothing."""
    # os.path.exists is False where Path.exists raises: below a folder that may not be searched.
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    try:
        with tempfile.TemporaryFile(dir=existing):
            return ""
    except OSError as error:
        return f"{existing}: {error.strerror}"


def sweep(folder: Path, name: str = "") -> None:
    """Removes leftovers of killed writers from `folder`; nothing may be writing there.

    Args:
      name: only leftovers of this file or folder; "" for all.
    """
    if isinstance(folder, StorePath):
        return  # objects appear whole, so nothing is left over
    for leftover in folder.glob(f"{TEMPORARY}{glob.escape(name)}*"):
        _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _synchronise(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
