"""Weights in safetensors files, streamed from disk to the mesh: a host holds a tensor or two at a time.

A tensor goes from file to devices as it is stored, and each process reads only the rows and columns that its own
devices keep. The devices transpose and cast it and put it into its place among the stacked layers.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open

from qrpo_jax.devices.dtypes import SAFETENSORS
from qrpo_jax.devices.mesh import parameter_shardings
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face.json_values import read_json
from qrpo_jax.hugging_face.tensors import Part, Stored, from_stored, stored_tensors
from qrpo_jax.model.decoder import Parameters, abstract_parameters, logical_axes
from qrpo_jax.model.settings import DecoderSettings
from qrpo_jax.stores.copies import local

INDEX = "model.safetensors.index.json"


class Header(NamedTuple):
    """One tensor of a safetensors file, before any of its data is read.

    Attributes:
      file: on disk, or in an object store.
      name: in the file; a part of a model is known by other names.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    name: str


def open_tensors(path: Path) -> Any:
    """An open safetensors file, which is a context manager; of an object in a store, a local copy."""
    return safe_open(local(path), "numpy")


def weight_files(folder: Path) -> list[Path]:
    """All safetensors files of a folder; those of the model are looked up by name, since a store may list them late.

    Raises:
      UserError: the index of the files cannot be read.
    """
    whole, index = folder / "model.safetensors", folder / INDEX
    named = [whole] if whole.is_file() else []
    if not named and index.is_file():
        named = [folder / file for file in _read_index(folder, index).values()]
    return sorted({*named, *folder.glob("*.safetensors")})


def read_headers(folder: Path) -> dict[str, Header]:
    """Header of every stored tensor; like transformers, a single whole file is preferred to an index of several.

    Raises:
      UserError: there are no weights, or file and index contradict each other.
    """
    whole, index = folder / "model.safetensors", folder / INDEX
    if whole.is_file():
        return _file_headers([whole])
    if not index.is_file():
        raise UserError(
            f"no weights in {folder}: neither model.safetensors nor {index.name}; pickled *.bin files are not read",
            about="path",
        )
    weight_map = _read_index(folder, index)
    headers = _file_headers([folder / file for file in sorted(set(weight_map.values()))])
    for name, file in weight_map.items():
        if name not in headers or headers[name].file.name != file:
            raise UserError(f"{index} places tensor {name} in {file}, which does not have it", about="path")
    return headers


def _read_index(folder: Path, index: Path) -> dict[str, str]:
    """The file of every tensor, by an index whose files are all in the folder."""
    content = {"weight_map": None, **read_json(index)}
    if not isinstance(content["weight_map"], dict) or not content["weight_map"]:
        raise UserError(f"{index} has no weight_map of tensor names to files", about="path")
    for name, file in content["weight_map"].items():
        if not isinstance(file, str) or Path(file).name != file or not (folder / file).is_file():
            raise UserError(
                f"{index} places tensor {name} in {file!r}, and there is no such file in {folder}", about="path"
            )
    return content["weight_map"]


def _file_headers(paths: Iterable[Path]) -> dict[str, Header]:
    headers: dict[str, Header] = {}
    for path in paths:
        try:
            with open_tensors(path) as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    if name in headers:
                        raise UserError(f"tensor {name} is in two files, {headers[name].file} and {path}", about="path")
                    part = opened.get_slice(name)
                    headers[name] = Header(path, tuple(part.get_shape()), part.get_dtype(), name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a whole safetensors file ({error})", about="path") from error
    return headers


def read_tensors(headers: Mapping[str, Header], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Small tensors by name, whole on this host and in float32.

    Raises:
      UserError: one holds NaN or infinity.
    """
    tensors = {}
    for name in names:
        with open_tensors(headers[name].file) as opened:
            tensors[name] = opened.get_tensor(headers[name].name).astype(np.float32)
        if not np.isfinite(tensors[name]).all():
            raise UserError(
                f"tensor {name} in {headers[name].file} holds NaN or infinity; get the file again", about="path"
            )
    return tensors


def conversions(headers: Mapping[str, Header], dtype: Any) -> str:
    """One line on how importing these tensors as `dtype` changes their numbers; ignores types no parameter has."""
    target = jnp.dtype(dtype)
    counts = Counter(header.dtype for header in headers.values() if header.dtype in SAFETENSORS)
    parts = []
    for stored, count in sorted(counts.items()):
        name = jnp.dtype(SAFETENSORS[stored]).name
        exact = name == target.name or target == jnp.float32
        change = "as stored" if name == target.name else f"-> {target.name}" + ("" if exact else ", rounded")
        parts.append(f"{count} tensors {name} {change}")
    return ", ".join(parts)


def load_weights(
    headers: Mapping[str, Header], settings: DecoderSettings, mesh: Mesh, dtype: Any = jnp.float32
) -> Parameters:
    """Parameters on the mesh, from files whose headers fit the settings.

    Beside the parameters themselves, a host holds its devices' slices of one stored tensor.

    Raises:
      UserError: a dimension that the mesh cannot split; or a weight that is not finite, or not in `dtype`.
    """
    shapes = nnx.traversals.flatten_mapping(abstract_parameters(settings))
    axes = logical_axes(settings)
    shardings = nnx.traversals.flatten_mapping(parameter_shardings(mesh, axes, abstract_parameters(settings)))
    placed: dict[tuple[str, ...], Array] = {}
    for stored in stored_tensors(settings):
        for part in stored.parts:
            path, target = part.path, shardings[part.path]
            piece = _read(headers[stored.name], stored, part, _stored_sharding(part, target))
            _check_finite(piece, headers[stored.name], dtype)
            if part.layer is None:
                placed[path] = _cast(target)(piece, part.inputs, part.shape, dtype)
            else:
                stacked = placed[path] if path in placed else _empty(target)(shapes[path].shape, dtype)
                placed[path] = _layered(target)(stacked, piece, part.layer, part.inputs, part.shape)
            # The next tensor is read only after this one is placed; otherwise tensors would pile up on the host.
            jax.block_until_ready(placed[path])
    return nnx.traversals.unflatten_mapping(placed)


def _check_finite(piece: Array, header: Header, dtype: Any) -> None:
    """Refuses a tensor with NaN or infinity, stored or as `dtype`; the devices look, while the tensor is on them."""
    stored, cast = (int(count) for count in _not_finite(piece, dtype))
    if stored:
        fault = f"holds NaN or infinity ({stored} of its numbers)"
        raise UserError(f"tensor {header.name} in {header.file} {fault}; get the file again", about="path")
    if cast:
        fault = f"has numbers beyond the range of {jnp.dtype(dtype).name} ({cast} of them)"
        raise UserError(f"tensor {header.name} in {header.file} {fault}; keep parameters in float32", about="path")


@functools.partial(jax.jit, static_argnums=1)
def _not_finite(piece: Array, dtype: Any) -> tuple[Array, Array]:
    """Numbers of a tensor that are not finite, as it is and as `dtype`, [] each."""
    return jnp.sum(~jnp.isfinite(piece)), jnp.sum(~jnp.isfinite(piece.astype(dtype)))


def _stored_sharding(part: Part, target: NamedSharding) -> NamedSharding:
    """How a part lies on the mesh as it is stored, so that transposing it moves no data between devices."""
    spec = [*target.spec, *[None] * (len(part.shape) + (part.layer is not None) - len(target.spec))]
    spec = spec[part.layer is not None :]
    if part.inputs is None:
        return NamedSharding(target.mesh, PartitionSpec(*spec))
    inputs, outputs = spec[: part.inputs], spec[part.inputs :]
    # A flat axis is split like the first of the axes that it combines, if the others are whole.
    stored = [group[0] if not any(group[1:]) else None for group in (outputs, inputs) if group]
    return NamedSharding(target.mesh, PartitionSpec(*stored))


def _read(header: Header, stored: Stored, part: Part, sharding: NamedSharding) -> Array:
    """The part as it is stored, in its stored type; each process reads what its devices keep, once."""
    shape = (part.rows.stop - part.rows.start, *stored.shape[1:])
    slices: dict[str, np.ndarray] = {}
    # A file is closed after each tensor: its pages would stay in memory as long as it is mapped.
    with open_tensors(header.file) as opened:
        tensor = opened.get_slice(header.name)

        def rows(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None, "stored tensors that are parameters have axes"
            whole = [slice(*s.indices(size)) for s, size in zip(index, shape, strict=True)]
            whole[0] = slice(whole[0].start + part.rows.start, whole[0].stop + part.rows.start)
            key = str(whole)
            if key not in slices:
                slices[key] = np.ascontiguousarray(tensor[tuple(whole)])
            return slices[key]

        return jax.make_array_from_callback(shape, sharding, rows)


# Each is compiled once for a sharding and shape, whatever the number of layers.
@functools.lru_cache(maxsize=256)
def _empty(target: NamedSharding) -> Any:
    return jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=target)


@functools.lru_cache(maxsize=256)
def _cast(target: NamedSharding) -> Any:
    def cast(piece: Array, inputs: int | None, shape: tuple[int, ...], dtype: Any) -> Array:
        return from_stored(piece, inputs, shape).astype(dtype)

    return jax.jit(cast, static_argnums=(1, 2, 3), out_shardings=target)


@functools.lru_cache(maxsize=256)
def _layered(target: NamedSharding) -> Any:
    def put(stacked: Array, piece: Array, layer: Array, inputs: int | None, shape: tuple[int, ...]) -> Array:
        value = from_stored(piece, inputs, shape).astype(stacked.dtype)
        return jax.lax.dynamic_update_index_in_dim(stacked, value, layer, 0)

    return jax.jit(put, static_argnums=(3, 4), donate_argnums=0, out_shardings=target)
