"""Weights in safetensors files, streamed from disk to the mesh: no host ever holds more than a tensor or two.

A tensor goes from file to devices as it is stored, each process reading only the rows and columns that its own devices
keep. It is turned, cast and put into its place among the stacked layers there.
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

from qrpo_jax.devices.mesh import parameter_shardings
from qrpo_jax.hugging_face.json_values import read_json
from qrpo_jax.hugging_face.tensors import Part, Stored, stored_tensors, turned
from qrpo_jax.model.decoder import Parameters, abstract_parameters, logical_axes
from qrpo_jax.model.settings import DecoderSettings

DTYPES = {"F32": jnp.float32, "BF16": jnp.bfloat16, "F16": jnp.float16}


class Header(NamedTuple):
    """What a safetensors file says about one tensor before any of its data is read."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def read_headers(folder: Path) -> dict[str, Header]:
    """Header of every stored tensor; like transformers, one whole file goes before an index of several.

    Raises:
      ValueError: there are no weights, or file and index contradict each other.
    """
    files, weight_map = [folder / "model.safetensors"], {}
    index = folder / "model.safetensors.index.json"
    if not files[0].is_file():
        if not index.is_file():
            raise ValueError(
                f"no weights in {folder}: neither model.safetensors nor {index.name}; "
                "pickled *.bin files are not read (config.model.path)"
            )
        content = read_json(index)
        if not isinstance(content.setdefault("weight_map", None), dict) or not content["weight_map"]:
            raise ValueError(f"{index} has no weight_map of tensor names to files")
        weight_map = content["weight_map"]
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file or not (folder / file).is_file():
                raise ValueError(f"{index} places tensor {name} in {file!r}, and there is no such file in {folder}")
        files = [folder / file for file in sorted(set(weight_map.values()))]
    headers: dict[str, Header] = {}
    for path in files:
        try:
            with safe_open(path, "numpy") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    if name in headers:
                        raise ValueError(f"tensor {name} is in two files, {headers[name].file} and {path}")
                    part = opened.get_slice(name)
                    headers[name] = Header(path, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error})") from error
    for name, file in weight_map.items():
        if name not in headers or headers[name].file.name != file:
            raise ValueError(f"{index} places tensor {name} in {file}, which does not have it")
    return headers


def read_tensors(headers: Mapping[str, Header], names: Iterable[str]) -> dict[str, np.ndarray]:
    """Small tensors by name, whole on this host and in float32."""
    found = {}
    for name in names:
        with safe_open(headers[name].file, "numpy") as opened:
            found[name] = opened.get_tensor(name).astype(np.float32)
    return found


def conversions(headers: Mapping[str, Header], dtype: Any) -> str:
    """What importing these tensors as `dtype` does to their numbers, in one line; others are never parameters."""
    target = jnp.dtype(dtype)
    told = []
    for stored, count in sorted(Counter(header.dtype for header in headers.values() if header.dtype in DTYPES).items()):
        name = jnp.dtype(DTYPES[stored]).name
        exact = name == target.name or target == jnp.float32
        how = "as stored" if name == target.name else f"-> {target.name}" + ("" if exact else ", rounded")
        told.append(f"{count} tensors {name} {how}")
    return ", ".join(told)


def load_weights(
    headers: Mapping[str, Header], settings: DecoderSettings, mesh: Mesh, dtype: Any = jnp.float32
) -> Parameters:
    """Parameters on the mesh, from files whose headers were found to fit the settings.

    Beyond what the devices keep, a host holds the slices of one stored tensor that its devices are to have.

    Raises:
      ValueError: a dimension that the mesh cannot split.
    """
    shapes = nnx.traversals.flatten_mapping(abstract_parameters(settings))
    axes = logical_axes(settings)
    shardings = nnx.traversals.flatten_mapping(parameter_shardings(mesh, axes, abstract_parameters(settings)))
    placed: dict[tuple[str, ...], Array] = {}
    for stored in stored_tensors(settings):
        for part in stored.parts:
            path, target = part.path, shardings[part.path]
            piece = _read(headers[stored.name], stored, part, _stored_sharding(part, target))
            if part.layer is None:
                placed[path] = _turned(target)(piece, part.inputs, part.shape, dtype)
            else:
                stacked = placed[path] if path in placed else _empty(target)(shapes[path].shape, dtype)
                placed[path] = _layered(target)(stacked, piece, part.layer, part.inputs, part.shape)
            # Reading goes on only when this is done, or tensors read ahead would pile up on the host.
            jax.block_until_ready(placed[path])
    return nnx.traversals.unflatten_mapping(placed)


def _stored_sharding(part: Part, target: NamedSharding) -> NamedSharding:
    """How a part lies on the mesh as it is stored, so that turning it moves no data between devices."""
    spec = [*target.spec, *[None] * (len(part.shape) + (part.layer is not None) - len(target.spec))]
    spec = spec[part.layer is not None :]
    if part.inputs is None:
        return NamedSharding(target.mesh, PartitionSpec(*spec))
    inputs, outputs = spec[: part.inputs], spec[part.inputs :]
    # A flat axis is split as the first of those that it is made of, if the others are whole.
    stored = [group[0] if not any(group[1:]) else None for group in (outputs, inputs) if group]
    return NamedSharding(target.mesh, PartitionSpec(*stored))


def _read(header: Header, stored: Stored, part: Part, sharding: NamedSharding) -> Array:
    """The part as it is stored, in its stored type; each process reads what its devices keep, and that once."""
    shape = (part.rows.stop - part.rows.start, *stored.shape[1:])
    found: dict[str, np.ndarray] = {}
    # A file is closed after each tensor: its pages would stay in memory as long as it is mapped.
    with safe_open(header.file, "numpy") as opened:
        tensor = opened.get_slice(stored.name)

        def rows(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None, "stored tensors that are parameters have axes"
            whole = [slice(*s.indices(size)) for s, size in zip(index, shape, strict=True)]
            whole[0] = slice(whole[0].start + part.rows.start, whole[0].stop + part.rows.start)
            key = str(whole)
            if key not in found:
                found[key] = np.ascontiguousarray(tensor[tuple(whole)])
            return found[key]

        return jax.make_array_from_callback(shape, sharding, rows)


# Compiled once for a sharding and shape, whatever the number of layers.
@functools.lru_cache(maxsize=256)
def _empty(target: NamedSharding) -> Any:
    return jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=target)


@functools.lru_cache(maxsize=256)
def _turned(target: NamedSharding) -> Any:
    def turn(piece: Array, inputs: int | None, shape: tuple[int, ...], dtype: Any) -> Array:
        return turned(piece, inputs, shape).astype(dtype)

    return jax.jit(turn, static_argnums=(1, 2, 3), out_shardings=target)


@functools.lru_cache(maxsize=256)
def _layered(target: NamedSharding) -> Any:
    def put(stacked: Array, piece: Array, layer: Array, inputs: int | None, shape: tuple[int, ...]) -> Array:
        own = turned(piece, inputs, shape).astype(stacked.dtype)
        return jax.lax.dynamic_update_index_in_dim(stacked, own, layer, 0)

    return jax.jit(put, static_argnums=(3, 4), donate_argnums=0, out_shardings=target)
