"""One small model of every family, with settings that change its output; weights are drawn by tensor name."""

import zlib
from typing import Any, NamedTuple

import numpy as np


class Sizes(NamedTuple):
    vocab: int
    d_model: int
    d_ff: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


GOLDEN = Sizes(vocab=37, d_model=42, d_ff=53, layers=3, heads=6, kv_heads=2, head_dim=10)
LENGTH, WINDOW, MAX_POSITIONS = 29, 5, 61

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 13,
}


LINEAR = {"rope_type": "linear", "rope_theta": 700.0, "factor": 3.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 30.0,
    "factor": 4.0,
    "beta_fast": 2.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 31,
}


def default_rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def alternating(sizes: Sizes, pattern: str) -> list[str]:
    """Types of layers, s sliding and f full, in a pattern that repeats."""
    kinds = {"s": "sliding_attention", "f": "full_attention"}
    return [kinds[pattern[i % len(pattern)]] for i in range(sizes.layers)]


def gemma(sizes: Sizes, **more: Any) -> dict[str, Any]:
    return {"query_pre_attn_scalar": sizes.head_dim + 7, "sliding_window": WINDOW, "rms_norm_eps": 1e-3, **more}


def granite(**more: Any) -> dict[str, Any]:
    multipliers = {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.6}
    return {**multipliers, "logits_scaling": 1.3, **more}


def glm(sizes: Sizes, **more: Any) -> dict[str, Any]:
    """Half of eight dimensions are rotated."""
    return {"head_dim": 8, "rms_norm_eps": 1e-5, **more}


def cohere2(sizes: Sizes, **more: Any) -> dict[str, Any]:
    """Heads divide the hidden states, and have an even number of dimensions."""
    return {"hidden_size": 6 * sizes.heads, "head_dim": 6, "sliding_window": WINDOW, **more}


def granite4(sizes: Sizes, **more: Any) -> dict[str, Any]:
    dense = {"num_local_experts": 0, "position_embedding_type": "rope", "mamba_n_heads": 1}
    dense |= {
        "layer_types": alternating(sizes, "f"),
        "shared_intermediate_size": sizes.d_ff,
        "intermediate_size": 11_008,
    }
    return granite(**dense, **more)


def phi3_long(sizes: Sizes) -> dict[str, Any]:
    """Three quarters of eight dimensions are rotated, each frequency with its own factor."""
    rope = {"rope_type": "longrope", "rope_theta": 900.0, "partial_rotary_factor": 0.75}
    rope |= {"short_factor": [1.0, 1.3, 1.7], "long_factor": [2.0, 3.0, 5.0]}
    return {
        "hidden_size": 8 * sizes.heads,
        "head_dim": 8,
        "max_position_embeddings": 127,
        "original_max_position_embeddings": 31,
        "rope_parameters": rope,
        "tie_word_embeddings": True,
    }


# Class in transformers, and its settings beside the sizes.
CASES: dict[str, tuple[str, Any]] = {
    "llama2": ("LlamaForCausalLM", lambda s: {"rms_norm_eps": 1e-3}),
    "llama3": ("LlamaForCausalLM", lambda s: {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama_biases": ("LlamaForCausalLM", lambda s: {"attention_bias": True, "mlp_bias": True}),
    "llama_linear": ("LlamaForCausalLM", lambda s: {"rope_parameters": LINEAR}),
    "llama_yarn": (
        "LlamaForCausalLM",
        lambda s: {"rope_parameters": YARN | {"truncate": False, "mscale": 0.7, "mscale_all_dim": 1.9}},
    ),
    "mistral": ("MistralForCausalLM", lambda s: {"sliding_window": WINDOW, "rope_parameters": default_rope(300.0)}),
    "mistral_whole": ("MistralForCausalLM", lambda s: {"sliding_window": None}),
    "ministral": (
        "MinistralForCausalLM",
        lambda s: {
            "sliding_window": WINDOW,
            "layer_types": alternating(s, "sfs"),
            "rope_parameters": default_rope(300.0),
        },
    ),
    "ministral_all": ("MinistralForCausalLM", lambda s: {"sliding_window": WINDOW, "rms_norm_eps": 1e-3}),
    "ministral3": (
        "Ministral3ForCausalLM",
        lambda s: {
            "tie_word_embeddings": True,
            "rope_parameters": YARN
            | {
                "original_max_position_embeddings": 11,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
                "llama_4_scaling_beta": 0.4,
            },
        },
    ),
    "qwen2": ("Qwen2ForCausalLM", lambda s: {"tie_word_embeddings": True, "rope_parameters": default_rope(1e6)}),
    "qwen2_windows": (
        "Qwen2ForCausalLM",
        lambda s: {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", lambda s: {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "qwen3_yarn": ("Qwen3ForCausalLM", lambda s: {"rope_parameters": YARN | {"attention_factor": 1.4}}),
    "qwen3_biases": (
        "Qwen3ForCausalLM",
        lambda s: {
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention" if i % 3 == 1 else "full_attention" for i in range(s.layers)],
        },
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        lambda s: gemma(s, attn_logit_softcapping=1.5, final_logit_softcapping=3.0),
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        lambda s: gemma(
            s,
            sliding_window_pattern=2,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 700.0},
                "sliding_attention": default_rope(90.0),
            },
        ),
    ),
    "gemma3_capped": ("Gemma3ForCausalLM", lambda s: gemma(s, final_logit_softcapping=3.0, tie_word_embeddings=False)),
    "olmo2": ("Olmo2ForCausalLM", lambda s: {"rms_norm_eps": 1e-3, "rope_parameters": default_rope(500.0)}),
    # Bases of 500000 are what readers before transformers 5 can say.
    "olmo3": (
        "Olmo3ForCausalLM",
        lambda s: {
            "sliding_window": WINDOW,
            "layer_types": alternating(s, "sf"),
            "rms_norm_eps": 1e-3,
            "rope_parameters": {
                "full_attention": YARN | {"rope_theta": 500000.0, "attention_factor": 1.4},
                "sliding_attention": default_rope(500000.0),
            },
        },
    ),
    "olmo3_bases": (
        "Olmo3ForCausalLM",
        lambda s: {
            "sliding_window": WINDOW,
            "rope_parameters": {"full_attention": YARN, "sliding_attention": default_rope(90.0)},
        },
    ),
    "granite": ("GraniteForCausalLM", lambda s: granite(rms_norm_eps=1e-3, attention_bias=True, mlp_bias=True)),
    "granite_tied": (
        "GraniteForCausalLM",
        lambda s: granite(logits_scaling=0.7, tie_word_embeddings=True, rope_parameters=default_rope(300.0)),
    ),
    "seed_oss": ("SeedOssForCausalLM", lambda s: {"rms_norm_eps": 1e-3, "rope_parameters": default_rope(300.0)}),
    "seed_oss_biases": (
        "SeedOssForCausalLM",
        lambda s: {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "glm": ("GlmForCausalLM", lambda s: glm(s, rms_norm_eps=1e-3)),
    "glm4": ("Glm4ForCausalLM", lambda s: glm(s, rope_parameters=default_rope(300.0) | {"partial_rotary_factor": 0.5})),
    "glm4_whole": (
        "Glm4ForCausalLM",
        lambda s: glm(s, attention_bias=False, rope_parameters=YARN | {"partial_rotary_factor": 1.0}),
    ),
    "exaone4": (
        "Exaone4ForCausalLM",
        lambda s: {"sliding_window": WINDOW, "sliding_window_pattern": 2, "rope_parameters": LLAMA3},
    ),
    "exaone4_whole": (
        "Exaone4ForCausalLM",
        lambda s: {
            "sliding_window": None,
            "layer_types": alternating(s, "f"),
            "rms_norm_eps": 1e-3,
            "tie_word_embeddings": True,
        },
    ),
    "cohere2": (
        "Cohere2ForCausalLM",
        lambda s: cohere2(s, sliding_window_pattern=2, layer_norm_eps=1e-3, logit_scale=0.7),
    ),
    "cohere2_biases": (
        "Cohere2ForCausalLM",
        lambda s: cohere2(s, attention_bias=True, logit_scale=1.3, rope_parameters=YARN, tie_word_embeddings=False),
    ),
    "granite4": (
        "GraniteMoeHybridForCausalLM",
        lambda s: granite4(s, rms_norm_eps=1e-3, tie_word_embeddings=True, rope_parameters=default_rope(300.0)),
    ),
    "granite4_biases": ("GraniteMoeHybridForCausalLM", lambda s: granite4(s, attention_bias=True)),
    "phi3": ("Phi3ForCausalLM", lambda s: {"sliding_window": WINDOW, "rope_parameters": default_rope(800.0)}),
    "phi3_long": ("Phi3ForCausalLM", phi3_long),
    "smollm3": ("SmolLM3ForCausalLM", lambda s: {"no_rope_layer_interval": 2}),
    "smollm3_windows": (
        "SmolLM3ForCausalLM",
        lambda s: {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": WINDOW},
    ),
    "apertus": ("ApertusForCausalLM", lambda s: {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-3}),
}

# Cases with goldens: together they cover every family and setting. The others are compared live.
WITH_GOLDEN = (
    *("llama3", "llama_biases", "mistral", "qwen2_windows", "qwen3", "gemma2", "gemma3", "olmo2", "phi3"),
    *("phi3_long", "smollm3_windows", "apertus", "olmo3", "granite", "glm4", "cohere2", "ministral3"),
)


def config(case: str, sizes: Sizes) -> dict[str, Any]:
    """Arguments of the case's configuration class in transformers."""
    return {
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.d_model,
        "intermediate_size": sizes.d_ff,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "max_position_embeddings": MAX_POSITIONS,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **CASES[case][1](sizes),
    }


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def weight(case: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A stored tensor, float32: norms and biases large enough to change the output, matrices that keep the variance."""
    if name.endswith(("act_fn.beta", "act_fn.eps")):
        return np.asarray({"a": 0.5, "s": -1e-6}[name[-1]], np.float32)
    drawn = generator(f"{case}/{name}").normal(size=shape)
    if len(shape) == 2:
        spread = 0.25 if name.startswith(("model.embed", "lm_head")) else shape[1] ** -0.5
        return (spread * drawn).astype(np.float32)
    centre = 1.0 if "norm" in name and not case.startswith("gemma") else 0.0
    return (centre + 0.3 * drawn).astype(np.float32)


def tokens(case: str, vocab: int, rows: int = 1, length: int = LENGTH) -> np.ndarray:
    return generator(f"{case} tokens").integers(3, vocab, (rows, length)).astype(np.int32)


def loss_weights(shape: tuple[int, int]) -> np.ndarray:
    """Weights of the tokens' log-probabilities in a loss: zero in the first half, like a prompt."""
    counted = np.arange(shape[1]) >= shape[1] // 2
    return (generator("loss").normal(size=shape) / shape[1] * counted).astype(np.float32)


def direction(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A direction to project the gradient of a stored tensor on, which leaves one number to compare."""
    drawn = generator(f"direction {name}").normal(size=shape)
    return drawn / max(np.linalg.norm(drawn), 1e-9)
