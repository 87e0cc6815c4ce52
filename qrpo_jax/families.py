"""Model families: which settings of a Hugging Face `config.json` the decoder stands for, and under which names."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qrpo_jax.decoder import DecoderSettings, RopeScaling


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


def read_settings(folder: Path) -> DecoderSettings:
    """Settings from `config.json`, in the layout of transformers 5 or older.

    Raises:
      ValueError: the folder or file is missing or malformed, the architecture is not in `FAMILIES`, or a
        setting would change what is computed and is not supported.
    """
    if not folder.is_dir():
        raise ValueError(f"model folder {folder} does not exist (config.model.path)")
    config = read_json(folder / "config.json")
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


def hugging_face_config(settings: DecoderSettings, dtype: str) -> dict[str, Any]:
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


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no {path.name} in {path.parent}; config.model.path must be a Hugging Face model folder")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must hold an object")
    return content
