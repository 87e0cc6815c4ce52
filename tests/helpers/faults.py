"""What can happen to a file between two starts of a job."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

Fault = Callable[[Path, np.random.Generator], None]


def flip(path: Path, rng: np.random.Generator) -> None:
    """One bit of one byte."""
    content = bytearray(path.read_bytes())
    if content:
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)


def cut(path: Path, rng: np.random.Generator) -> None:
    """The end is missing."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(len(content))] if content else b"")


def delete(path: Path, rng: np.random.Generator) -> None:
    path.unlink()


def swap(path: Path, rng: np.random.Generator) -> None:
    """With another file of its folder, or with the same file of the folder beside, if there is one."""
    beside = [other for other in path.parent.iterdir() if other.is_file()]
    beside += [folder / path.name for folder in path.parent.parent.iterdir() if (folder / path.name).is_file()]
    others = sorted(other for other in beside if other != path)
    if others:
        other = others[rng.integers(len(others))]
        mine, theirs = path.read_bytes(), other.read_bytes()
        path.write_bytes(theirs)
        other.write_bytes(mine)


FAULTS: dict[str, Fault] = {"flip": flip, "cut": cut, "delete": delete, "swap": swap}


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outcome(folder: Path) -> dict[str, bytes]:
    """What a run made: all files but journals and starts, which say when, and the pace of units: how long."""
    times = ("journal-*", "pace/*", "starts/*")
    return {name: data for name, data in content(folder).items() if not any(map(Path(name).match, times))}


@contextmanager
def restored(folder: Path) -> Iterator[dict[str, bytes]]:
    """Yields the files of a folder, and puts them back at the end."""
    files = content(folder)
    try:
        yield files
    finally:
        for name in content(folder):
            if name not in files:
                (folder / name).unlink()
        for path in sorted(folder.rglob("*"), reverse=True):  # a folder behind those in it
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        for name, data in files.items():
            path = folder / name
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
