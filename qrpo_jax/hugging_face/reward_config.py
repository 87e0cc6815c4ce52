"""`config.json` of a reward model: its decoder and its head, by the architecture that it names.

The folder's own code (`auto_map`) is never run.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qrpo_jax.hugging_face.config import MAX_LAYERS, architecture, read_config, settings_of
from qrpo_jax.hugging_face.families import FAMILIES
from qrpo_jax.hugging_face.json_values import number, setting_error, unsupported
from qrpo_jax.model.heads import GatedObjectives, Head, SingleLogit
from qrpo_jax.model.settings import DecoderSettings

GATED = "LlamaForRewardModelWithGating"  # ArmoRM
UNCLASSIFIED = (
    "ApertusForCausalLM",
    "GraniteForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "Cohere2ForCausalLM",
)  # for which transformers has no such class
CLASSIFIERS = {
    name.replace("Gemma3", "Gemma3Text").replace("CausalLM", "SequenceClassification"): name
    for name in FAMILIES
    if name not in UNCLASSIFIED
}
# Keys of ArmoRM's head, with their types, and their values where they are absent.
GATE_KINDS = {"num_objectives": int, "gating_temperature": float, "gating_hidden_dim": int, "gating_n_hidden": int}
GATE_DEFAULTS = {"num_objectives": 19, "gating_temperature": 10, "gating_hidden_dim": 1024, "gating_n_hidden": 3}


def read_reward_config(folder: Path) -> tuple[DecoderSettings, Head]:
    """Decoder and head of a reward model's `config.json`.

    Raises:
      UserError: as `config.read_settings`, an architecture that is not supported, or more than one label.
    """
    config = read_config(folder)
    name = architecture(folder, config, (*CLASSIFIERS, GATED))
    if name == GATED:
        settings, head = _gated(folder, config)
    else:
        settings, head = _classifier(folder, config, CLASSIFIERS[name])
    # A reward model has no unembedding. Tied embeddings mean that none is expected in the folder.
    return dataclasses.replace(settings, tie_embeddings=True), head


def _gated(folder: Path, config: Mapping[str, Any]) -> tuple[DecoderSettings, Head]:
    family, values = "LlamaForCausalLM", {**GATE_DEFAULTS, **config}
    # Each layer is a tensor or two, so an untrusted folder must not be able to ask for any number of them.
    gate = {key: number(folder, key, values[key], kind, MAX_LAYERS) for key, kind in GATE_KINDS.items()}
    settings = settings_of(folder, config, family, frozenset({*GATE_KINDS, "auto_map"}))
    return settings, GatedObjectives(
        pad_token=_pad_token(folder, config, family),
        objectives=gate["num_objectives"],
        gate_layers=gate["gating_n_hidden"],
        gate_units=gate["gating_hidden_dim"],
        temperature=gate["gating_temperature"],
    )


def _classifier(folder: Path, config: Mapping[str, Any], family: str) -> tuple[DecoderSettings, Head]:
    settings = settings_of(folder, config, family)
    labels = _labels(config)
    if labels != 1:
        raise unsupported(folder, "num_labels", labels, (1,))
    return settings, SingleLogit(_pad_token(folder, config, family))


def _labels(config: Mapping[str, Any]) -> Any:
    """Number of labels that transformers reads from this config.json; two if no key says it."""
    values = {"num_labels": None, "id2label": None, **config}
    if values["num_labels"] is not None:
        return values["num_labels"]
    return len(values["id2label"]) if isinstance(values["id2label"], dict) else 2


def _pad_token(folder: Path, config: Mapping[str, Any], family: str) -> int | None:
    token = {"pad_token_id": FAMILIES[family].pad_token, **config}["pad_token_id"]
    if token is not None and (not isinstance(token, int) or isinstance(token, bool)):
        raise setting_error(folder, "pad_token_id", token, "it must be a token id or null")
    return token
