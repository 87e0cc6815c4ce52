"""Folders that an export makes: new, and written by all processes of a job together."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax

from qrpo_jax import files
from qrpo_jax.devices.processes import from_all, from_first, is_first, wait
from qrpo_jax.errors import UserError
from qrpo_jax.files import is_complete
from qrpo_jax.stores import copies
from qrpo_jax.stores.path import StorePath


def check_new(folder: Path) -> None:
    """Refuses a place where something is already.

    Raises:
      UserError: the folder exists and is not empty.
    """
    if is_complete(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists and is not empty; remove it or choose another folder to export to", about="folder"
        )


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder into which each process writes files of its own, and which is in the place of `path` after the block.

    All processes enter and leave together. The folder appears complete or not at all: on disk, all write into one that
    the first process renames; to a store, each puts its own files, and the first one lists them all.
    """
    if jax.process_count() == 1:
        with files.whole_folder(path) as folder:
            yield folder
        return
    if isinstance(path, StorePath):
        folder = copies.scratch(path.name)
        folder.mkdir()
        with ExitStack() as stack:
            stack.callback(files.remove_folder, folder.parent)
            yield folder
            objects = from_all(json.dumps(files.put_objects(folder, path)))
            if is_first():
                files.list_objects(path, {name: entry for text in objects for name, entry in json.loads(text).items()})
    else:
        with ExitStack() as stack:
            name = stack.enter_context(files.whole_folder(path)).name if is_first() else ""
            yield path.with_name(from_first(name))
            wait(f"all files of {path.name} are written")
    wait(f"{path.name} is in its place")
