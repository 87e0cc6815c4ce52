"""A fake object store below a local folder, for fsspec: no rename, no append, late listings, calls that fail.

`FAKE_STORE` in the environment names the folder, `FAKE_LATE` the seconds in which listings miss a new object and show a
removed one, `FAKE_FAILS` the share of calls that fail: half of these have been done, and only their answer is lost.
While a file `closed` is in the folder, all calls fail.
"""

import os
import random
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import fsspec
import pytest

from qrpo_jax.stores import store as stores

PROTOCOL = "fake"
SITE = """
import fsspec
fsspec.register_implementation("fake", "tests.helpers.fake_store.FakeStore")
"""


class UnavailableError(Exception):
    """The fake's server does not answer; not an OSError, as with the libraries of real stores."""


class FakeStore(fsspec.AbstractFileSystem):
    """Objects are files, whose time of birth is in a second file; removed ones leave a third."""

    protocol = PROTOCOL
    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._random = random.Random(int(os.environ.get("FAKE_SEED", "0")))
        self.calls = 0

    @property
    def _root(self) -> Path:
        root = Path(os.environ["FAKE_STORE"])
        for name in ("objects", "born", "removed"):
            (root / name).mkdir(parents=True, exist_ok=True)
        return root

    def _file(self, path: str, kind: str = "objects") -> Path:
        return self._root / kind / quote(self._strip_protocol(path), safe="")

    def _call(self, work: Any) -> Any:
        """Does the work of a call, which may fail before or after it."""
        self.calls += 1
        closed = (self._root / "closed").exists()
        fate = 0.0 if closed else self._random.random() / float(os.environ.get("FAKE_FAILS", "0.05"))
        if fate < 0.5:
            raise UnavailableError("the request was lost")
        result = work()
        if fate < 1:
            raise UnavailableError("the answer was lost")
        return result

    def _put(self, path: str, content: bytes, *, create: bool = False) -> None:
        file = self._file(path)
        partial = self._root / uuid.uuid4().hex
        partial.write_bytes(content)
        if create:
            try:
                os.link(partial, file)
            except FileExistsError:
                raise FileExistsError(path) from None
            finally:
                partial.unlink()
        else:
            os.replace(partial, file)
        born = self._file(path, "born")
        if not born.exists():
            born.touch()
        self._file(path, "removed").unlink(missing_ok=True)

    def _read(self, path: str) -> bytes:
        try:
            return self._file(path).read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(path) from None

    def _listed(self) -> dict[str, int]:
        """Names as a listing shows them, with sizes."""
        late, now = float(os.environ.get("FAKE_LATE", "0")), time.time()
        names = {}
        for kind, after in (("born", True), ("removed", False)):
            for file in (self._root / kind).iterdir():
                try:
                    known = now - file.stat().st_mtime >= late
                    if known is after and (kind == "removed" or (self._root / "objects" / file.name).exists()):
                        one = self._root / "objects" / file.name
                        names[unquote(file.name)] = one.stat().st_size if one.exists() else 0
                except FileNotFoundError:
                    continue
        return names

    def _remove(self, path: str) -> None:
        self._read(path)
        listed = self._strip_protocol(path) in self._listed()
        self._file(path).unlink(missing_ok=True)
        self._file(path, "born").unlink(missing_ok=True)
        if listed:
            self._file(path, "removed").touch()

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            name, file = self._strip_protocol(path), self._file(path)
            try:
                status = file.stat()
                return {"name": name, "size": status.st_size, "type": "file", "etag": status.st_ino}
            except FileNotFoundError:
                if any(other.startswith(f"{name}/") for other in self._listed()):
                    return {"name": name, "size": 0, "type": "directory"}
                raise FileNotFoundError(path) from None

        return self._call(work)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        def work() -> list[Any]:
            name, found = self._strip_protocol(path), {}
            for other, size in self._listed().items():
                if other.startswith(f"{name}/"):
                    child, deeper, _ = other[len(name) + 1 :].partition("/")
                    kind = "directory" if deeper else "file"
                    found[f"{name}/{child}"] = {"name": f"{name}/{child}", "size": size, "type": kind}
            if not found:
                raise FileNotFoundError(path)
            return list(found.values()) if detail else list(found)

        return self._call(work)

    def find(self, path: str, *_: Any, **__: Any) -> list[str]:
        name = self._strip_protocol(path)
        return self._call(lambda: sorted(other for other in self._listed() if other.startswith(f"{name}/")))

    def cat_file(self, path: str, *_: Any, **__: Any) -> bytes:
        return self._call(lambda: self._read(path))

    def get_file(self, path: str, lpath: str, *_: Any, **__: Any) -> None:
        self._call(lambda: Path(lpath).write_bytes(self._read(path)))

    def put_file(self, lpath: str, path: str, *_: Any, **__: Any) -> None:
        self._call(lambda: self._put(path, Path(lpath).read_bytes()))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        self._call(lambda: self._put(path, value, create=mode == "create"))

    def rm_file(self, path: str) -> None:
        self._call(lambda: self._remove(path))

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        self._call(lambda: self._put(path2, self._read(path1)))

    def mv(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("a store has no rename")

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        raise NotImplementedError(f"nothing opens {path} with mode {mode}")


def install(root: Path, patch: pytest.MonkeyPatch, *, late: float = 3600.0, fails: float = 0.05) -> None:
    """Makes fake:// a store below a folder in this process, with short pauses between attempts."""
    for name, value in environment(root, late=late, fails=fails).items():
        if name.startswith("FAKE_"):
            patch.setenv(name, value)
    patch.setattr(stores, "FIRST_PAUSE", 0.0001)
    patch.setattr(stores, "SETTLE_SECONDS", 0.05)
    fsspec.register_implementation(PROTOCOL, FakeStore, clobber=True)
    stores.open_store.cache_clear()


def environment(root: Path, *, late: float = 5.0, fails: float = 0.05, seed: int = 0) -> dict[str, str]:
    """For processes: where the store is and how it behaves. Their interpreters register it when they start."""
    site = root.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join(filter(None, [str(site), str(Path(__file__).resolve().parents[2])]))
    return {
        "FAKE_STORE": str(root),
        "FAKE_LATE": str(late),
        "FAKE_FAILS": str(fails),
        "FAKE_SEED": str(seed),
        "PYTHONPATH": path + os.pathsep + os.environ.get("PYTHONPATH", ""),
    }


def objects(root: Path) -> dict[str, bytes]:
    """All objects, by name, whatever a listing says."""
    return {unquote(file.name): file.read_bytes() for file in (root / "objects").iterdir()}
