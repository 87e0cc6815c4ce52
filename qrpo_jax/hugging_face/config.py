"""Hugging Face `config.json`, read into settings and written from them; whatever is not understood is refused."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face.families import FAMILIES
from qrpo_jax.hugging_face.family import Family, Option
from qrpo_jax.hugging_face.json_values import LARGEST, flag, number, read_json, unsupported
from qrpo_jax.hugging_face.metadata import METADATA
from qrpo_jax.hugging_face.rope_config import layers_with_rope, read_rope, read_rope_layers, rope_keys, written_rope
from qrpo_jax.hugging_face.text_part import WHOLES, text_config
from qrpo_jax.hugging_face.window_config import read_windows, window_keys, written_windows
from qrpo_jax.model.settings import DecoderSettings

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

# Keys of one supported value that an export says nevertheless.
WRITTEN = frozenset({"hidden_act", "hidden_activation"})

# Layers and their tensors are listed one by one before the weights are read, so an untrusted config.json must not
# be able to ask for any number of them.
MAX_LAYERS = 10_000


def read_settings(folder: Path) -> DecoderSettings:
    """Settings from `config.json`, in the layout of transformers 5 or older.

    A key that is absent means what it means to transformers. Of a model that also reads images they are the settings
    of its text part.

    Raises:
      UserError: the folder or file is missing or malformed, the architecture is not in `FAMILIES`, or a
        setting would change the computation and is not supported.
    """
    config = read_config(folder)
    name = architecture(folder, config, (*FAMILIES, *WHOLES))
    if name in WHOLES:
        name, config = text_config(folder, config, name)
    return settings_of(folder, config, name)


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json`.

    Raises:
      UserError: the folder or file is missing or malformed.
    """
    if not (folder / "config.json").is_file() and not folder.is_dir():  # a store may list a folder late
        raise UserError(f"model folder {folder} does not exist", about="path")
    return read_json(folder / "config.json")


def architecture(folder: Path, config: Mapping[str, Any], allowed: Iterable[str]) -> str:
    """The one architecture that a `config.json` names.

    Raises:
      UserError: it names none or several, or one that is not `allowed`.
    """
    named = {"architectures": None, **config}["architectures"]
    allowed = tuple(allowed)
    if not isinstance(named, list) or len(named) != 1 or named[0] not in allowed:
        raise unsupported(folder, "architectures", named, tuple([name] for name in allowed))
    return named[0]


def settings_of(
    folder: Path, config: Mapping[str, Any], name: str, head_keys: frozenset[str] = frozenset()
) -> DecoderSettings:
    """Settings of the decoder in a `config.json` of the family called `name`.

    Args:
      head_keys: further keys that are allowed, because they belong to a head that the caller reads itself.

    Raises:
      UserError: see `read_settings`.
    """
    family = FAMILIES[name]
    values = {**_defaults(family), **config}
    _check_keys(folder, family, config, values, head_keys)
    sizes = _sizes(folder, family, values)
    fields: dict[str, Any] = {**sizes, "family": name, **family.fixed, **_constants(folder, family, values)}
    roped = read_rope_layers(folder, config, sizes["layers"]) if family.roped == "listed" else None
    windows = read_windows(folder, family, config, sizes["layers"], roped)
    fields |= windows | {"rope_layers": roped or layers_with_rope(family, windows, sizes["layers"])}
    fields |= read_rope(folder, family, config, sizes)
    try:
        return DecoderSettings(**fields)
    except UserError as error:
        raise UserError(f"{folder}/config.json: {error.message}", about="path") from None


def hugging_face_config(settings: DecoderSettings, dtype: str) -> dict[str, Any]:
    """config.json, with rope and dtype also under the names that readers older than transformers 5 know.

    Raises:
      UserError: a config.json of the settings' family cannot express one of them.
    """
    if settings.family not in FAMILIES:
        raise UserError(f"model family is {settings.family!r}; allowed: {', '.join(FAMILIES)}", about="settings")
    family = FAMILIES[settings.family]
    rope, beside = written_rope(settings, family)
    config = {
        "architectures": [settings.family],
        "model_type": family.model_type,
        **family.written,
        **{theirs: getattr(settings, ours) for ours, theirs in _size_keys(family).items()},
        family.epsilon: settings.norm_epsilon,
        "tie_word_embeddings": settings.tie_embeddings,
        **{key: allowed[0] for key, allowed in family.supported.items() if key in WRITTEN | family.needed},
        **{key: _written(settings, option) for key, option in family.options.items()},
        **written_windows(settings, family),
        "rope_parameters": rope,
        **beside,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    read_back = settings_of(Path(f"the {settings.family} folder"), config, settings.family)
    for field in dataclasses.fields(settings):
        value, written = getattr(settings, field.name), getattr(read_back, field.name)
        if value != written:
            raise UserError(
                f"a {settings.family} folder cannot say {field.name}={value!r}, only {written!r}", about="settings"
            )
    return config


def _size_keys(family: Family) -> dict[str, str]:
    return SIZES | dict(family.sizes)


def _defaults(family: Family) -> dict[str, Any]:
    """What transformers assumes for absent keys, windows and positions aside."""
    defaults = {key: allowed[0] for key, allowed in family.supported.items() if key not in family.needed}
    defaults |= {key: option.default for key, option in family.options.items()}
    defaults |= {"model_type": family.model_type, "tie_word_embeddings": family.tied}
    return defaults | {"num_key_value_heads": family.kv_heads, "head_dim": family.head_dim}


def _check_keys(
    folder: Path, family: Family, config: Mapping[str, Any], values: Mapping[str, Any], head_keys: frozenset[str]
) -> None:
    """Refuses values that are not supported, keys that are not known, and needed keys that are absent."""
    if values["model_type"] != family.model_type:
        raise unsupported(folder, "model_type", values["model_type"], (family.model_type,))
    for key, allowed in family.supported.items():
        if key in values and values[key] not in allowed:
            raise unsupported(folder, key, values[key], allowed)
    needed = {*_size_keys(family).values(), family.epsilon, "tie_word_embeddings", *family.needed}
    known = head_keys | needed | METADATA | family.metadata | set(family.supported) | set(family.options)
    unknown = sorted(set(config) - known - set(family.written) - rope_keys(family) - window_keys(family))
    if unknown:
        key = unknown[0]
        raise UserError(f"{folder}/config.json sets {key}={config[key]!r}, which is not supported", about="path")
    missing = sorted(needed - set(values))
    if missing:
        raise UserError(f"{folder}/config.json does not say {missing[0]}", about="path")


def _sizes(folder: Path, family: Family, values: Mapping[str, Any]) -> dict[str, int]:
    values = dict(values)
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    if family.head_dim is None and (values["head_dim"] is None or family.derived_head_dim):
        d_model = number(folder, "hidden_size", values["hidden_size"], int)
        derived = d_model // number(folder, "num_attention_heads", values["num_attention_heads"], int)
        if values["head_dim"] not in (None, derived):
            raise unsupported(folder, "head_dim", values["head_dim"], (derived,))
        values["head_dim"] = derived
    largest = {"layers": MAX_LAYERS}
    return {
        ours: number(folder, theirs, values[theirs], int, largest.get(ours, LARGEST))
        for ours, theirs in _size_keys(family).items()
    }


def _constants(folder: Path, family: Family, values: Mapping[str, Any]) -> dict[str, Any]:
    """The norms' epsilon, whether embeddings are tied, and the family's options, such as biases and caps."""
    fields = {
        "norm_epsilon": number(folder, family.epsilon, values[family.epsilon], float),
        "tie_embeddings": flag(folder, "tie_word_embeddings", values["tie_word_embeddings"]),
    }
    for key, option in family.options.items():
        fields |= dict.fromkeys(option.fields, _option(folder, key, values[key], option))
    return fields


def _option(folder: Path, key: str, value: Any, option: Option) -> Any:
    if value is None and option.nullable:
        return None
    value = flag(folder, key, value) if option.kind is bool else number(folder, key, value, option.kind)
    return 1.0 / value if option.reciprocal else value


def _written(settings: DecoderSettings, option: Option) -> Any:
    """The value of an option's key in config.json."""
    value = getattr(settings, option.fields[0])
    return 1.0 / value if option.reciprocal else value
