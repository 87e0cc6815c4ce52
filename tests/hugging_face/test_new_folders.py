"""Tensors of an export are read back after they are written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrpo_jax.hugging_face import new_folders


def test_a_file_that_does_not_hold_what_was_written_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": np.arange(35, dtype=np.float32).reshape(5, 7), "b": np.zeros(3, np.float16)}
    honest = new_folders.save_file

    def flip(written: dict[str, np.ndarray], path: Path, **options: Any) -> None:
        honest(written, path, **options)
        content = bytearray(path.read_bytes())
        content[-9] ^= 4
        path.write_bytes(content)

    new_folders.write_tensors(tmp_path / "good.safetensors", tensors)
    monkeypatch.setattr(new_folders, "save_file", flip)
    with pytest.raises(OSError, match="tensor a is not the one that was written"):
        new_folders.write_tensors(tmp_path / "bad.safetensors", tensors)
    monkeypatch.setattr(new_folders, "save_file", lambda written, path, **options: honest({}, path, **options))
    with pytest.raises(OSError, match="tensor a is not the one that was written"):
        new_folders.write_tensors(tmp_path / "empty.safetensors", tensors)
