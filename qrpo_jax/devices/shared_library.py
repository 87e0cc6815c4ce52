"""A C++ file of this package as a shared library, compiled on this machine for its processor."""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jaxlib

from qrpo_jax.devices.program.cache import processor, user_cache
from qrpo_jax.files import whole_file

OPTIONS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared")


class NotBuiltError(RuntimeError):
    """There is no library, and why, in one line: no compiler, or what it said, or nowhere to write."""


def shared_library(source: Path) -> tuple[ctypes.CDLL, str]:
    """The library of a C++ file, and a name of what it was made from.

    It is compiled once with the command CXX, or c++, against the headers of jax's foreign functions, and kept in the
    user's cache. Several processes may do so at the same time: a library appears whole. Where the cache cannot be
    written, each process compiles its own.

    Raises:
      NotBuiltError: it cannot be compiled or loaded here.
    """
    command = [*shlex.split(os.environ.get("CXX", "c++")), *OPTIONS]
    if shutil.which(command[0]) is None:
        raise NotBuiltError(f"there is no C++ compiler {command[0]!r}; install one, or name it in CXX")
    made_from = (source.read_text(encoding="utf-8"), *command, jaxlib.__version__)
    name = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:16]
    kept = user_cache() / "qrpo_jax" / f"libraries-{processor()}" / f"{source.stem}-{name}.so"
    if not kept.is_file():
        try:
            with whole_file(kept) as path:
                _compile(command, source, path)
        except OSError:
            with tempfile.TemporaryDirectory() as folder:
                own = Path(folder) / kept.name
                _compile(command, source, own)
                return _load(own), name
    return _load(kept), name


def _compile(command: list[str], source: Path, path: Path) -> None:
    arguments = [*command, f"-I{jax.ffi.include_dir()}", str(source), "-o", str(path)]
    done = subprocess.run(arguments, capture_output=True, text=True, errors="replace")
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [f"status {done.returncode}"]
        raise NotBuiltError(f"{command[0]} cannot compile {source.name}: {errors[0].strip()}")


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NotBuiltError(f"{path.name} cannot be loaded: {error}") from error
