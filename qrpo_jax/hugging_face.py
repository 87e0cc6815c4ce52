"""Hugging Face model folders: read, checked and written without torch, pickle or running any code of theirs."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qrpo_jax.decoder import DecoderSettings, Parameters, RopeScaling, abstract_parameters, logical_axes
from qrpo_jax.mesh import parameter_shardings, place

if TYPE_CHECKING:
    from qrpo_jax.text import Text  # importing it for real would cost seconds of transformers

DTYPES = {"F32": jnp.float32, "BF16": jnp.bfloat16, "F16": jnp.float16}
SAVED_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
MAX_SHARD_BYTES = 5_000_000_000


class Weight(NamedTuple):
    """How a parameter is stored: its name ({} is the layer), and how many of its axes are summed over.

    Matrices are stored as [outputs, inputs], the transpose of ours; `inputs` 0 means stored as it is.
    """

    name: str
    inputs: int = 0


class Family(NamedTuple):
    """One architecture: values its settings may have where only those are supported, the first one assumed."""

    model_type: str
    supported: Mapping[str, tuple[Any, ...]]
    weights: Mapping[tuple[str, ...], Weight]


FAMILIES = {
    "LlamaForCausalLM": Family(
        model_type="llama",
        supported={
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "hidden_act": ("silu",),
            "pretraining_tp": (1, None),
            "attention_dropout": (0.0, None),
            "sliding_window": (None,),
            "use_sliding_window": (False,),
            "layer_types": (None,),
            "quantization_config": (None,),
            "is_encoder_decoder": (False,),
            "tie_encoder_decoder": (False,),
            "add_cross_attention": (False,),
            "cross_attention_hidden_size": (None,),
            "pruned_heads": ({}, None),
        },
        weights={
            ("embedding",): Weight("model.embed_tokens.weight"),
            ("layers", "attention_norm", "scale"): Weight("model.layers.{}.input_layernorm.weight"),
            ("layers", "attention", "q"): Weight("model.layers.{}.self_attn.q_proj.weight", inputs=1),
            ("layers", "attention", "k"): Weight("model.layers.{}.self_attn.k_proj.weight", inputs=1),
            ("layers", "attention", "v"): Weight("model.layers.{}.self_attn.v_proj.weight", inputs=1),
            ("layers", "attention", "o"): Weight("model.layers.{}.self_attn.o_proj.weight", inputs=2),
            ("layers", "mlp_norm", "scale"): Weight("model.layers.{}.post_attention_layernorm.weight"),
            ("layers", "mlp", "gate"): Weight("model.layers.{}.mlp.gate_proj.weight", inputs=1),
            ("layers", "mlp", "up"): Weight("model.layers.{}.mlp.up_proj.weight", inputs=1),
            ("layers", "mlp", "down"): Weight("model.layers.{}.mlp.down_proj.weight", inputs=1),
            ("norm", "scale"): Weight("model.norm.weight"),
            ("head",): Weight("lm_head.weight"),
        },
    )
}

# Keys of config.json that say nothing about what the network computes. Any key not named in this module is
# refused: ignoring one that matters would give a model that is subtly another one.
_METADATA = """
_commit_hash _from_model_config _name_or_path architectures model_type transformers_version dtype torch_dtype
initializer_range use_cache is_decoder return_dict output_attentions output_hidden_states output_scores
return_dict_in_generate torchscript chunk_size_feed_forward bos_token_id eos_token_id pad_token_id sep_token_id
unk_token_id decoder_start_token_id tokenizer_class prefix id2label label2id num_labels problem_type
finetuning_task task_specific_params max_length min_length do_sample early_stopping num_beams num_beam_groups
diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id
remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
"""
METADATA = frozenset(_METADATA.split())

SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "max_positions": "max_position_embeddings",
}
LLAMA3 = {
    "factor": "factor",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "original_max_positions": "original_max_position_embeddings",
}
ROPE_TOP = ("rope_theta", "partial_rotary_factor")


class Header(NamedTuple):
    """What a safetensors file says about one tensor before any of its data is read."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class Stored(NamedTuple):
    """One tensor of the folder: its name and shape there, and which parameter, or layer of it, it is."""

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    layer: int | None
    inputs: int


def read_settings(folder: Path) -> DecoderSettings:
    """Settings from `config.json`, in the layout of transformers 5 or older.

    Raises:
      ValueError: the folder or file is missing or malformed, the architecture is not in `FAMILIES`, or a
        setting would change what is computed and is not supported.
    """
    if not folder.is_dir():
        raise ValueError(f"model folder {folder} does not exist (config.model.path)")
    config = _read_json(folder / "config.json")
    family = FAMILIES[_architecture(config, folder)]
    known = {**{key: allowed[0] for key, allowed in family.supported.items()}, "model_type": family.model_type}
    given = {**known, "num_key_value_heads": None, "head_dim": None, "tie_word_embeddings": False, **config}

    if given["model_type"] != family.model_type:
        raise _unsupported(folder, "model_type", given["model_type"], (family.model_type,))
    for key, allowed in family.supported.items():
        if given[key] not in allowed:
            raise _unsupported(folder, key, given[key], allowed)
    rope_keys = {"rope_parameters", "rope_scaling", *ROPE_TOP}
    needed = {*SIZES.values(), "rms_norm_eps", "tie_word_embeddings"}
    unknown = sorted(set(config) - needed - rope_keys - METADATA - set(family.supported))
    if unknown:
        raise ValueError(f"{folder}/config.json sets {unknown[0]}={config[unknown[0]]!r}, which is not supported")
    missing = sorted(needed - set(given))
    if missing:
        raise ValueError(f"{folder}/config.json does not say {missing[0]}")

    if given["num_key_value_heads"] is None:
        given["num_key_value_heads"] = given["num_attention_heads"]
    if given["head_dim"] is None:
        d_model = _number(folder, "hidden_size", given["hidden_size"], int)
        given["head_dim"] = d_model // _number(folder, "num_attention_heads", given["num_attention_heads"], int)
    if not isinstance(given["tie_word_embeddings"], bool):
        raise _unsupported(folder, "tie_word_embeddings", given["tie_word_embeddings"], (True, False))
    rope_theta, rope_scaling = _rope(folder, config)
    return DecoderSettings(
        **{ours: _number(folder, theirs, given[theirs], int) for ours, theirs in SIZES.items()},
        norm_epsilon=_number(folder, "rms_norm_eps", given["rms_norm_eps"], float),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_embeddings=given["tie_word_embeddings"],
    )


def check_folder(folder: Path) -> DecoderSettings:
    """Settings of a folder whose weights are all there with the right shapes; only headers are read.

    A tied model's file may hold `lm_head.weight` all the same. It is never used, so it must equal the embedding
    bit for bit; this comparison alone reads data.

    Raises:
      ValueError: as `read_settings`, or no weights, or a tensor that is missing, unknown, misshapen or of a
        type other than float32, bfloat16 and float16.
    """
    settings = read_settings(folder)
    headers = _headers(folder)
    wanted = {stored.name: stored.shape for stored in _tensors(settings)}
    missing = [name for name in wanted if name not in headers]
    if missing:
        others = f" and {len(missing) - 1} more" if missing[1:] else ""
        shape = list(wanted[missing[0]])
        raise ValueError(f"the weights in {folder} lack tensor {missing[0]} of shape {shape}{others}")
    for name, header in headers.items():
        shape = list(header.shape)
        if name not in wanted:
            if re.fullmatch(r"(.+\.)?rotary_emb\.inv_freq", name):
                continue  # a buffer that old versions of transformers saved; it follows from the settings
            if name == "lm_head.weight" and settings.tie_embeddings:
                _check_tied(folder, headers)
                continue
            raise ValueError(
                f"{header.file} has tensor {name} of shape {shape}, which its config.json has no place for"
            )
        if header.shape != wanted[name]:
            expected = list(wanted[name])
            raise ValueError(f"tensor {name} in {header.file} has shape {shape}; config.json asks for {expected}")
        if header.dtype not in DTYPES:
            raise ValueError(f"tensor {name} in {header.file} is {header.dtype}; allowed: {', '.join(DTYPES)}")
    return settings


def load(folder: Path, mesh: Mesh, dtype: Any = jnp.float32) -> Parameters:
    """Parameters of a model folder, placed on the mesh.

    The host holds at most one stacked parameter, plus one stored tensor, at a time.

    Raises:
      ValueError: as `check_folder`, or a dimension that the mesh cannot split.
    """
    settings = check_folder(folder)
    headers = _headers(folder)
    shapes = abstract_parameters(settings)
    shardings = nnx.traversals.flatten_mapping(parameter_shardings(mesh, logical_axes(settings), shapes))
    of_path: dict[tuple[str, ...], list[Stored]] = {}
    for stored in _tensors(settings):
        of_path.setdefault(stored.path, []).append(stored)

    placed = {}
    with ExitStack() as stack:
        paths = {headers[stored.name].file for group in of_path.values() for stored in group}
        files = {path: stack.enter_context(safe_open(path, "numpy")) for path in sorted(paths)}
        for path, shape in nnx.traversals.flatten_mapping(shapes).items():
            host = np.empty(shape.shape, dtype)
            for stored in of_path[path]:
                tensor = files[headers[stored.name].file].get_tensor(stored.name)
                part = ... if stored.layer is None else stored.layer
                host[part] = (tensor.T if stored.inputs else tensor).reshape(host[part].shape).astype(dtype)
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
    if dtype not in SAVED_DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(SAVED_DTYPES)} (config.export.dtype)")
    if settings.d_model % settings.heads:
        raise ValueError(
            f"d_model {settings.d_model} is not a multiple of heads {settings.heads}, "
            "as a Llama folder has it (config.model)"
        )
    tokenizer = text.tokenizer
    if len(tokenizer) > settings.vocab_size:
        raise ValueError(f"tokenizer has {len(tokenizer)} tokens, the model {settings.vocab_size} (config.model)")
    ends = text.end_tokens[0] if len(text.end_tokens) == 1 else list(text.end_tokens)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed export left
    try:
        partial.mkdir(parents=True)
        _write_json(partial / "config.json", {**_config(settings, dtype), **special})
        _write_json(partial / "generation_config.json", {**special, **(generation or {})})
        tokenizer.save_pretrained(partial)
        _write_weights(partial, settings, parameters, dtype, max_shard_bytes)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_weights(
    folder: Path, settings: DecoderSettings, parameters: Parameters, dtype: str, max_shard_bytes: int
) -> None:
    width = np.dtype(SAVED_DTYPES[dtype]).itemsize
    shards: list[list[Stored]] = [[]]
    filled = 0
    for stored in _tensors(settings):
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
        tensors = {stored.name: _export(flat[stored.path], stored, dtype) for stored in shard}
        save_file(tensors, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        where = {stored.name: name for name, shard in zip(names, shards, strict=True) for stored in shard}
        total = sum(math.prod(stored.shape) * width for shard in shards for stored in shard)
        _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _export(parameter: jax.Array, stored: Stored, dtype: str) -> np.ndarray:
    array = np.asarray(parameter if stored.layer is None else parameter[stored.layer])
    array = array.reshape(stored.shape[::-1]).T if stored.inputs else array.reshape(stored.shape)
    # safetensors writes memory as it lies, so a transposed view must be laid out anew.
    array = np.ascontiguousarray(array.astype(SAVED_DTYPES[dtype]))
    if not np.isfinite(array).all():
        raise ValueError(f"tensor {stored.name} is not finite as {dtype}; nothing was exported")
    return array


def _tensors(settings: DecoderSettings) -> Iterator[Stored]:
    """Every tensor the folder must hold, layer by layer."""
    shapes = nnx.traversals.flatten_mapping(abstract_parameters(settings))
    weights = FAMILIES["LlamaForCausalLM"].weights
    if shapes.keys() - weights.keys():
        raise ValueError(f"parameters {sorted(shapes.keys() - weights.keys())} have no place in a Llama folder")

    def one(path: tuple[str, ...], layer: int | None) -> Stored:
        name, inputs = weights[path]
        shape = shapes[path].shape if layer is None else shapes[path].shape[1:]
        if inputs:
            shape = (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
        return Stored(name if layer is None else name.format(layer), tuple(shape), path, layer, inputs)

    yield from (one(path, None) for path in shapes if path[0] != "layers")
    for layer in range(settings.layers):
        yield from (one(path, layer) for path in shapes if path[0] == "layers")


def _config(settings: DecoderSettings, dtype: str) -> dict[str, Any]:
    """config.json, with rope and dtype also under the names that readers older than transformers 5 know."""
    rope: dict[str, Any] = {"rope_type": "default"}
    if settings.rope_scaling is not None:
        scaling = {theirs: getattr(settings.rope_scaling, ours) for ours, theirs in LLAMA3.items()}
        rope = {"rope_type": "llama3", **scaling}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": FAMILIES["LlamaForCausalLM"].model_type,
        **{theirs: getattr(settings, ours) for ours, theirs in SIZES.items()},
        "rms_norm_eps": settings.norm_epsilon,
        "tie_word_embeddings": settings.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "rope_parameters": {**rope, "rope_theta": settings.rope_theta},
        "rope_theta": settings.rope_theta,
        "rope_scaling": rope if settings.rope_scaling is not None else None,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _rope(folder: Path, config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    merged: dict[str, Any] = {}
    top = {key: config[key] for key in ROPE_TOP if key in config}
    for source in ("rope_parameters", "rope_scaling"):
        given = {source: None, **config}[source]
        if not isinstance(given, dict | None):
            raise _unsupported(folder, source, given, (None, {"rope_type": "llama3"}))
        for key, value in [*top.items(), *(given or {}).items()]:
            key = "rope_type" if key == "type" else key
            if key in merged and merged[key] != value:
                raise ValueError(f"{folder}/config.json gives {key} twice, as {merged[key]!r} and {value!r} ({source})")
            merged[key] = value
    merged = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0, **merged}
    if merged["partial_rotary_factor"] not in (1.0, None):
        raise _unsupported(folder, "partial_rotary_factor", merged["partial_rotary_factor"], (1.0,))
    kind = merged["rope_type"]
    if kind not in ("default", "llama3"):
        raise _unsupported(folder, "rope_type", kind, ("default", "llama3"))
    scaled = set(LLAMA3.values()) if kind == "llama3" else set()
    unknown = sorted(merged.keys() - {"rope_type", *ROPE_TOP} - scaled)
    if unknown:
        raise ValueError(f"{folder}/config.json sets {unknown[0]} for rope type {kind}, which is not supported")
    missing = sorted(scaled - merged.keys())
    if missing:
        raise ValueError(f"{folder}/config.json does not say {missing[0]} for rope type {kind}")
    theta = _number(folder, "rope_theta", merged["rope_theta"], float)
    if kind == "default":
        return theta, None
    scaling = RopeScaling(
        **{
            ours: _number(folder, theirs, merged[theirs], int if theirs.startswith("original") else float)
            for ours, theirs in LLAMA3.items()
        }
    )
    if scaling.high_frequency_factor <= scaling.low_frequency_factor:
        raise ValueError(f"{folder}/config.json: high_freq_factor must be above low_freq_factor, given {merged}")
    return theta, scaling


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
        content = _read_json(index)
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


def _architecture(config: Mapping[str, Any], folder: Path) -> str:
    named = {"architectures": None, **config}["architectures"]
    if not isinstance(named, list) or len(named) != 1 or named[0] not in FAMILIES:
        raise _unsupported(folder, "architectures", named, tuple([name] for name in FAMILIES))
    return named[0]


def _number(folder: Path, key: str, value: Any, kind: type) -> Any:
    right = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not right or not 0 < value < math.inf:
        raise ValueError(f"{folder}/config.json sets {key}={value!r}; it must be a positive {kind.__name__}")
    return kind(value)


def _unsupported(folder: Path, key: str, value: Any, allowed: tuple[Any, ...]) -> ValueError:
    named = ", ".join(map(repr, allowed))
    return ValueError(f"{folder}/config.json sets {key}={value!r}; supported: {named} (config.model.path)")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no {path.name} in {path.parent}; config.model.path must be a Hugging Face model folder")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must hold an object")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
