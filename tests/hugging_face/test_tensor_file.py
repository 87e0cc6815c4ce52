"""Files of tensors, written one tensor at a time: the bytes of the library, read back after they are written."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from qrpo_jax.hugging_face import tensor_file

TENSORS = {"b": np.arange(35, dtype=np.float32).reshape(5, 7), "a.b": np.float32([3]), "a": np.asarray(2, np.float32)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_files_are_those_of_the_library(tmp_path: Path, dtype: type) -> None:
    tensors = {name: array.astype(dtype) for name, array in TENSORS.items()} | {"é_0": np.zeros((3, 0), dtype)}
    tensors |= {f"layers.{i}.w": np.full((i, 2), i, dtype).T for i in range(11)}
    path = tmp_path / "model.safetensors"
    tensor_file.write_tensors(path, tensors)
    assert path.read_bytes() == save({k: np.asarray(x, order="C") for k, x in tensors.items()}, {"format": "pt"})


def test_tensors_are_taken_in_the_order_of_the_file_and_as_announced(tmp_path: Path) -> None:
    shapes = {name: array.shape for name, array in TENSORS.items()}
    for name, tensor in (("b", TENSORS["b"]), ("a", TENSORS["b"]), ("a", np.float16(2))):
        with (
            pytest.raises(AssertionError, match=f"^{name} is not"),
            tensor_file.TensorFile(tmp_path / "m", shapes, np.dtype(np.float32)) as file,
        ):
            file.write(name, np.asarray(tensor))
    assert file.names == ["a", "a.b", "b"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_a_file_that_does_not_hold_what_was_written_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Changed between the last write and the first read."""
    honest = tensor_file.forget

    def spoil(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-9] ^= 4
        path.write_bytes(content[:-1] if damage == "cut" else content)
        if damage in ("empty", "other"):
            save_file({} if damage == "empty" else TENSORS | {"b": TENSORS["b"].T.copy()}, path)
        honest(path)

    tensor_file.write_tensors(tmp_path / "good.safetensors", TENSORS)
    monkeypatch.setattr(tensor_file, "forget", spoil)
    wrong = "b" if damage in ("flip", "other") else "a"
    with pytest.raises(OSError, match=f"tensor {wrong} is not the one that was written"):
        tensor_file.write_tensors(tmp_path / "bad.safetensors", TENSORS)
