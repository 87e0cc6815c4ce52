"""Hugging Face model folders: read, checked and written without torch, pickle or running code of the folder."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qrpo_jax.devices.dtypes import FLOATS, SAFETENSORS
from qrpo_jax.devices.processes import is_first
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face.config import hugging_face_config, read_config, read_settings
from qrpo_jax.hugging_face.exported_weights import save_weights
from qrpo_jax.hugging_face.families import FAMILIES
from qrpo_jax.hugging_face.json_values import read_json, write_json
from qrpo_jax.hugging_face.new_folders import check_new, new_folder
from qrpo_jax.hugging_face.tensors import Stored, stored_tensors
from qrpo_jax.hugging_face.text_part import is_whole, text_tensors, vision_tensors
from qrpo_jax.hugging_face.weights import Header, load_weights, open_tensors, read_headers
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.model.settings import DecoderSettings

if TYPE_CHECKING:
    from qrpo_jax.data.text import Text  # at run time its imports would cost a second and memory

MAX_SHARD_BYTES = 5_000_000_000
COMPARED_NUMBERS = 1 << 24  # of a tensor at a time


def check_folder(folder: Path) -> DecoderSettings:
    """Settings of a folder whose weights are all there with the right shapes; only headers are read.

    The file of a tied model may hold `lm_head.weight` nevertheless. It is never used, so it must equal the embedding
    bit for bit; only this comparison reads data.

    Raises:
      UserError: as `read_settings`, or no weights, or a tensor that is missing, unknown, misshapen or of a
        type other than float32, bfloat16 and float16.
    """
    settings = read_settings(folder)
    check_weights(folder, settings)
    return settings


def check_weights(
    folder: Path, settings: DecoderSettings, head: Mapping[str, tuple[int, ...]] = MappingProxyType({})
) -> None:
    """Refuses weights that do not fit these settings.

    Args:
      head: names and shapes of the tensors that a reward model has on top of its decoder.

    Raises:
      UserError: see `check_folder`.
    """
    headers = decoder_headers(folder)
    expected = {stored.name: stored for stored in stored_tensors(settings)}
    expected |= {name: Stored(name, shape, ()) for name, shape in head.items()}
    missing = [name for name, stored in expected.items() if name not in headers and stored.constant is None]
    if missing:
        others = f" and {len(missing) - 1} more" if missing[1:] else ""
        shape = list(expected[missing[0]].shape)
        raise UserError(f"the weights in {folder} lack tensor {missing[0]} of shape {shape}{others}", about="path")
    for name, header in headers.items():
        if name in expected:
            _check_tensor(expected[name], header)
        elif name == "lm_head.weight" and settings.tie_embeddings and not head:
            _check_tied(folder, headers)
        # Old versions of transformers saved this buffer, which follows from the settings.
        elif not re.fullmatch(r"(.+\.)?rotary_emb\.inv_freq", name):
            raise UserError(
                f"{header.file} has tensor {header.name} of shape {list(header.shape)}, "
                "which its config.json has no place for",
                about="path",
            )


def decoder_headers(folder: Path) -> dict[str, Header]:
    """Header of every tensor, by the names of the decoder's family; of a model that also reads images, its text part's.

    Raises:
      UserError: as `read_headers`.
    """
    headers = read_headers(folder)
    return text_tensors(headers) if is_whole(read_config(folder)) else headers


def left_out(folder: Path) -> int:
    """How many tensors are not of the decoder, but of the vision part of a model that also reads images.

    Raises:
      UserError: as `read_headers`.
    """
    return vision_tensors(read_headers(folder)) if is_whole(read_config(folder)) else 0


def load(folder: Path, mesh: Mesh, dtype: Any = jnp.float32) -> Parameters:
    """Parameters of a model folder, streamed onto the mesh; see `weights.load_weights`.

    Raises:
      UserError: as `check_folder`, or a dimension that the mesh cannot split.
    """
    return load_weights(decoder_headers(folder), check_folder(folder), mesh, dtype)


def save(
    folder: Path,
    settings: DecoderSettings,
    parameters: Parameters,
    text: "Text",
    *,
    dtype: str = "float32",
    generation: Mapping[str, Any] | None = None,
    documents: Mapping[str, bytes] = MappingProxyType({}),
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a folder that transformers' `AutoModelForCausalLM` and `AutoTokenizer` load.

    The folder appears complete or not at all. All processes of a mesh call this together: each writes some of the files
    of weights and holds one tensor at a time, the first one writes all other files.

    Args:
      text: the tokenizer, and the end tokens that generation stops at.
      dtype: "float32", "bfloat16" or "float16".
      generation: further entries of generation_config.json, such as {"do_sample": True, "temperature": 0.7}.
      documents: further files by name, such as README.md.
      max_shard_bytes: size above which the weights are spread over several files.

    Raises:
      UserError: the folder exists and is not empty, an unknown dtype, a weight that is not finite in that
        dtype, or settings that transformers would refuse.
    """
    from qrpo_jax.hugging_face.tokenizer_files import save_tokenizer  # loads transformers, which reading does not need

    check_new(folder)
    check_export(settings, text, dtype)
    with new_folder(folder) as partial:
        if is_first():
            tokenizer, ends = text.tokenizer, text.end_tokens[0] if len(text.end_tokens) == 1 else list(text.end_tokens)
            special = {"bos": tokenizer.bos_token_id, "eos": ends, "pad": tokenizer.pad_token_id}
            tokens = {f"{name}_token_id": token for name, token in special.items()}
            write_json(partial / "config.json", {**hugging_face_config(settings, dtype), **tokens})
            write_json(partial / "generation_config.json", {**tokens, **(generation or {})})
            save_tokenizer(tokenizer, partial)
            for name, content in documents.items():
                (partial / name).write_bytes(content)
        save_weights(partial, settings, parameters, dtype, max_shard_bytes)


def generation_settings(folder: Path) -> dict[str, Any]:
    """A folder's generation_config.json without its token ids and the version that wrote it; {} without the file."""
    path = folder / "generation_config.json"
    content = read_json(path) if path.is_file() else {}
    return {
        key: value
        for key, value in content.items()
        if key not in ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config")
    }


def check_export(settings: DecoderSettings, text: "Text", dtype: str) -> None:
    """Refuses what `save` would refuse about these, so that it can be checked before training.

    Raises:
      UserError: an unknown dtype, settings that transformers would refuse, or a tokenizer that does not fit them.
    """
    if dtype not in FLOATS:
        raise UserError(f"dtype is {dtype!r}; allowed: {', '.join(FLOATS)}", about="dtype")
    hugging_face_config(settings, dtype)
    if FAMILIES[settings.family].even_split and settings.d_model % settings.heads:
        raise UserError(
            f"d_model {settings.d_model} is not a multiple of heads {settings.heads}, "
            f"as a {settings.family} folder has it",
            about="settings",
        )
    check_vocabulary(settings, text)


def check_vocabulary(settings: DecoderSettings, text: "Text") -> None:
    """Refuses a tokenizer that could give tokens that the model has no embedding for.

    A model may have more embeddings than tokens. Unused special tokens may lack an embedding, because no text ever
    encodes to them: Gemma 3's smallest model has such a token, for images.

    Raises:
      UserError: names the first such token; or a token that ends completions is no token of the model.
    """
    tokenizer = text.tokenizer
    if (end := max(text.end_tokens)) >= settings.vocab_size:
        raise UserError(
            f"eos_token_id names token {end} as one that ends completions, and the model knows {settings.vocab_size} "
            "tokens; correct generation_config.json or config.json",
            about="path",
        )
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, text.end_tokens[0]}
    added = tokenizer.added_tokens_decoder
    for i, token in sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= settings.vocab_size):
        idle = i in added and added[i].special and i not in used and token not in text.chat_template
        if not idle:
            raise UserError(
                f"tokenizer has {len(tokenizer)} tokens, the model {settings.vocab_size} embeddings and so none for "
                f"{token!r}, token {i}; use the tokenizer that the model was made with",
                about="path",
            )


def _check_tensor(stored: Stored, header: Header) -> None:
    tensor = f"tensor {header.name} in {header.file}"
    if header.shape != stored.shape:
        raise UserError(
            f"{tensor} has shape {list(header.shape)}; config.json asks for {list(stored.shape)}", about="path"
        )
    if header.dtype not in SAFETENSORS:
        raise UserError(f"{tensor} is {header.dtype}; allowed: {', '.join(SAFETENSORS)}", about="path")
    if stored.constant is None:
        return
    with open_tensors(header.file) as opened:
        value = float(opened.get_tensor(header.name))
    # It may have been rounded to any of these types before.
    if value not in [float(np.asarray(stored.constant).astype(dtype)) for dtype in SAFETENSORS.values()]:
        raise UserError(f"{tensor} is {value}; supported: {stored.constant}", about="path")


def _check_tied(folder: Path, headers: Mapping[str, Header]) -> None:
    """Refuses a stored head that differs from the embedding in any bit."""
    embedding, head = (headers[name] for name in ("model.embed_tokens.weight", "lm_head.weight"))
    same = (embedding.shape, embedding.dtype) == (head.shape, head.dtype)
    if same:
        with open_tensors(embedding.file) as a, open_tensors(head.file) as b:
            slices = a.get_slice(embedding.name), b.get_slice(head.name)
            # A part at a time: these are the largest tensors of a model.
            rows, step = embedding.shape[0], max(1, COMPARED_NUMBERS // embedding.shape[1])
            for start in range(0, rows, step):
                x, y = (np.ascontiguousarray(one[start : min(start + step, rows)]) for one in slices)
                same = same and x.tobytes() == y.tobytes()
    if not same:
        raise UserError(
            f"config.json of {folder} ties the embeddings, yet tensor lm_head.weight differs from "
            "model.embed_tokens.weight and would be ignored; set tie_word_embeddings to false there",
            about="path",
        )
