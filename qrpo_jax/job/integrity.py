"""What a complete stage left behind, and whether it is still that.

A stage's manifest lists its files with size and checksum. A start of the job compares the files of complete stages with
their lists before anything reads them; several processes share the work. Folders of arrays are not on the list: each
array has its own checksum, which is compared when it is loaded (`training.saved_parameters`, `training.checkpoints`).
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qrpo_jax.devices.cores import core_count
from qrpo_jax.devices.processes import anywhere
from qrpo_jax.errors import DamagedError
from qrpo_jax.files import DAMAGED, TEMPORARY, sha256
from qrpo_jax.job import pace, provenance
from qrpo_jax.job.manifest import MANIFEST

# Arrays, which have their own checksums, and what no later stage reads. Tokens are removed before the listing, but some
# network file systems keep a removed file under another name for as long as it is open.
UNLISTED = (
    "checkpoints",
    "parameters",
    "kept",
    "tensorboard",
    "wandb",
    "profile",
    "time.json",
    "tokens",
    provenance.FOLDER,
)
FILES = "files"  # the manifest's entry

Listing = dict[str, list[Any]]  # path, relative to the stage's folder: [bytes, sha256]


def listing(folder: Path, outside: Iterable[str] = ()) -> Listing:
    """The files of a stage's folder.

    Args:
      outside: files beside the folder that belong to the stage too.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if _is_listed(name)] + [f"../{name}" for name in outside]
    with ThreadPoolExecutor(core_count()) as pool:  # hashing releases Python's lock
        sums = pool.map(lambda name: [(folder / name).stat().st_size, sha256(folder / name)], names)
        return dict(zip(names, sums, strict=True))


def damaged_files(folder: Path, files: Mapping[str, list[Any]]) -> list[Path]:
    """The files that differ from a listing, or are missing. Every process must call it; all get the same answer."""
    mine = slice(jax.process_index(), None, jax.process_count())
    names, damaged = list(files), np.zeros(len(files), bool)

    def differs(name: str) -> bool:
        size, checksum = files[name]
        try:
            return (folder / name).stat().st_size != size or sha256(folder / name) != checksum
        except OSError:
            return True

    with ThreadPoolExecutor(core_count()) as pool:
        damaged[mine] = list(pool.map(differs, names[mine]))
    return [folder / name for name, wrong in zip(names, anywhere(damaged), strict=True) if wrong]


def check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuses a stage that was run again because files were damaged, and now made other ones.

    Raises:
      DamagedError: naming a file that differs.
    """
    files = old[FILES] | new[FILES]
    different = [name for name in files if old[FILES].get(name) != new[FILES].get(name)]
    if different:
        raise DamagedError(
            folder / different[0],
            "it was damaged, and made again it is another file, as on another machine or with other versions of "
            "libraries",
            f"restore it from a copy, or remove {folder} and the folders of the stages after it",
        )


def _is_listed(name: str) -> bool:
    parts = name.split("/")
    unread = any(part.startswith((DAMAGED, TEMPORARY)) for part in parts)
    return parts[0] not in UNLISTED and pace.FOLDER not in parts and name != MANIFEST and not unread
