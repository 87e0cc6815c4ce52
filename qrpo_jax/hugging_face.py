"""Hugging Face model folders: read, checked and written without torch, pickle or running any code of theirs."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qrpo_jax.decoder import Parameters, abstract_parameters, logical_axes
from qrpo_jax.families import FAMILIES
from qrpo_jax.json_values import read_json
from qrpo_jax.mesh import parameter_shardings, place
from qrpo_jax.model_config import hugging_face_config, read_settings
from qrpo_jax.settings import DecoderSettings
from qrpo_jax.stored import Part, Stored, stored_tensors

if TYPE_CHECKING:
    from qrpo_jax.text import Text  # importing it for real would cost seconds of transformers

DTYPES = {"F32": jnp.float32, "BF16": jnp.bfloat16, "F16": jnp.float16}
SAVED_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
MAX_SHARD_BYTES = 5_000_000_000


class Header(NamedTuple):
    """What a safetensors file says about one tensor before any of its data is read."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def check_folder(folder: Path) -> DecoderSettings:
    """Settings of a folder whose weights are all there with the right shapes; only headers are read.

    A tied model's file may hold `lm_head.weight` all the same. It is never used, so it must equal the embedding
    bit for bit; this comparison alone reads data.

    Raises:
      ValueError: as `read_settings`, or no weights, or a tensor that is missing, unknown, misshapen or of a
        type other than float32, bfloat16 and float16.
    """
    settings = read_settings(folder)
    check_weights(folder, settings)
    return settings


def check_weights(
    folder: Path, settings: DecoderSettings, head: Mapping[str, tuple[int, ...]] = MappingProxyType({})
) -> None:
    """Refuses weights that are not those of these settings, and of a `head` of its own by tensor name and shape.

    Raises:
      ValueError: see `check_folder`.
    """
    headers = _headers(folder)
    wanted = {stored.name: stored for stored in stored_tensors(settings)}
    wanted |= {name: Stored(name, shape, ()) for name, shape in head.items()}
    missing = [name for name, stored in wanted.items() if name not in headers and stored.constant is None]
    if missing:
        others = f" and {len(missing) - 1} more" if missing[1:] else ""
        shape = list(wanted[missing[0]].shape)
        raise ValueError(f"the weights in {folder} lack tensor {missing[0]} of shape {shape}{others}")
    for name, header in headers.items():
        shape = list(header.shape)
        if name not in wanted:
            if re.fullmatch(r"(.+\.)?rotary_emb\.inv_freq", name):
                continue  # a buffer that old versions of transformers saved; it follows from the settings
            if name == "lm_head.weight" and settings.tie_embeddings and not head:
                _check_tied(folder, headers)
                continue
            raise ValueError(
                f"{header.file} has tensor {name} of shape {shape}, which its config.json has no place for"
            )
        if header.shape != wanted[name].shape:
            expected = list(wanted[name].shape)
            raise ValueError(f"tensor {name} in {header.file} has shape {shape}; config.json asks for {expected}")
        if header.dtype not in DTYPES:
            raise ValueError(f"tensor {name} in {header.file} is {header.dtype}; allowed: {', '.join(DTYPES)}")
        if wanted[name].constant is not None:
            _check_constant(wanted[name], header)


def read_tensors(folder: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Small tensors of a checked folder by name, whole and in float32."""
    headers, found = _headers(folder), {}
    for name in names:
        with safe_open(headers[name].file, "numpy") as opened:
            found[name] = opened.get_tensor(name).astype(np.float32)
    return found


def load(folder: Path, mesh: Mesh, dtype: Any = jnp.float32, settings: DecoderSettings | None = None) -> Parameters:
    """Parameters of a model folder, placed on the mesh.

    The host holds at most one stacked parameter, plus one stored tensor, at a time.

    Args:
      settings: those of a folder that was checked already, by `check_weights`.

    Raises:
      ValueError: as `check_folder`, or a dimension that the mesh cannot split.
    """
    settings = check_folder(folder) if settings is None else settings
    headers = _headers(folder)
    shapes = abstract_parameters(settings)
    shardings = nnx.traversals.flatten_mapping(parameter_shardings(mesh, logical_axes(settings), shapes))
    of_path: dict[tuple[str, ...], list[tuple[Stored, Part]]] = {}
    for stored in stored_tensors(settings):
        for part in stored.parts:
            of_path.setdefault(part.path, []).append((stored, part))

    placed = {}
    with ExitStack() as stack:
        paths = {headers[stored.name].file for group in of_path.values() for stored, _ in group}
        files = {path: stack.enter_context(safe_open(path, "numpy")) for path in sorted(paths)}
        for path, shape in nnx.traversals.flatten_mapping(shapes).items():
            host = np.empty(shape.shape, dtype)
            for stored, part in of_path[path]:
                rows = files[headers[stored.name].file].get_slice(stored.name)[part.rows]
                host[... if part.layer is None else part.layer] = part.take(rows).astype(dtype)
            placed[path] = place(host, shardings[path])
    return nnx.traversals.unflatten_mapping(placed)


def save(
    folder: Path,
    settings: DecoderSettings,
    parameters: Parameters,
    text: "Text",
    *,
    dtype: str = "float32",
    generation: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a folder that transformers' `AutoModelForCausalLM` and `AutoTokenizer` load.

    Everything is written next to `folder` first and renamed at the end, so `folder` is complete or not there.

    Args:
      text: the tokenizer, and the end tokens that generation stops at.
      dtype: "float32", "bfloat16" or "float16".
      generation: further entries of generation_config.json, such as {"do_sample": True, "temperature": 0.7}.
      max_shard_bytes: size above which the weights are spread over several files.

    Raises:
      ValueError: the folder exists and is not empty, an unknown dtype, a weight that is not finite in that
        dtype, or settings that transformers would refuse.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; remove it or choose another folder to export to")
    check_export(settings, text, dtype)
    tokenizer = text.tokenizer
    ends = text.end_tokens[0] if len(text.end_tokens) == 1 else list(text.end_tokens)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed export left
    try:
        partial.mkdir(parents=True)
        _write_json(partial / "config.json", {**hugging_face_config(settings, dtype), **special})
        _write_json(partial / "generation_config.json", {**special, **(generation or {})})
        tokenizer.save_pretrained(partial)
        _write_weights(partial, settings, parameters, dtype, max_shard_bytes)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_export(settings: DecoderSettings, text: "Text", dtype: str) -> None:
    """Raises the ValueError that `save` would raise about these, so that it can come before training, not after."""
    if dtype not in SAVED_DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(SAVED_DTYPES)} (config.export.dtype)")
    if FAMILIES[settings.family].even_split and settings.d_model % settings.heads:
        raise ValueError(
            f"d_model {settings.d_model} is not a multiple of heads {settings.heads}, "
            f"as a {settings.family} folder has it (config.model)"
        )
    hugging_face_config(settings, dtype)
    if len(text.tokenizer) > settings.vocab_size:
        raise ValueError(f"tokenizer has {len(text.tokenizer)} tokens, the model {settings.vocab_size} (config.model)")


def _write_weights(
    folder: Path, settings: DecoderSettings, parameters: Parameters, dtype: str, max_shard_bytes: int
) -> None:
    width = np.dtype(SAVED_DTYPES[dtype]).itemsize
    shards: list[list[Stored]] = [[]]
    filled = 0
    for stored in stored_tensors(settings):
        size = math.prod(stored.shape) * width
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(stored)
        filled += size
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    flat = nnx.traversals.flatten_mapping(parameters)
    for name, shard in zip(names, shards, strict=True):
        tensors = {stored.name: _export(flat, stored, dtype) for stored in shard}
        save_file(tensors, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        where = {stored.name: name for name, shard in zip(names, shards, strict=True) for stored in shard}
        total = sum(math.prod(stored.shape) * width for shard in shards for stored in shard)
        _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _export(flat: Mapping[tuple[str, ...], jax.Array], stored: Stored, dtype: str) -> np.ndarray:
    def rows(part: Part) -> np.ndarray:
        parameter = flat[part.path]
        return part.give(np.asarray(parameter if part.layer is None else parameter[part.layer]))

    held = [rows(part) for part in stored.parts] or [np.full((), stored.constant)]
    # safetensors writes memory as it lies, so a transposed view must be laid out anew.
    array = np.concatenate(held) if len(held) > 1 else held[0]
    array = np.asarray(array.astype(SAVED_DTYPES[dtype]), order="C")
    if not np.isfinite(array).all():
        raise ValueError(f"tensor {stored.name} is not finite as {dtype}; nothing was exported")
    return array


def _headers(folder: Path) -> dict[str, Header]:
    """Header of every stored tensor; like transformers, one whole file goes before an index of several."""
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


def _check_constant(stored: Stored, header: Header) -> None:
    with safe_open(header.file, "numpy") as opened:
        value = float(opened.get_tensor(stored.name))
    # Stored in bfloat16, the value has eight bits.
    if not math.isclose(value, stored.constant or 0.0, rel_tol=2**-8):
        raise ValueError(f"tensor {stored.name} in {header.file} is {value}; supported: {stored.constant}")


def _check_tied(folder: Path, headers: Mapping[str, Header]) -> None:
    ours, theirs = (headers[name] for name in ("model.embed_tokens.weight", "lm_head.weight"))
    same = ours[1:] == theirs[1:]
    if same:
        with safe_open(ours.file, "numpy") as a, safe_open(theirs.file, "numpy") as b:
            same = np.array_equal(a.get_tensor("model.embed_tokens.weight"), b.get_tensor("lm_head.weight"))
    if not same:
        raise ValueError(
            f"config.json of {folder} ties the embeddings, yet tensor lm_head.weight differs from "
            "model.embed_tokens.weight and would be ignored; set tie_word_embeddings to false there"
        )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
