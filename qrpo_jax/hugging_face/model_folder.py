"""Hugging Face model folders: read, checked and written without torch, pickle or running any code of theirs."""

import functools
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors import safe_open
from safetensors.numpy import save_file

from qrpo_jax.devices.mesh import gather
from qrpo_jax.hugging_face.config import hugging_face_config, read_settings
from qrpo_jax.hugging_face.families import FAMILIES
from qrpo_jax.hugging_face.json_values import read_json
from qrpo_jax.hugging_face.tensors import Part, Stored, stored_tensors
from qrpo_jax.hugging_face.weights import DTYPES, Header, load_weights, read_headers
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.model.settings import DecoderSettings

if TYPE_CHECKING:
    from qrpo_jax.data.text import Text  # importing it for real would cost seconds of transformers

SAVED_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
MAX_SHARD_BYTES = 5_000_000_000
COMPARED_NUMBERS = 1 << 24  # of a tensor at a time


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
    headers = read_headers(folder)
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


def load(folder: Path, mesh: Mesh, dtype: Any = jnp.float32) -> Parameters:
    """Parameters of a model folder, streamed onto the mesh; see `weight_files.load_weights`.

    Raises:
      ValueError: as `check_folder`, or a dimension that the mesh cannot split.
    """
    return load_weights(read_headers(folder), check_folder(folder), mesh, dtype)


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

    Everything is written next to `folder` first and renamed at the end, so `folder` is complete or not there. All
    processes of a mesh call this, and fetch one tensor after the other from it; the first one writes, and holds one
    file's tensors at a time.

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

    shards = _shards(settings, dtype, max_shard_bytes)
    if jax.process_index() != 0:
        for shard in shards.values():
            for stored in shard:
                _export(parameters, stored, dtype)
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed export left
    try:
        partial.mkdir(parents=True)
        _write_json(partial / "config.json", {**hugging_face_config(settings, dtype), **special})
        _write_json(partial / "generation_config.json", {**special, **(generation or {})})
        tokenizer.save_pretrained(partial)
        for name, shard in shards.items():
            tensors = {stored.name: _export(parameters, stored, dtype) for stored in shard}
            save_file(tensors, partial / name, metadata={"format": "pt"})
        if len(shards) > 1:
            where = {stored.name: name for name, shard in shards.items() for stored in shard}
            total = sum(_size(stored, dtype) for shard in shards.values() for stored in shard)
            index = {"metadata": {"total_size": total}, "weight_map": where}
            _write_json(partial / "model.safetensors.index.json", index)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def generation_settings(folder: Path) -> dict[str, Any]:
    """What a folder's generation_config.json says, but for its tokens and who wrote it; {} without one."""
    path = folder / "generation_config.json"
    content = read_json(path) if path.is_file() else {}
    return {
        key: value
        for key, value in content.items()
        if key not in ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config")
    }


def check_export(settings: DecoderSettings, text: "Text", dtype: str) -> None:
    """Raises the ValueError that `save` would raise about these, so that it can come before training, not after."""
    if dtype not in SAVED_DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(SAVED_DTYPES)} (config.export.dtype)")
    hugging_face_config(settings, dtype)
    if FAMILIES[settings.family].even_split and settings.d_model % settings.heads:
        raise ValueError(
            f"d_model {settings.d_model} is not a multiple of heads {settings.heads}, "
            f"as a {settings.family} folder has it (config.model)"
        )
    check_vocabulary(settings, text)


def check_vocabulary(settings: DecoderSettings, text: "Text") -> None:
    """Refuses a tokenizer that could give tokens that the model has no embedding for.

    A model may have more embeddings than tokens, and special tokens without one do no harm where nothing writes them:
    no text becomes one. Gemma 3's smallest model has such a token, for images.

    Raises:
      ValueError: naming the first such token.
    """
    tokenizer = text.tokenizer
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, text.end_tokens[0]}
    added = tokenizer.added_tokens_decoder
    for i, token in sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= settings.vocab_size):
        idle = i in added and added[i].special and i not in used and token not in text.chat_template
        if not idle:
            raise ValueError(
                f"tokenizer has {len(tokenizer)} tokens, the model {settings.vocab_size} embeddings and so none for "
                f"{token!r}, token {i}; use the tokenizer that the model was made with (config.model.path)"
            )


def _size(stored: Stored, dtype: str) -> int:
    return math.prod(stored.shape) * np.dtype(SAVED_DTYPES[dtype]).itemsize


def _shards(settings: DecoderSettings, dtype: str, most_bytes: int) -> dict[str, list[Stored]]:
    """Tensors by the file that they go into."""
    shards: list[list[Stored]] = [[]]
    filled = 0
    for stored in stored_tensors(settings):
        size = _size(stored, dtype)
        if shards[-1] and filled + size > most_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(stored)
        filled += size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards)}


def _export(parameters: Parameters, stored: Stored, dtype: str) -> np.ndarray:
    """The tensor as it is to be stored, whole on every host."""

    def rows(part: Part) -> np.ndarray:
        parameter: Any = functools.reduce(lambda tree, key: tree[key], part.path, parameters)
        return part.give(gather(parameter if part.layer is None else parameter[part.layer]))

    held = [rows(part) for part in stored.parts] or [np.full((), stored.constant)]
    # safetensors writes memory as it lies, so a transposed view must be laid out anew.
    array = np.concatenate(held) if len(held) > 1 else held[0]
    array = np.asarray(array.astype(SAVED_DTYPES[dtype]), order="C")
    if not np.isfinite(array).all():
        raise ValueError(f"tensor {stored.name} is not finite as {dtype}; nothing was exported")
    return array


def _check_constant(stored: Stored, header: Header) -> None:
    with safe_open(header.file, "numpy") as opened:
        value = float(opened.get_tensor(stored.name))
    # It may have been rounded to any of these types on its way here.
    if value not in [float(np.asarray(stored.constant).astype(dtype)) for dtype in DTYPES.values()]:
        raise ValueError(f"tensor {stored.name} in {header.file} is {value}; supported: {stored.constant}")


def _check_tied(folder: Path, headers: Mapping[str, Header]) -> None:
    ours, theirs = (headers[name] for name in ("model.embed_tokens.weight", "lm_head.weight"))
    same = ours[1:] == theirs[1:]
    if same:
        with safe_open(ours.file, "numpy") as a, safe_open(theirs.file, "numpy") as b:
            slices = a.get_slice("model.embed_tokens.weight"), b.get_slice("lm_head.weight")
            # A part at a time: these are the largest tensors that a model has.
            rows, step = ours.shape[0], max(1, COMPARED_NUMBERS // ours.shape[1])
            for start in range(0, rows, step):
                x, y = (np.ascontiguousarray(one[start : min(start + step, rows)]) for one in slices)
                same = same and x.tobytes() == y.tobytes()
    if not same:
        raise ValueError(
            f"config.json of {folder} ties the embeddings, yet tensor lm_head.weight differs from "
            "model.embed_tokens.weight and would be ignored; set tie_word_embeddings to false there"
        )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
