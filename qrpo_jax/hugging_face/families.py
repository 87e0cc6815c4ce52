"""The supported model families, by the architecture that a Hugging Face `config.json` names."""

from typing import Any

from qrpo_jax.hugging_face.family import Family, Option
from qrpo_jax.hugging_face.stored_names import (
    COMMON,
    FUSED,
    FUSED_GATE,
    MLP,
    POST,
    PRE,
    SANDWICH,
    SHARED_MLP,
    XIELU_WEIGHTS,
    norms,
)
from qrpo_jax.model.layers import XIELU

PATTERN, PATTERN_BESIDE = "sliding_window_pattern", "_sliding_window_pattern"


_PLAIN: dict[str, tuple[Any, ...]] = {
    "attention_dropout": (0.0, None),
    "quantization_config": (None,),
    "per_layer_config": (None,),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({}, None),
}
_SILU = _PLAIN | {"hidden_act": ("silu",), "pretraining_tp": (1, None)}
_NO_WINDOW: dict[str, tuple[Any, ...]] = {
    "sliding_window": (None,),
    "use_sliding_window": (False,),
    "layer_types": (None,),
}
_BIAS = {"attention_bias": Option(("qkv_bias", "output_bias"), bool, False)}
_MLP_BIAS = {"mlp_bias": Option(("mlp_bias",), bool, False)}

# Of layers that a dense Granite 4 does not have.
_EXPERTS = frozenset({"num_experts_per_tok", "output_router_logits", "router_aux_loss_coef", "intermediate_size"})
_MAMBA = frozenset(
    {f"mamba_{name}" for name in ("chunk_size", "conv_bias", "d_conv", "d_state", "expand", "n_groups", "proj_bias")}
    | {"time_step_limit", "init_method"}
)
# Published with dropout in attention, which is not computed here: log-probs of policy and reference have no noise.
_UNUSED_DROPOUT: dict[str, tuple[Any, ...]] = {"attention_dropout": (0.0, None, 0.1)}
_MULTIPLIERS = {
    "embedding_multiplier": Option(("embedding_multiplier",), float, 1.0),
    "attention_multiplier": Option(("attention_multiplier",), float, 1.0),
    "residual_multiplier": Option(("residual_multiplier",), float, 1.0),
    "logits_scaling": Option(("logit_scale",), float, 1.0, reciprocal=True),
}

_GEMMA_FIXED = dict(activation="gelu_tanh", post_norm=True, norm_offset=1.0, norm_rounds=False, scale_embeddings=True)
_GEMMA_SUPPORTED = _PLAIN | {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "hidden_act": ("gelu_pytorch_tanh",),
    "use_bidirectional_attention": (False, None),
}
_GEMMA_OPTIONS = _BIAS | {"query_pre_attn_scalar": Option(("query_scalar",), int, 256)}
_GEMMA: dict[str, Any] = dict(
    weights=SANDWICH,
    kv_heads=4,
    head_dim=256,
    tied=True,
    windows="alternate",
    window=4096,
    even_split=True,
    metadata=frozenset({"cache_implementation"}),
    pad_token=0,
)

_OLMO: dict[str, Any] = dict(
    weights=COMMON | POST,
    options=_BIAS,
    fixed=dict(qk_norm="projection", pre_norm=False, post_norm=True, norm_rounds=False),
    pad_token=1,
)

_GLM: dict[str, Any] = dict(
    options={"attention_bias": Option(("qkv_bias",), bool, True)},
    supported=_SILU | _NO_WINDOW | {"mlp_bias": (False,)},
    fixed=dict(rope_interleaved=True),
    kv_heads=2,
    head_dim=128,
    partial_rotary=True,
    rotary_share=0.5,
    pad_token=151_329,
)

FAMILIES = {
    "LlamaForCausalLM": Family(  # Llama, SmolLM, SmolLM 2
        model_type="llama",
        weights=PRE,
        options=_BIAS | _MLP_BIAS,
        supported=_SILU | _NO_WINDOW | {"rope_interleaved": (False,), "is_llama_config": (True,)},
        even_split=True,
        metadata=frozenset({"transformers.js_config"}),
    ),
    "MistralForCausalLM": Family(
        model_type="mistral",
        weights=PRE,
        supported=_SILU | {"layer_types": (None,), "attention_bias": (False,), "mlp_bias": (False,)},
        kv_heads=8,
        windows="all",
        window=4096,
    ),
    "MinistralForCausalLM": Family(
        model_type="ministral",
        weights=PRE,
        supported=_SILU | {"attention_bias": (False,), "mlp_bias": (False,)},
        kv_heads=8,
        windows="listed",
        window=4096,
    ),
    "Ministral3ForCausalLM": Family(
        model_type="ministral3",
        weights=PRE,
        supported=_SILU | {"layer_types": (None,), "attention_bias": (False,), "mlp_bias": (False,)},
        kv_heads=8,
        head_dim=128,
        windows="all",
        ropes=("yarn",),
        rope_default={
            "rope_type": "yarn",
            "rope_theta": 1_000_000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 16_384,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
        query_growth=True,
        pad_token=11,
    ),
    "Qwen2ForCausalLM": Family(
        model_type="qwen2",
        weights=PRE,
        supported=_SILU | {"use_mrope": (False,)},
        fixed=dict(qkv_bias=True),
        kv_heads=32,
        windows="late",
        window=4096,
    ),
    "Qwen3ForCausalLM": Family(
        model_type="qwen3",
        weights=PRE,
        options=_BIAS,
        supported=_SILU,
        fixed=dict(qk_norm="head"),
        kv_heads=32,
        head_dim=128,
        windows="late",
        window=4096,
    ),
    "Gemma2ForCausalLM": Family(
        model_type="gemma2",
        options=_GEMMA_OPTIONS
        | {
            "attn_logit_softcapping": Option(("attention_cap",), float, 50.0, nullable=True),
            "final_logit_softcapping": Option(("logit_cap",), float, 30.0, nullable=True),
        },
        supported=_GEMMA_SUPPORTED,
        fixed=_GEMMA_FIXED,
        pattern=2,
        **_GEMMA,
    ),
    "Gemma3ForCausalLM": Family(
        model_type="gemma3_text",
        options=_GEMMA_OPTIONS | {"final_logit_softcapping": Option(("logit_cap",), float, None, nullable=True)},
        # transformers reads this cap of Gemma 3 and then does not apply it, so the meaning of a value is unclear.
        supported=_GEMMA_SUPPORTED | {"attn_logit_softcapping": (None,)},
        fixed=_GEMMA_FIXED | {"qk_norm": "head"},
        pattern=6,
        pattern_keys=(PATTERN, PATTERN_BESIDE),
        rope_theta=1_000_000.0,
        local_theta=10_000.0,
        local_key="rope_local_base_freq",
        **_GEMMA,
    ),
    "Olmo2ForCausalLM": Family(model_type="olmo2", supported=_SILU | _NO_WINDOW | {"clip_qkv": (None,)}, **_OLMO),
    "Olmo3ForCausalLM": Family(
        model_type="olmo3",
        windows="alternate",
        window=4096,
        pattern=4,
        rope_theta=500_000.0,
        local_theta=500_000.0,
        supported=_SILU | {"clip_qkv": (None,)},
        **_OLMO,
    ),
    "GraniteForCausalLM": Family(  # Granite 3
        model_type="granite",
        weights=PRE,
        options=_BIAS | _MLP_BIAS | _MULTIPLIERS,
        supported=_SILU | _NO_WINDOW | _UNUSED_DROPOUT,
    ),
    "SeedOssForCausalLM": Family(
        model_type="seed_oss",
        weights=PRE,
        options=_MLP_BIAS
        | {
            "attention_bias": Option(("qkv_bias",), bool, True),
            "attention_out_bias": Option(("output_bias",), bool, False),
        },
        supported=_SILU | _NO_WINDOW | {"attention_dropout": (0.1, 0.0), "residual_dropout": (0.1, 0.0)},
        kv_heads=8,
        head_dim=128,
        pad_token=1,
    ),
    "GlmForCausalLM": Family(model_type="glm", weights=PRE | FUSED_GATE, **_GLM),  # GLM-4 before 0414
    "Glm4ForCausalLM": Family(
        model_type="glm4",
        weights=COMMON
        | FUSED_GATE
        | norms(
            attention_norm="input_layernorm",
            attention_post_norm="post_self_attn_layernorm",
            mlp_norm="post_attention_layernorm",
            mlp_post_norm="post_mlp_layernorm",
        ),
        **_GLM | {"fixed": _GLM["fixed"] | {"post_norm": True}},
    ),
    "Exaone4ForCausalLM": Family(
        model_type="exaone4",
        weights=COMMON | POST,
        supported=_SILU | {"attention_bias": (False,), "mlp_bias": (False,)},
        fixed=dict(qk_norm="head", pre_norm=False, post_norm=True),
        kv_heads=32,
        windows="alternate",
        window=4096,
        pattern=4,
        pattern_keys=(PATTERN,),
        roped="windowed",
    ),
    "Cohere2ForCausalLM": Family(
        model_type="cohere2",
        weights=COMMON | norms(attention_norm="input_layernorm"),
        options=_BIAS | {"logit_scale": Option(("logit_scale",), float, 0.0625)},
        supported=_SILU
        | {
            "mlp_bias": (False,),
            "layer_switch": (4,),
            "order_of_interleaved_layers": ("local_attn_first",),
            "position_embedding_type": ("rope_gptj",),
            "rotary_pct": (1.0,),
            "use_embedding_sharing": (True,),
            "use_gated_activation": (True,),
            "use_parallel_block": (True,),
            "use_parallel_embedding": (False,),
            "use_qk_norm": (False,),
        },
        fixed=dict(parallel=True, norm_centres=True, norm_rounds=False, rope_interleaved=True),
        epsilon="layer_norm_eps",
        derived_head_dim=True,
        tied=True,
        windows="alternate",
        window=4096,
        pattern=4,
        pattern_keys=(PATTERN,),
        roped="sliding",
        metadata=frozenset({"cache_implementation"}),
        pad_token=0,
    ),
    "GraniteMoeHybridForCausalLM": Family(  # Granite 4 without experts and Mamba layers
        model_type="granitemoehybrid",
        weights=PRE | SHARED_MLP,
        options=_BIAS | _MULTIPLIERS,
        supported=_SILU
        | _UNUSED_DROPOUT
        | {
            "num_local_experts": (0,),
            "position_embedding_type": ("rope",),
            "normalization_function": ("rmsnorm",),
        },
        sizes={"d_ff": "shared_intermediate_size"},
        needed=frozenset({"num_local_experts", "position_embedding_type"}),
        windows="attention",
        metadata=_EXPERTS | _MAMBA,
        written={"mamba_n_heads": 1, "mamba_d_head": "auto"},
    ),
    "Phi3ForCausalLM": Family(
        model_type="phi3",
        weights=PRE | FUSED,
        supported=_SILU
        | {
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "lm_head_bias": (False,),
            "resid_pdrop": (0.0,),
            "embd_pdrop": (0.0,),
            "full_attn_mod": (1,),
            "interpolate_factor": (1,),
            "layer_types": (None,),
        },
        ropes=("default", "longrope"),
        windows="all",
        partial_rotary=True,
        # The code that it names is never run.
        metadata=frozenset({"auto_map"}),
        pad_token=32_000,
    ),
    "SmolLM3ForCausalLM": Family(
        model_type="smollm3",
        weights=PRE,
        options=_BIAS | _MLP_BIAS,
        supported=_PLAIN | {"hidden_act": ("silu",)},
        kv_heads=4,
        tied=True,
        rope_theta=2_000_000.0,
        windows="unroped",
        roped="listed",
        metadata=frozenset({"pretraining_tp", "max_window_layers"}),
        pad_token=128_004,
    ),
    "ApertusForCausalLM": Family(
        model_type="apertus",
        weights=COMMON | XIELU_WEIGHTS | norms(attention_norm="attention_layernorm", mlp_norm="feedforward_layernorm"),
        options=_BIAS,
        supported=_PLAIN
        | _NO_WINDOW
        | {
            "hidden_act": ("xielu",),
            "hidden_dropout": (0.0, None),
            "mlp_bias": (False,),
            "post_norm": (False,),
            "qk_norm": (True,),
        },
        fixed=dict(activation="xielu", qk_norm="head"),
        rope_theta=12_000_000.0,
        rope_default={
            "rope_type": "llama3",
            "rope_theta": 12_000_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        pad_token=3,
        constants={f"{MLP}.act_fn.beta": XIELU.BETA, f"{MLP}.act_fn.eps": XIELU.EPSILON},
    ),
}
