"""A safetensors file that is written one tensor at a time, so that memory never holds two.

The format is https://github.com/huggingface/safetensors#format: the length of the header, the header as JSON, and the
tensors one after the other. The library writes files only from tensors that are all in memory. Bytes are those of the
library, which sorts tensors of one type by name.
"""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from safetensors import SafetensorError, safe_open

from qrpo_jax.devices.dtypes import SAFETENSORS


class TensorFile:
    """A new file, as torch's own have it, whose `format` is "pt". A context manager.

    After the block it is read back from the disk and compared with what was written.

    Args:
      shapes: of all tensors, by name.
      dtype: of all of them.

    Raises:
      OSError: the file does not hold what was written.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype) -> None:
        self._path, self._dtype = path, np.dtype(dtype)
        self._shapes = {name: tuple(shapes[name]) for name in sorted(shapes)}
        self._sums: dict[str, bytes] = {}
        self._file = path.open("wb")
        self._file.write(self._header())

    @property
    def names(self) -> list[str]:
        """The tensors in the order in which `write` takes them."""
        return list(self._shapes)

    def write(self, name: str, tensor: np.ndarray) -> None:
        """Appends a tensor; it must be the next one of `names`."""
        assert name == self.names[len(self._sums)], f"{name} is not the next tensor of {self._path}"
        assert (tensor.shape, tensor.dtype) == (self._shapes[name], self._dtype), f"{name} is not as announced"
        content = _bytes(tensor)
        self._file.write(content)
        self._sums[name] = hashlib.sha256(content).digest()

    def _header(self) -> bytes:
        kind = next(kind for kind, dtype in SAFETENSORS.items() if np.dtype(dtype) == self._dtype)
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in self._shapes.items():
            start, end = end, end + int(np.prod(shape, dtype=int)) * self._dtype.itemsize
            entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _read_back(self) -> None:
        forget(self._path)
        wrong = next((name for name in self._shapes if self._sums.get(name) != self._sum_on_disk(name)), None)
        if wrong is not None:
            raise OSError(errno.EIO, f"tensor {wrong} is not the one that was written", str(self._path))

    def _sum_on_disk(self, name: str) -> bytes | None:
        # Opened for each tensor: pages stay in memory as long as a file is mapped.
        try:
            with safe_open(self._path, "numpy") as opened:
                tensor = opened.get_tensor(name)
        except SafetensorError:
            return None
        same = tensor.shape == self._shapes[name] and tensor.dtype == self._dtype
        return hashlib.sha256(_bytes(tensor)).digest() if same else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            self._read_back()


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a file of tensors of one type; see `TensorFile`."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    with TensorFile(path, shapes, next(iter(tensors.values())).dtype) as file:
        for name in file.names:
            file.write(name, tensors[name])


def forget(path: Path) -> None:
    """Lets the next reader read a file from the disk, and not from the memory that it was written from."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # Linux
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _bytes(tensor: np.ndarray) -> memoryview:
    """The bytes of a tensor in row-major order; no copy if it has that order."""
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
