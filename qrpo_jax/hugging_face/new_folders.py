"""Folders that an export makes: new, with the permissions of ordinary files, and read back after they are written."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from qrpo_jax.errors import UserError
from qrpo_jax.files import is_complete


def check_new(folder: Path) -> None:
    """Refuses a place where something is already.

    Raises:
      UserError: the folder exists and is not empty.
    """
    if is_complete(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists and is not empty; remove it or choose another folder to export to", about="folder"
        )


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file as torch's own have it, whose `format` is "pt", and compares it with what is in memory.

    Raises:
      OSError: the file does not hold the tensors that were written.
    """
    path.touch()
    permissions = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(permissions)  # save_file lets no other user read what it writes
    _forget(path)
    with safe_open(path, "numpy") as opened:
        wrong = sorted(set(opened.keys()) ^ set(tensors))
        wrong += [name for name in tensors if not wrong and not _same(opened.get_tensor(name), tensors[name])]
    if wrong:
        raise OSError(errno.EIO, f"tensor {wrong[0]} is not the one that was written", str(path))


def _same(read: np.ndarray, written: np.ndarray) -> bool:
    equal = read.shape == written.shape and read.dtype == written.dtype
    return equal and np.array_equal(read.reshape(-1).view(np.uint8), written.reshape(-1).view(np.uint8))


def _forget(path: Path) -> None:
    """Lets the next reader read a file from the disk, and not from the memory that it was written from."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # Linux
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
