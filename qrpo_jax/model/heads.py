"""Heads of reward models: they turn a decoder's hidden states into one score per conversation.

Axes: O objectives. There are two heads.

- `SingleLogit`, of `*ForSequenceClassification` with one label: `score.weight` [1, D] times the hidden state of the
  last token that is not the padding token, as transformers computes it. Where a conversation ends with the padding
  token, as some chat templates do, the token before it is read, as transformers does.
- `GatedObjectives`, of `LlamaForRewardModelWithGating`, which is ArmoRM (Wang et al. 2024, arXiv 2406.12845). From the
  code published with RLHFlow/ArmoRM-Llama3-8B-v0.1:
  - rewards = hidden state of the last token · `regression_layer.weight`ᵀ, [O], O = 19, without bias;
  - the gate reads the hidden state at the prompt's last token: the first token of the last place that spells
    `GATE_TEXT`, in Llama 3's tokens 128009, 128006, 78191, 128007, 271. So it does not depend on the answer;
  - the gate is `gating_n_hidden` = 3 linear layers of `gating_hidden_dim` = 1024 with bias and ReLU, then one with bias
    to [O], a softmax at temperature `gating_temperature` = 10, times `gating.logit_scale`;
  - `reward_transform_matrix` [O, O] removes the share of verbosity from the objectives:
    score = Σ gate · (rewards · matrix).

Heads are computed in float32 from hidden states of the compute type.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qrpo_jax.errors import UserError

Tensors = dict[str, Array]  # by their names in the folder
GATE_TEXT = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


class SingleLogit(NamedTuple):
    """The head of a `*ForSequenceClassification` with one label."""

    pad_token: int | None

    def tensors(self, d_model: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the head's tensors."""
        return {"score.weight": (1, d_model)}

    def gate_tokens(self, encode: Callable[[str], list[int]]) -> tuple[int, ...]:
        """Tokens that mark the end of the prompt; none, because this head has no gate."""
        return ()

    def positions(self, tokens_L: np.ndarray, gate_tokens: tuple[int, ...]) -> tuple[int, int]:
        """Positions of the hidden states that `scores` reads: the last token, and again the last for want of a gate."""
        kept = np.flatnonzero(tokens_L != self.pad_token) if self.pad_token is not None else np.arange(len(tokens_L))
        last = int(kept[-1]) if len(kept) else 0
        return last, last

    def scores(self, tensors: Tensors, last_BxD: Array, gate_BxD: Array) -> Array:
        """Scores [B], float32."""
        return _linear(last_BxD, tensors["score.weight"])[:, 0]


class GatedObjectives(NamedTuple):
    """The head of ArmoRM.

    Attributes:
      pad_token: must not occur in a conversation.
      objectives: O.
      gate_layers, gate_units: number and width of the gate's hidden layers.
      temperature: of the gate's softmax.
    """

    pad_token: int | None
    objectives: int
    gate_layers: int
    gate_units: int
    temperature: float

    def tensors(self, d_model: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the head's tensors."""
        widths = [d_model, *[self.gate_units] * self.gate_layers, self.objectives]
        shapes: dict[str, tuple[int, ...]] = {
            "regression_layer.weight": (self.objectives, d_model),
            "reward_transform_matrix": (self.objectives, self.objectives),
            "gating.logit_scale": (1,),
        }
        for i, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
            shapes[f"gating.layers.{i}.weight"] = (outputs, inputs)
            shapes[f"gating.layers.{i}.bias"] = (outputs,)
        return shapes

    def gate_tokens(self, encode: Callable[[str], list[int]]) -> tuple[int, ...]:
        """GATE_TEXT in tokens, which mark the end of the prompt.

        Args:
          encode: tokenizes text, special tokens included.
        """
        return tuple(encode(GATE_TEXT))

    def positions(self, tokens_L: np.ndarray, gate_tokens: tuple[int, ...]) -> tuple[int, int]:
        """Positions of the hidden states that `scores` reads: the last token, and the last token of the prompt.

        Raises:
          UserError: no GATE_TEXT, or a padding token, where the published code would end the conversation.
        """
        if self.pad_token is not None and self.pad_token in tokens_L:
            raise UserError(f"it holds the padding token, {self.pad_token}, which ends a conversation for ArmoRM")
        starts = np.flatnonzero(tokens_L == gate_tokens[0])[::-1]
        for start in starts.tolist():
            if tuple(tokens_L[start : start + len(gate_tokens)].tolist()) == gate_tokens:
                return len(tokens_L) - 1, start
        raise UserError(f"it does not hold {json.dumps(GATE_TEXT)}, by which ArmoRM finds the end of the prompt")

    def scores(self, tensors: Tensors, last_BxD: Array, gate_BxD: Array) -> Array:
        """Scores [B], float32."""
        rewards_BxO = _linear(last_BxD, tensors["regression_layer.weight"])
        x = gate_BxD
        for i in range(self.gate_layers + 1):
            x = _linear(x, tensors[f"gating.layers.{i}.weight"]) + tensors[f"gating.layers.{i}.bias"][None]
            x = jax.nn.relu(x) if i < self.gate_layers else x
        gate_BxO = jax.nn.softmax(x / self.temperature) * tensors["gating.logit_scale"][None]
        adjusted_BxO = _linear(rewards_BxO, tensors["reward_transform_matrix"].T)
        return (gate_BxO * adjusted_BxO).sum(-1)


Head = SingleLogit | GatedObjectives


def _linear(x_BxI: Array, weight_OxI: Array) -> Array:
    return jnp.matmul(x_BxI.astype(jnp.float32), weight_OxI.T.astype(jnp.float32), precision="highest")
