"""Heads of reward models: what stands on a decoder and turns its hidden states into one score a conversation.

Two kinds are known, by the architecture that `config.json` names. Axes: O objectives.

- `*ForSequenceClassification` with one label: `score.weight` [1, D] times the hidden state of the last token that is
  not the padding token, as transformers computes it. Where the padding token is also what a conversation ends with,
  such as an end of turn, the token before it is read, as transformers does.
- `LlamaForRewardModelWithGating`, which is ArmoRM (Wang et al. 2024, arXiv 2406.12845). From the code published with
  RLHFlow/ArmoRM-Llama3-8B-v0.1:
  - rewards = hidden state of the last token · `regression_layer.weight`ᵀ, [O], O = 19, without bias;
  - the gate reads the hidden state at the prompt's last token: the first token of the last place that spells
    `GATE_TEXT`, in Llama 3's tokens 128009, 128006, 78191, 128007, 271. So it does not depend on the answer;
  - the gate is `gating_n_hidden` = 3 linear layers of `gating_hidden_dim` = 1024 with bias and ReLU, then one with bias
    to [O], a softmax at temperature `gating_temperature` = 10, times `gating.logit_scale`;
  - `reward_transform_matrix` [O, O] takes the share of verbosity out of the objectives:
    score = Σ gate · (rewards · matrix).

The folders' own code (`auto_map`) is never run: the name of the architecture selects what stands here. Heads are
computed in float32 from hidden states of the compute type.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qrpo_jax.hugging_face.config import MAX_LAYERS, architecture, settings_of
from qrpo_jax.hugging_face.families import FAMILIES
from qrpo_jax.hugging_face.json_values import number, read_json, unsupported
from qrpo_jax.model.settings import DecoderSettings

Tensors = dict[str, Array]  # by the names that the folder has for them

GATED = "LlamaForRewardModelWithGating"
GATE_TEXT = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
# transformers has such a class for all families but Apertus.
CLASSIFIERS = {
    name.replace("Gemma3", "Gemma3Text").replace("CausalLM", "SequenceClassification"): name
    for name in FAMILIES
    if name != "ApertusForCausalLM"
}


class SingleLogit(NamedTuple):
    """The head of a `*ForSequenceClassification` with one label."""

    pad_token: int | None

    def tensors(self, d_model: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the head's tensors."""
        return {"score.weight": (1, d_model)}

    def gate_tokens(self, ids_of: Any) -> tuple[int, ...]:
        return ()

    def positions(self, tokens_L: np.ndarray, gate_tokens: tuple[int, ...]) -> tuple[int, int]:
        """Which hidden states `scores` is to get: of the last token, twice, for want of a gate."""
        kept = np.flatnonzero(tokens_L != self.pad_token) if self.pad_token is not None else np.arange(len(tokens_L))
        last = int(kept[-1]) if len(kept) else 0
        return last, last

    def scores(self, tensors: Tensors, last_BxD: Array, gate_BxD: Array) -> Array:
        """Scores [B], float32."""
        return _linear(last_BxD, tensors["score.weight"])[:, 0]


class GatedObjectives(NamedTuple):
    """The head of ArmoRM."""

    pad_token: int | None
    objectives: int
    gate_layers: int
    gate_units: int
    temperature: float

    def tensors(self, d_model: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the head's tensors."""
        widths = [d_model, *[self.gate_units] * self.gate_layers, self.objectives]
        found: dict[str, tuple[int, ...]] = {
            "regression_layer.weight": (self.objectives, d_model),
            "reward_transform_matrix": (self.objectives, self.objectives),
            "gating.logit_scale": (1,),
        }
        for i, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
            found[f"gating.layers.{i}.weight"] = (outputs, inputs)
            found[f"gating.layers.{i}.bias"] = (outputs,)
        return found

    def gate_tokens(self, ids_of: Any) -> tuple[int, ...]:
        """GATE_TEXT in tokens; `ids_of` encodes text, special tokens included."""
        return tuple(ids_of(GATE_TEXT))

    def positions(self, tokens_L: np.ndarray, gate_tokens: tuple[int, ...]) -> tuple[int, int]:
        """Which hidden states `scores` is to get: of the last token, and of the prompt's last.

        Raises:
          ValueError: no GATE_TEXT, or a padding token, behind which the published code would not look.
        """
        if self.pad_token is not None and self.pad_token in tokens_L:
            raise ValueError(f"it holds the padding token, {self.pad_token}, which ends a conversation for ArmoRM")
        starts = np.flatnonzero(tokens_L == gate_tokens[0])[::-1]
        for start in starts.tolist():
            if tuple(tokens_L[start : start + len(gate_tokens)].tolist()) == gate_tokens:
                return len(tokens_L) - 1, start
        raise ValueError(f"it does not hold {json.dumps(GATE_TEXT)}, by which ArmoRM finds the end of the prompt")

    def scores(self, tensors: Tensors, last_BxD: Array, gate_BxD: Array) -> Array:
        """Scores [B], float32."""
        rewards_BxO = _linear(last_BxD, tensors["regression_layer.weight"])
        x = gate_BxD
        for i in range(self.gate_layers + 1):
            x = _linear(x, tensors[f"gating.layers.{i}.weight"]) + tensors[f"gating.layers.{i}.bias"]
            x = jax.nn.relu(x) if i < self.gate_layers else x
        gate_BxO = jax.nn.softmax(x / self.temperature) * tensors["gating.logit_scale"]
        adjusted_BxO = _linear(rewards_BxO, tensors["reward_transform_matrix"].T)
        return (gate_BxO * adjusted_BxO).sum(-1)


Head = SingleLogit | GatedObjectives


def read_reward_config(folder: Path) -> tuple[DecoderSettings, Head]:
    """Decoder and head of a reward model's `config.json`.

    Raises:
      ValueError: as `model_config.read_settings`, an architecture that is not known here, or more than one label.
    """
    if not folder.is_dir():
        raise ValueError(f"model folder {folder} does not exist (config.model.path)")
    config = read_json(folder / "config.json")
    name = architecture(folder, config, (*CLASSIFIERS, GATED))
    if name == GATED:
        known = {"num_objectives": 19, "gating_temperature": 10, "gating_hidden_dim": 1024, "gating_n_hidden": 3}
        family, given = "LlamaForCausalLM", {**known, **config}
        kinds = {"num_objectives": int, "gating_temperature": float, "gating_hidden_dim": int, "gating_n_hidden": int}
        # Each is a tensor or two that a folder may not make us list without end.
        values = {key: number(folder, key, given[key], kind, MAX_LAYERS) for key, kind in kinds.items()}
        settings = settings_of(folder, config, family, frozenset({*known, "auto_map"}))
        head: Head = GatedObjectives(
            pad_token=_pad_token(folder, config, family),
            objectives=values["num_objectives"],
            gate_layers=values["gating_n_hidden"],
            gate_units=values["gating_hidden_dim"],
            temperature=values["gating_temperature"],
        )
    else:
        family = CLASSIFIERS[name]
        settings = settings_of(folder, config, family)
        labels = _labels(config)
        if labels != 1:
            raise unsupported(folder, "num_labels", labels, (1,))
        head = SingleLogit(_pad_token(folder, config, family))
    # A reward model has no matrix to turn hidden states into logits, so there is none to tie or to keep.
    return dataclasses.replace(settings, tie_embeddings=True), head


def _labels(config: Mapping[str, Any]) -> Any:
    """How many labels transformers makes of this config.json; two if it does not say."""
    given = {"num_labels": None, "id2label": None, **config}
    if given["num_labels"] is not None:
        return given["num_labels"]
    return len(given["id2label"]) if isinstance(given["id2label"], dict) else 2


def _pad_token(folder: Path, config: Mapping[str, Any], family: str) -> int | None:
    token = {"pad_token_id": FAMILIES[family].pad_token, **config}["pad_token_id"]
    if token is not None and (not isinstance(token, int) or isinstance(token, bool)):
        raise ValueError(f"{folder}/config.json sets pad_token_id={token!r}; it must be a token id or null")
    return token


def _linear(x_BxI: Array, weight_OxI: Array) -> Array:
    return jnp.matmul(x_BxI.astype(jnp.float32), weight_OxI.T.astype(jnp.float32), precision="highest")
