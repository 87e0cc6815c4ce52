"""Folders that an export makes: never over something that exists, and with the permissions of ordinary files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from qrpo_jax.errors import UserError


def check_new(folder: Path) -> None:
    """Refuses a place where something is already.

    Raises:
      UserError: the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} exists and is not empty; remove it or choose another folder to export to", about="folder"
        )


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file as torch's own have it, whose `format` is "pt"."""
    path.touch()
    permissions = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(permissions)  # save_file lets no other user read what it writes
