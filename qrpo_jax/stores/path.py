"""Paths in object stores: a drop-in for `pathlib.Path` that reads whole objects and never renames or appends."""

import fnmatch
import io
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from qrpo_jax.stores.store import Info, Store, open_store

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Status(NamedTuple):
    """What `os.stat` would say of an object; the inode and the time stand for its version."""

    st_mode: int
    st_size: int
    st_ino: int
    st_mtime_ns: int


def as_path(text: str | Path) -> Path:
    """The path that a text names: in a store if it is an address, else of a file. A path is itself.

    >>> as_path("gs://bucket/run") / "sft", as_path("runs/quickstart").name
    (StorePath('gs://bucket/run/sft'), 'quickstart')
    """
    if isinstance(text, Path):
        return text
    return StorePath(text) if ADDRESS.match(text) else Path(text)


class StorePath(type(Path())):  # type: ignore[misc]
    """An object, or the folder of the objects whose names begin with this one's.

    Folders need not be made, and end with their last object. Writing goes through `files`, which puts whole objects.

    >>> path = StorePath("s3://bucket/run/rows.json")
    >>> path.name, str(path.parent), str(path.relative_to(StorePath("s3://bucket")))
    ('rows.json', 's3://bucket/run', 'run/rows.json')
    """

    def __str__(self) -> str:
        first, *parts = self.parts or ("",)
        rest: list[str] = []
        for part in parts:  # a store takes .. for a name
            if part == ".." and first.endswith(":"):
                rest.pop()
            else:
                rest.append(part)
        return f"{first}//{'/'.join(rest)}" if first.endswith(":") else "/".join([first, *rest])

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    @property
    def store(self) -> Store:
        """The store that it is in."""
        return open_store(self.parts[0].removesuffix(":"))

    def absolute(self) -> "StorePath":
        return self

    def resolve(self, strict: bool = False) -> "StorePath":
        return self

    def expanduser(self) -> "StorePath":
        return self

    def is_absolute(self) -> bool:
        return True

    def look_up(self) -> Info | None:
        """What the store knows of it; None if nothing is there."""
        return self.store.info(str(self))

    def exists(self, **_: Any) -> bool:
        return self.look_up() is not None

    def is_file(self, **_: Any) -> bool:
        found = self.look_up()
        return found is not None and not found.folder

    def is_dir(self, **_: Any) -> bool:
        found = self.look_up()
        return found is not None and found.folder

    def stat(self, **_: Any) -> Any:
        found = self.look_up()
        if found is None:
            raise FileNotFoundError(2, "no such object", str(self))
        version = int(found.version[:15] or "0", 16)
        return Status(stat.S_IFDIR if found.folder else stat.S_IFREG, found.size, version, version)

    def iterdir(self) -> Iterator["StorePath"]:
        return (self / name for name in self.store.children(str(self)))

    def glob(self, pattern: str, **_: Any) -> Iterator["StorePath"]:
        """As `Path.glob`, without `**`."""
        first, _sep, rest = str(pattern).partition("/")
        for child in self.iterdir():
            if fnmatch.fnmatchcase(child.name, first):
                yield from child.glob(rest) if rest else (child,)

    def rglob(self, pattern: str, **_: Any) -> Iterator["StorePath"]:
        """The objects below whose last name matches; folders, which are none, are left out."""
        paths = (self / name for name in self.store.below(str(self)))
        return (path for path in paths if fnmatch.fnmatchcase(path.name, str(pattern)))

    def read_bytes(self) -> bytes:
        return self.store.read(str(self))

    def read_text(self, encoding: str | None = None, *_: Any, **__: Any) -> str:
        return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding or "utf-8").read()

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        """For reading: a file in memory, so not for large objects, of which `copies.local` has a copy."""
        if mode not in ("r", "rb", "rt"):
            raise io.UnsupportedOperation(f"{self} cannot be opened with mode {mode!r}; files.whole_file puts objects")
        content = io.BytesIO(self.read_bytes())
        return content if "b" in mode else io.TextIOWrapper(content, "utf-8")

    def write_bytes(self, data: Any) -> int:
        self.store.write(str(self), bytes(data))
        return len(data)

    def write_text(self, data: str, *_: Any, **__: Any) -> int:
        return self.write_bytes(data.encode())

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(2, "no such object", str(self))
        self.store.remove(str(self))

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Nothing: a store has no folders."""

    def rename(self, target: Any) -> Any:
        raise io.UnsupportedOperation(f"{self} cannot be renamed: it is in an object store")

    replace = rename
