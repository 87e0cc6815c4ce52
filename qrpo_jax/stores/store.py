"""One object store: all calls to it, repeated while they fail, with listings that know what this process has met."""

import errno
import functools
import hashlib
import random
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from qrpo_jax.errors import UserError, reason

ATTEMPTS = 8  # of a call: about half a minute in all
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0  # seconds between attempts, doubled from one to the next
SETTLE_SECONDS = 2.0  # see `Store.create`
# Answers that another attempt would not change.
FINAL = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    ImportError,
    TypeError,
    AttributeError,
)
# Stores that put an object only where none is, and decide which of two callers did.
CONDITIONAL = {"gs", "gcs", "s3"}
PRECONDITION = errno.EINVAL  # s3fs says so where the object is there
# What to install, and the extra of this package that installs it.
PACKAGES = {"gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}


class StoreError(OSError):
    """A store that did not do what it was asked, however often it was asked.

    Attributes:
      filename: the address.
      strerror: what the last attempt met.
    """

    def __init__(self, address: str, error: BaseException) -> None:
        super().__init__(errno.EIO, reason(error), address)


class Info(NamedTuple):
    """What a store knows of a name.

    Attributes:
      folder: objects lie below it, and none has this name itself.
      size: in bytes; 0 for a folder.
      version: text that differs between two contents of the object.
    """

    folder: bool
    size: int
    version: str


@functools.cache
def open_store(protocol: str) -> "Store":
    """The store of a protocol such as "gs"; nothing is sent to it yet.

    Raises:
      UserError: there is no such protocol, or its package is not installed.
    """
    import fsspec  # where no store is used, it is not imported

    if protocol in ("file", "local", "http", "https"):
        raise UserError(f"{protocol}:// is no object store; name a folder, or an address such as gs://bucket/folder")
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise UserError(f"{protocol}:// is no protocol of a store; such are gs:// and s3://") from None
    except ImportError as error:
        package, extra = PACKAGES.get(protocol, ("", ""))
        install = f"pip install {package} (extra {extra!r} of qrpo-jax)" if package else reason(error)
        raise UserError(f"{protocol}:// needs a package that is not installed: {install}") from None
    return Store(fsspec.filesystem(protocol, use_listings_cache=False), conditional=protocol in CONDITIONAL)


class Store:
    """The calls that a run makes to a store.

    Listings of a store may miss new objects and show removed ones. Those here also have what this process has put or
    read, and lack what it has removed.

    Args:
      filesystem: of fsspec.
      conditional: it has a put that fails if the object is there.
    """

    def __init__(self, filesystem: Any, *, conditional: bool) -> None:
        self._files, self._conditional = filesystem, conditional
        self._met: set[str] = set()
        self._removed: set[str] = set()
        self._lock = threading.Lock()
        self._kept: bool | None = None

    def info(self, address: str) -> Info | None:
        """What is at an address, or None."""
        try:
            found = self._call(address, self._files.info, address)
        except FileNotFoundError:
            self._note(address, there=False)
            prefix = address.rstrip("/") + "/"
            with self._lock:
                below = any(name.startswith(prefix) for name in self._met)
            return Info(True, 0, "") if below else None
        if found["type"] == "directory":
            return Info(True, 0, "")
        self._note(address)
        facts = sorted((key, str(value)) for key, value in found.items() if key != "name")
        return Info(False, int(found["size"] or 0), hashlib.sha256(repr(facts).encode()).hexdigest())

    def read(self, address: str) -> bytes:
        """The content of an object."""
        content = self._call(address, self._files.cat_file, address)
        self._note(address)
        return content

    def fetch(self, address: str, file: Path) -> None:
        """Copies an object into a file."""
        self._call(address, self._files.get_file, address, str(file))
        self._note(address)

    def put(self, address: str, file: Path) -> None:
        """Copies a file into an object, which appears whole."""
        self._call(address, self._files.put_file, str(file), address)
        self._note(address)

    def write(self, address: str, content: bytes) -> None:
        """Puts bytes into an object, which appears whole."""
        self._call(address, self._files.pipe_file, address, content)
        self._note(address)

    def create(self, address: str, content: bytes) -> bool:
        """Puts an object where none is; whether this caller did. Of several at once, one at most succeeds.

        Where the store has no such put, the object is read again after a time, in which every other caller that met no
        object either has put its own: the last of them stays.

        Args:
          content: differs from that of every other caller.
        """
        if conditional := self._conditional and self._keeps_conditions(address):
            try:
                self._call(address, self._put_new, address, content)
            except FileExistsError:
                return self.read(address) == content  # by an attempt whose answer was lost
        else:
            if self.info(address) is not None:
                return False
            self.write(address, content)
            time.sleep(SETTLE_SECONDS)
        self._note(address)
        return conditional or self.read(address) == content

    def _keeps_conditions(self, address: str) -> bool:
        """Whether the server behind a protocol with conditional puts keeps to them: some that imitate S3 do not."""
        if self._kept is None:
            trial = f"{address}.trial-{uuid.uuid4().hex}"
            self._call(trial, self._files.pipe_file, trial, b"")
            try:
                self._call(trial, self._put_new, trial, b"")
                self._kept = False
            except FileExistsError:
                self._kept = True
            self.remove(trial)
        return self._kept

    def _put_new(self, address: str, content: bytes) -> None:
        try:
            self._files.pipe_file(address, content, mode="create")
        except OSError as error:
            if error.errno == PRECONDITION:
                raise FileExistsError(errno.EEXIST, "the object is there", address) from error
            raise

    def copy(self, address: str, target: str) -> None:
        """Copies an object."""
        self._call(address, self._files.cp_file, address, target)
        self._note(target)

    def remove(self, address: str) -> None:
        """Removes an object, if it is there."""
        with suppress(FileNotFoundError):
            self._call(address, self._files.rm_file, address)
        self._note(address, there=False)

    def children(self, address: str) -> list[str]:
        """Names of objects and folders in a folder, sorted."""
        root = self._bare(address)
        names = {name.rstrip("/")[len(root) + 1 :] for name in self._list(self._files.ls, address, detail=False)}
        met, removed = self._known(address)
        names = (names - removed) | {name.partition("/")[0] for name in met}
        return sorted(name for name in names if name)

    def below(self, address: str) -> list[str]:
        """Names of all objects below a folder, with / between their parts, sorted."""
        root = self._bare(address)
        names = {name[len(root) + 1 :] for name in self._list(self._files.find, address)}
        met, removed = self._known(address)
        return sorted(((names - removed) | met) - {""})

    def _list(self, call: Callable[..., Any], address: str, **options: Any) -> list[str]:
        self._files.invalidate_cache()
        try:
            return list(self._call(address, functools.partial(call, **options), address))
        except FileNotFoundError:
            return []

    def _bare(self, address: str) -> str:
        """The address as the file system's listings have it, without a protocol."""
        return str(self._files._strip_protocol(address)).rstrip("/")

    def _known(self, address: str) -> tuple[set[str], set[str]]:
        """Names below a folder that this process has met, and those that it has removed."""
        prefix = address.rstrip("/") + "/"
        with self._lock:
            return tuple(  # type: ignore[return-value]
                {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
                for names in (self._met, self._removed)
            )

    def _note(self, address: str, *, there: bool = True) -> None:
        with self._lock:
            (self._met.add if there else self._met.discard)(address)
            (self._removed.discard if there else self._removed.add)(address)

    def _call(self, address: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """A call's answer.

        Raises:
          StoreError: it failed each time.
        """
        for attempt in range(ATTEMPTS):
            try:
                return call(*arguments)
            except PermissionError as error:
                raise PermissionError(errno.EACCES, reason(error), address) from error
            except FINAL:
                raise
            except Exception as error:  # of many libraries, for connections, time limits and the server's own faults
                if attempt == ATTEMPTS - 1:
                    raise StoreError(address, error) from error
            # Drawn, so that many processes that failed together do not all come back together.
            time.sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.0))
        raise AssertionError("the last attempt returns or raises")
