"""Hugging Face `config.json`, read into settings and written from them; whatever is not understood is refused."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qrpo_jax.hugging_face.families import FAMILIES, Family, Option
from qrpo_jax.hugging_face.json_values import LARGEST, flag, number, read_json, unsupported
from qrpo_jax.hugging_face.rope_config import FULL, ROPE_TOP, SLIDING, read_rope, written_rope
from qrpo_jax.model.settings import DecoderSettings

# Keys of config.json that say nothing about what the network computes. Any key not named here or in `families` is
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

# Layers and their tensors are listed one by one before the weights are looked at, so a config.json that is not to be
# trusted must not ask for any number of them.
MAX_LAYERS = 10_000

WINDOW_KEYS = {
    "none": (),
    "all": ("sliding_window",),
    "late": ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
    "unroped": ("sliding_window", "use_sliding_window", "layer_types"),
    "alternate": ("sliding_window", "layer_types"),
}
PATTERN_KEYS = ("sliding_window_pattern", "_sliding_window_pattern")


def read_settings(folder: Path) -> DecoderSettings:
    """Settings from `config.json`, in the layout of transformers 5 or older.

    A key that is absent means what it means to transformers.

    Raises:
      ValueError: the folder or file is missing or malformed, the architecture is not in `FAMILIES`, or a
        setting would change what is computed and is not supported.
    """
    if not folder.is_dir():
        raise ValueError(f"model folder {folder} does not exist (config.model.path)")
    config = read_json(folder / "config.json")
    return settings_of(folder, config, architecture(folder, config, FAMILIES))


def settings_of(
    folder: Path, config: Mapping[str, Any], name: str, heads_own: frozenset[str] = frozenset()
) -> DecoderSettings:
    """Settings of the decoder in a `config.json`, which is of the family called `name`.

    Args:
      heads_own: keys that whoever asks reads by itself, because they are about what stands on the decoder.

    Raises:
      ValueError: see `read_settings`.
    """
    family = FAMILIES[name]
    assumed = {key: allowed[0] for key, allowed in family.supported.items()}
    assumed |= {key: option.default for key, option in family.options.items()}
    assumed |= {"model_type": family.model_type, "tie_word_embeddings": family.tied}
    assumed |= {"num_key_value_heads": family.kv_heads, "head_dim": family.head_dim}
    given = {**assumed, **config}

    if given["model_type"] != family.model_type:
        raise unsupported(folder, "model_type", given["model_type"], (family.model_type,))
    for key, allowed in family.supported.items():
        if given[key] not in allowed:
            raise unsupported(folder, key, given[key], allowed)
    needed = {*SIZES.values(), "rms_norm_eps", "tie_word_embeddings"}
    known = heads_own | needed | METADATA | family.metadata | set(family.supported) | set(family.options)
    known |= {"rope_parameters", "rope_scaling", *ROPE_TOP, *WINDOW_KEYS[family.windows]}
    known |= {"sliding_window_size"} if family.windows == "alternate" else set()
    known |= {"rope_local_base_freq", *PATTERN_KEYS} if family.local_theta is not None else set()
    known |= {"no_rope_layers", "no_rope_layer_interval"} if family.unroped else set()
    known |= {"original_max_position_embeddings"} if "longrope" in family.ropes else set()
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(f"{folder}/config.json sets {unknown[0]}={config[unknown[0]]!r}, which is not supported")
    missing = sorted(needed - set(given))
    if missing:
        raise ValueError(f"{folder}/config.json does not say {missing[0]}")

    if given["num_key_value_heads"] is None:
        given["num_key_value_heads"] = given["num_attention_heads"]
    if given["head_dim"] is None and family.head_dim is None:
        d_model = number(folder, "hidden_size", given["hidden_size"], int)
        given["head_dim"] = d_model // number(folder, "num_attention_heads", given["num_attention_heads"], int)
    most = {"layers": MAX_LAYERS}
    sizes = {
        ours: number(folder, theirs, given[theirs], int, most.get(ours, LARGEST)) for ours, theirs in SIZES.items()
    }
    fields: dict[str, Any] = {**sizes, "family": name, **family.fixed}
    fields["norm_epsilon"] = number(folder, "rms_norm_eps", given["rms_norm_eps"], float)
    fields["tie_embeddings"] = flag(folder, "tie_word_embeddings", given["tie_word_embeddings"])
    for key, option in family.options.items():
        fields |= dict.fromkeys(option.fields, _option(folder, key, given[key], option))
    if family.unroped:
        fields["rope_layers"] = _roped(folder, config, sizes["layers"])
    fields |= _windows(folder, family, config, fields)
    fields |= read_rope(folder, family, config, sizes)
    return DecoderSettings(**fields)


def hugging_face_config(settings: DecoderSettings, dtype: str) -> dict[str, Any]:
    """config.json, with rope and dtype also under the names that readers older than transformers 5 know.

    Raises:
      ValueError: the settings' family has no way to say one of them.
    """
    if settings.family not in FAMILIES:
        raise ValueError(f"model family is {settings.family!r}; allowed: {', '.join(FAMILIES)} (config.model)")
    family = FAMILIES[settings.family]
    rope, top = written_rope(settings, family)
    config = {
        "architectures": [settings.family],
        "model_type": family.model_type,
        **{theirs: getattr(settings, ours) for ours, theirs in SIZES.items()},
        "rms_norm_eps": settings.norm_epsilon,
        "tie_word_embeddings": settings.tie_embeddings,
        **{key: family.supported[key][0] for key in ("hidden_act", "hidden_activation") if key in family.supported},
        **{key: getattr(settings, option.fields[0]) for key, option in family.options.items()},
        **_written_windows(settings, family),
        "rope_parameters": rope,
        **top,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if family.unroped:
        config["no_rope_layers"] = [int(turned) for turned in settings.rope_layers or (True,) * settings.layers]
    said = settings_of(Path(f"the {settings.family} folder"), config, settings.family)
    for field in dataclasses.fields(settings):
        given, back = getattr(settings, field.name), getattr(said, field.name)
        if given != back:
            raise ValueError(
                f"a {settings.family} folder cannot say {field.name}={given!r}, only {back!r} (config.model)"
            )
    return config


def _roped(folder: Path, config: Mapping[str, Any], layers: int) -> tuple[bool, ...] | None:
    given = {"no_rope_layers": None, "no_rope_layer_interval": 4, **config}
    listed = given["no_rope_layers"]
    if listed is None:
        interval = number(folder, "no_rope_layer_interval", given["no_rope_layer_interval"], int)
        listed = [int((i + 1) % interval != 0) for i in range(layers)]
    if not isinstance(listed, list) or len(listed) < layers or any(one not in (0, 1) for one in listed):
        raise ValueError(f"{folder}/config.json sets no_rope_layers={listed!r}; it must be {layers} times 0 or 1")
    roped = tuple(bool(one) for one in listed[:layers])
    return None if all(roped) else roped


def _windows(folder: Path, family: Family, config: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The settings `sliding_window` and `sliding_layers`."""
    if family.windows == "none":
        return {}
    layers = fields["layers"]
    given = {"sliding_window": family.window, "use_sliding_window": False, "layer_types": None, **config}
    used = family.windows in ("all", "alternate")
    used = used or flag(folder, "use_sliding_window", given["use_sliding_window"])
    window = given["sliding_window"] if used else None
    window = None if window is None else number(folder, "sliding_window", window, int)
    if {"sliding_window_size": window, **config}["sliding_window_size"] != window:
        raise unsupported(folder, "sliding_window_size", config["sliding_window_size"], (window,))
    if family.windows == "all":
        return {"sliding_window": window}
    if family.windows == "late":
        late = {"max_window_layers": 28, **config}["max_window_layers"]
        if not isinstance(late, int) or late < 0:
            raise ValueError(f"{folder}/config.json sets max_window_layers={late!r}; it must be an int from 0")
        types = [SLIDING if window is not None and i >= late else FULL for i in range(layers)]
    elif family.windows == "unroped":
        roped = fields["rope_layers"] or (True,) * layers
        types = [FULL if window is None or turned else SLIDING for turned in roped]
    else:
        pattern = {PATTERN_KEYS[0]: family.pattern, **config}[PATTERN_KEYS[0]]
        types = _alternate(number(folder, PATTERN_KEYS[0], pattern, int), layers)
    hint = {PATTERN_KEYS[1]: None, **config}[PATTERN_KEYS[1]]
    if given["layer_types"] is not None:
        types, hint = given["layer_types"], None  # transformers writes the hint beside them, whatever they are
    if not isinstance(types, list) or len(types) != layers or any(one not in (SLIDING, FULL) for one in types):
        raise ValueError(
            f"{folder}/config.json sets layer_types={types!r}; it must be {layers} times {SLIDING} or {FULL}"
        )
    if hint is not None and _alternate(number(folder, PATTERN_KEYS[1], hint, int), layers) != types:
        raise ValueError(f"{folder}/config.json sets {PATTERN_KEYS[1]}={hint!r}, yet layers alternate otherwise")
    slides = tuple(one == SLIDING for one in types)
    if any(slides) and window is None:
        raise ValueError(f"{folder}/config.json has layers of type {SLIDING} and no sliding_window to go with them")
    if not any(slides):
        return {}
    return {"sliding_window": window, "sliding_layers": None if all(slides) else slides}


def _written_windows(settings: DecoderSettings, family: Family) -> dict[str, Any]:
    window, slides = settings.sliding_window, settings.slides
    late = settings.layers
    while late and slides[late - 1]:
        late -= 1
    written = {
        "sliding_window": window,
        "use_sliding_window": window is not None,
        "max_window_layers": late,
        "layer_types": [SLIDING if slide else FULL for slide in slides],
    }
    if family.windows == "alternate" and window is None:
        written["sliding_window"] = family.window  # transformers wants one even where no layer slides
    found = {key: written[key] for key in WINDOW_KEYS[family.windows]}
    if family.local_theta is not None:
        tried = (family.pattern, *range(1, settings.layers + 2))
        same = [n for n in tried if _alternate(n, settings.layers) == written["layer_types"]]
        found |= {PATTERN_KEYS[0]: same[0]} if same else {}
    return found


def _alternate(pattern: int, layers: int) -> list[str]:
    return [SLIDING if (i + 1) % pattern else FULL for i in range(layers)]


def architecture(folder: Path, config: Mapping[str, Any], allowed: Iterable[str]) -> str:
    """The one architecture that a `config.json` names.

    Raises:
      ValueError: it names none or several, or one that is not `allowed`.
    """
    named = {"architectures": None, **config}["architectures"]
    allowed = tuple(allowed)
    if not isinstance(named, list) or len(named) != 1 or named[0] not in allowed:
        raise unsupported(folder, "architectures", named, tuple([name] for name in allowed))
    return named[0]


def _option(folder: Path, key: str, value: Any, option: Option) -> Any:
    if value is None and option.nullable:
        return None
    return flag(folder, key, value) if option.kind is bool else number(folder, key, value, option.kind)
