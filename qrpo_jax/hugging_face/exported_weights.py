"""Weights from the mesh to the safetensors files of a model folder, which the processes of a job share.

Each process writes files of its own and holds one tensor at a time; the tensors that the others write only pass its
devices. Reading the stored parameters file by file would need no devices, but adapters must be added to their base and
checksums of stacked layers be compared, for which the parameters are on the mesh anyway.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from qrpo_jax.devices.dtypes import FLOATS
from qrpo_jax.devices.mesh import gather_to
from qrpo_jax.devices.processes import anywhere, is_first
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face.json_values import write_json
from qrpo_jax.hugging_face.tensor_file import TensorFile
from qrpo_jax.hugging_face.tensors import Part, Stored, stored_tensors
from qrpo_jax.hugging_face.weights import INDEX
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.model.settings import DecoderSettings

Files = Mapping[str, list[Stored]]


class Turn(NamedTuple):
    """A tensor, and the file that it is written to.

    Attributes:
      first: whether it begins the file.
    """

    file: str
    stored: Stored
    first: bool


def save_weights(folder: Path, settings: DecoderSettings, parameters: Parameters, dtype: str, max_bytes: int) -> None:
    """Writes the files of this process, and in the first one their index. All processes call this together.

    In each turn every process gets its next tensor, one after the other, and then all write at the same time.

    Args:
      max_bytes: size above which weights are spread over several files.

    Raises:
      UserError: a weight is not finite in this type; on all processes.
    """
    files, process = _files(settings, dtype, max_bytes), jax.process_index()
    file: TensorFile  # that is being written
    with ExitStack() as opened:
        for turns in itertools.zip_longest(*(_turns(files, i) for i in range(jax.process_count()))):
            tensor, turn = _own_tensor(parameters, turns, dtype), turns[process]
            if turn is None or tensor is None:
                continue
            if turn.first:
                opened.close()  # and reads the file before back
                shapes = {stored.name: stored.shape for stored in files[turn.file]}
                file = opened.enter_context(TensorFile(folder / turn.file, shapes, FLOATS[dtype]))
            file.write(turn.stored.name, tensor)
            del tensor  # before the next one comes
    if is_first() and len(files) > 1:
        write_json(folder / INDEX, _index(files, dtype))


def _turns(files: Files, process: int) -> Iterator[Turn]:
    """What a process writes, in this order: every file in turn belongs to the next process."""
    for name in list(files)[process :: jax.process_count()]:
        for i, stored in enumerate(sorted(files[name], key=lambda stored: stored.name)):
            yield Turn(name, stored, i == 0)


def _own_tensor(parameters: Parameters, turns: Sequence[Turn | None], dtype: str) -> np.ndarray | None:
    """The tensor of this process's turn. All processes call this together."""
    count, process = len(turns), jax.process_index()
    tensors_P = [None if turn is None else _tensor(parameters, turn.stored, dtype, i) for i, turn in enumerate(turns)]
    own = tensors_P[process]
    finite = own is None or bool(np.isfinite(own).all())
    refused_P = anywhere((np.arange(count) == process) & (not finite))
    for turn in itertools.compress(turns, refused_P):
        assert turn is not None
        raise UserError(f"tensor {turn.stored.name} is not finite as {dtype}; nothing was exported")
    return own


def _size(stored: Stored, dtype: str) -> int:
    return math.prod(stored.shape) * np.dtype(FLOATS[dtype]).itemsize


def _files(settings: DecoderSettings, dtype: str, max_bytes: int) -> Files:
    """Tensors by the file that will hold them."""
    files: list[list[Stored]] = [[]]
    filled = 0
    for stored in stored_tensors(settings):
        size = _size(stored, dtype)
        if files[-1] and filled + size > max_bytes:
            files.append([])
            filled = 0
        files[-1].append(stored)
        filled += size
    if len(files) == 1:
        return {"model.safetensors": files[0]}
    return {f"model-{i + 1:05d}-of-{len(files):05d}.safetensors": file for i, file in enumerate(files)}


def _index(files: Files, dtype: str) -> dict[str, Any]:
    total = sum(_size(stored, dtype) for file in files.values() for stored in file)
    weight_map = {stored.name: name for name, file in files.items() for stored in file}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def _tensor(parameters: Parameters, stored: Stored, dtype: str, process: int) -> np.ndarray | None:
    """The tensor in its stored form on the host of this process; None on the others."""

    def whole(part: Part) -> np.ndarray | None:
        parameter: Any = functools.reduce(lambda tree, key: tree[key], part.path, parameters)
        return gather_to(parameter if part.layer is None else _layer(parameter, part.layer), process)

    wholes = [whole(part) for part in stored.parts]
    if jax.process_index() != process:
        return None
    arrays = [part.to_stored(array) for part, array in zip(stored.parts, wholes, strict=True) if array is not None]
    array: Any = np.concatenate(arrays) if len(arrays) > 1 else arrays[0] if arrays else np.full((), stored.constant)
    # Tensors are stored in row-major order, and a transposed view is not.
    return array.astype(FLOATS[dtype], order="C", copy=False)


@jax.jit
def _layer(parameter: Any, layer: int) -> jax.Array:
    """One layer; compiled once for all of them."""
    return jax.lax.dynamic_index_in_dim(parameter, layer, keepdims=False)
