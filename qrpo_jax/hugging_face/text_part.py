"""Folders of models that read images too: the text part, which is what is trained, scored and exported.

An export holds the text part alone, as a folder of its own family. A tower that read images for the model as it was
has not been trained or checked with the model as it became, and a folder without it loads wherever the family does.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face.json_values import setting_error, unsupported
from qrpo_jax.hugging_face.metadata import METADATA

Named = TypeVar("Named")


class Whole(NamedTuple):
    """A model with a text part and a vision part.

    Attributes:
      model_type: of the whole.
      families: the architecture of the text part, by its model_type; the first where that is absent.
      absent: for each model_type, what transformers takes for sizes that the text part's config does not say.
      images: keys that are about images only.
    """

    model_type: str
    families: Mapping[str, str]
    absent: Mapping[str, Mapping[str, Any]]
    images: frozenset[str]


_GEMMA3 = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
}
_MISTRAL = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
}
_MINISTRAL3 = _MISTRAL | {
    "vocab_size": 131_072,
    "num_hidden_layers": 34,
    "max_position_embeddings": 262_144,
    "rms_norm_eps": 1e-5,
}
_GEMMA3_IMAGES = "vision_config boi_token_index eoi_token_index image_token_index mm_tokens_per_image"
_MISTRAL3_IMAGES = """
vision_config image_token_index multimodal_projector_bias projector_hidden_act spatial_merge_size vision_feature_layer
"""

WHOLES = {
    "Gemma3ForConditionalGeneration": Whole(
        model_type="gemma3",
        families={"gemma3_text": "Gemma3ForCausalLM"},
        absent={"gemma3_text": _GEMMA3},
        images=frozenset(_GEMMA3_IMAGES.split()),
    ),
    "Mistral3ForConditionalGeneration": Whole(
        model_type="mistral3",
        families={
            "mistral": "MistralForCausalLM",
            "ministral": "MinistralForCausalLM",
            "ministral3": "Ministral3ForCausalLM",
        },
        absent={"mistral": _MISTRAL, "ministral": _MISTRAL, "ministral3": _MINISTRAL3},
        images=frozenset(_MISTRAL3_IMAGES.split()),
    ),
}
LAYERS = "model.language_model.layers"  # where transformers since 4.52 keeps them in such a model
# What names begin with in the text part of a whole, and in a folder of its family.
PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
IMAGES = tuple(prefix + part for prefix in ("", "model.") for part in ("vision_tower.", "multi_modal_projector."))


def text_config(folder: Path, config: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """The family of the text part of an architecture, a key of `WHOLES`, and its `config.json`.

    Raises:
      UserError: there is no config of a text part, one of an unsupported kind, or a key that is not known.
    """
    whole, inner = WHOLES[name], {"text_config": None, **config}["text_config"]
    if {"model_type": whole.model_type, **config}["model_type"] != whole.model_type:
        raise unsupported(folder, "model_type", config["model_type"], (whole.model_type,))
    if not isinstance(inner, dict):
        raise setting_error(folder, "text_config", inner, "it must be the config of the text part")
    unknown = sorted(set(config) - METADATA - whole.images - {"text_config", "tie_word_embeddings"})
    if unknown:
        key = unknown[0]
        raise UserError(f"{folder}/config.json sets {key}={config[key]!r:.200}, which is not supported", about="path")
    kind = {"model_type": next(iter(whole.families)), **inner}["model_type"]
    if kind not in whole.families:
        raise unsupported(folder, "text_config.model_type", kind, tuple(whole.families))
    # The text part's own word comes first: transformers 5 writes the default of the whole beside it.
    tied = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
    return whole.families[kind], {**whole.absent[kind], **tied, **inner}


def is_whole(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is that of a model with a text part."""
    named = {"architectures": None, **config}["architectures"]
    return isinstance(named, list) and len(named) == 1 and named[0] in WHOLES


def layers_in(config: Mapping[str, Any]) -> str:
    """Where transformers keeps the layers of a model with this `config.json`."""
    return LAYERS if is_whole(config) else "model.layers"


def text_tensors(tensors: Mapping[str, Named]) -> dict[str, Named]:
    """Of the tensors of a whole model those of its text part, by the names that they have in a folder of its family."""
    return {_text_name(name): tensor for name, tensor in tensors.items() if not name.startswith(IMAGES)}


def vision_tensors(names: Iterable[str]) -> int:
    """How many of the tensors of a whole model are not of its text part."""
    return sum(name.startswith(IMAGES) for name in names)


def _text_name(name: str) -> str:
    """A name of neither part stays, and is refused where the tensors are compared with the settings."""
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    return (PREFIXES[prefix] if prefix else "") + name.removeprefix(prefix)
