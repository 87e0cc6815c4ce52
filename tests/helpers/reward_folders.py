"""Folders of small random reward models in the published layouts, and their forward passes by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from qrpo_jax.hugging_face.reward_config import read_reward_config
from qrpo_jax.hugging_face.tensors import stored_tensors
from tests.helpers import chats

# Twice a prime or more where a mesh splits by two.
D, HEADS, KV_HEADS, K, FF, LAYERS, VOCAB, POSITIONS = 28, 4, 2, 6, 26, 2, 622, 211
OBJECTIVES, UNITS, GATE_LAYERS = 19, 17, 3
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": D,
    "intermediate_size": FF,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": K,
    "max_position_embeddings": POSITIONS,
    "rms_norm_eps": 1e-3,
    "rope_theta": 5000.0,
    "tie_word_embeddings": False,
}
ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
CLASSIFIER = LLAMA | ONE_LABEL | {"architectures": ["LlamaForSequenceClassification"]}
ARMO = LLAMA | {
    "architectures": ["LlamaForRewardModelWithGating"],
    "auto_map": {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"},
    "num_objectives": OBJECTIVES,
    "gating_temperature": 10,
    "gating_hidden_dim": UNITS,
    "gating_n_hidden": GATE_LAYERS,
    "id2label": {str(i): f"LABEL_{i}" for i in range(OBJECTIVES)},
}


def armo_shapes(d_model: int = D) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that ArmoRM adds to those of a Llama."""
    return {
        "regression_layer.weight": (OBJECTIVES, d_model),
        "reward_transform_matrix": (OBJECTIVES, OBJECTIVES),
        "gating.logit_scale": (1,),
        "gating.layers.0.weight": (UNITS, d_model),
        "gating.layers.0.bias": (UNITS,),
        "gating.layers.1.weight": (UNITS, UNITS),
        "gating.layers.1.bias": (UNITS,),
        "gating.layers.2.weight": (UNITS, UNITS),
        "gating.layers.2.bias": (UNITS,),
        "gating.layers.3.weight": (OBJECTIVES, UNITS),
        "gating.layers.3.bias": (OBJECTIVES,),
    }


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors, each large enough to change the scores."""
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        values = rng.normal(size=shape)
        if name.startswith("gating") and len(shape) == 2:
            values *= 3 * shape[1] ** -0.5  # so that a softmax at temperature 10 is far from even
        elif name == "reward_transform_matrix":
            values = np.eye(len(values)) - 0.3 * values * (np.arange(len(values)) == 4)[:, None]
        elif len(shape) == 2 and "embed" not in name:
            values *= shape[1] ** -0.5
        elif "norm" in name:
            values = 1 + 0.3 * values
        elif name == "gating.logit_scale":
            values = np.asarray([1.7])
        tensors[name] = values.astype(np.float32)
    return tensors


def write(folder: Path, config: dict[str, Any], layout: str = "llama-3", **tokenizer: Any) -> dict[str, np.ndarray]:
    """Writes config, weights and tokenizer of a reward model; returns its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    settings, _ = read_reward_config(folder)
    shapes = {stored.name: stored.shape for stored in stored_tensors(settings)}
    armo = config["architectures"] == ARMO["architectures"]
    shapes |= armo_shapes() if armo else {"score.weight": (1, settings.d_model)}
    tensors = drawn(shapes)
    save_file(tensors, folder / "model.safetensors")
    chats.tokenizer(layout, **tokenizer).save_pretrained(folder)
    return tensors


def without_tensor(name: str) -> Callable[[Path], None]:
    """Removes a tensor from a folder."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors")

    return change


def with_tensor(name: str, shape: tuple[int, ...]) -> Callable[[Path], None]:
    """Adds or replaces a tensor of zeros."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file(tensors | {name: np.zeros(shape, np.float32)}, folder / "model.safetensors")

    return change


def with_config(**changes: Any) -> Callable[[Path], None]:
    """Sets keys of config.json, and removes those that are "absent"."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))

    return change


def with_tokenizer(layout: str, **changes: Any) -> Callable[[Path], None]:
    """Replaces the tokenizer."""

    def change(folder: Path) -> None:
        tokenizer = chats.tokenizer(layout, **changes)
        tokenizer.add_tokens(["\n\n\n\n"])  # real ones have it too
        tokenizer.save_pretrained(folder)
        if "chat_template" in changes and not changes["chat_template"]:
            (folder / "chat_template.jinja").unlink(missing_ok=True)

    return change


def llama_hidden(tensors: dict[str, np.ndarray], tokens_L: np.ndarray) -> np.ndarray:
    """Hidden states [L, D] of a Llama of LLAMA's sizes after the last norm, by hand in float64."""
    weights = {name: values.astype(np.float64) for name, values in tensors.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + LLAMA["rms_norm_eps"]) * weights[f"{name}.weight"]

    def rotate(x_LxHxK: np.ndarray) -> np.ndarray:
        angles = np.arange(len(x_LxHxK))[:, None] / LLAMA["rope_theta"] ** (np.arange(0, K, 2) / K)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        a, b = np.split(x_LxHxK, 2, -1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = weights["model.embed_tokens.weight"][tokens_L]
    length = len(tokens_L)
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        read = norm(x, f"{at}.input_layernorm")
        q, k, v = (
            (read @ weights[f"{at}.self_attn.{name}_proj.weight"].T).reshape(length, -1, K) for name in ("q", "k", "v")
        )
        q, k, v = rotate(q), *(np.repeat(part, HEADS // KV_HEADS, 1) for part in (rotate(k), v))
        logits = np.einsum("qhk,shk->hqs", q, k) / np.sqrt(K)
        logits = np.where(np.tri(length, dtype=bool), logits, -np.inf)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + np.einsum("hqs,shk->qhk", shares, v).reshape(length, -1) @ weights[f"{at}.self_attn.o_proj.weight"].T
        read = norm(x, f"{at}.post_attention_layernorm")
        gate, up = (read @ weights[f"{at}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weights[f"{at}.mlp.down_proj.weight"].T
    return norm(x, "model.norm")


def armo_score(tensors: dict[str, np.ndarray], last_D: np.ndarray, gate_D: np.ndarray) -> float:
    """ArmoRM's score by hand, in float64."""
    x = gate_D
    for i in range(GATE_LAYERS + 1):
        x = tensors[f"gating.layers.{i}.weight"].astype(np.float64) @ x + tensors[f"gating.layers.{i}.bias"]
        x = np.maximum(x, 0) if i < GATE_LAYERS else x
    gate = np.exp(x / 10) / np.exp(x / 10).sum() * tensors["gating.logit_scale"]
    rewards = tensors["regression_layer.weight"].astype(np.float64) @ last_D
    return float((gate * (rewards @ tensors["reward_transform_matrix"])).sum())
