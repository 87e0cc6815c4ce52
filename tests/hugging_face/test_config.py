"""config.json of every family: published layouts, absent keys, and refusals that name the key."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from qrpo_jax.hugging_face.config import hugging_face_config, read_settings
from qrpo_jax.hugging_face.families import FAMILIES
from qrpo_jax.hugging_face.text_part import WHOLES
from qrpo_jax.model.rope import LinearScaling, LongRope, QueryGrowth, RopeScaling, Yarn
from qrpo_jax.model.settings import DecoderSettings
from tests.helpers import family_cases as cases
from tests.helpers import tiny

SIZES = {
    "vocab_size": 37,
    "hidden_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "intermediate_size": 53,
    "max_position_embeddings": 8209,
    "rms_norm_eps": 1e-4,
}
KINDS = {family.model_type: architecture for architecture, family in FAMILIES.items()}


def config(kind: str, **changes: Any) -> dict[str, Any]:
    """The smallest valid content for this family. Some families' default number of kv_heads needs 32 heads."""
    heads = {"num_attention_heads": 32, "hidden_size": 64} if FAMILIES[KINDS[kind]].kv_heads else {}
    sizes = dict(SIZES)
    sizes[FAMILIES[KINDS[kind]].epsilon] = sizes.pop("rms_norm_eps")
    if kind == "granitemoehybrid":
        heads = {"num_local_experts": 0, "position_embedding_type": "rope", "mamba_n_heads": 1}
        heads |= {"layer_types": ["full_attention"] * 6, "shared_intermediate_size": 1024}
    return {"architectures": [KINDS[kind]], "model_type": kind, **sizes, **heads, **changes}


def read(folder: Path, content: dict[str, Any]) -> DecoderSettings:
    (folder / "config.json").write_text(json.dumps(content))
    return read_settings(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_absent_keys_mean_what_they_mean_to_transformers(kind: str, tmp_path: Path) -> None:
    """Its configuration class fills in what the file does not say; both say the same settings."""
    transformers = pytest.importorskip("transformers")
    least = config(kind)
    filled = transformers.AutoConfig.for_model(**least).to_dict()
    assert {"num_key_value_heads", "tie_word_embeddings"} <= filled.keys()
    assert read(tmp_path, least) == read(tmp_path, filled)


@pytest.mark.parametrize("case", cases.CASES)
def test_settings_are_written_as_they_are_read(case: str, tmp_path: Path) -> None:
    """In both layouts: all that is written, and the part that readers before transformers 5 know."""
    transformers = pytest.importorskip("transformers")
    architecture = cases.CASES[case][0]
    filled = {"model_type": FAMILIES[architecture].model_type, "architectures": [architecture]}
    original = transformers.AutoConfig.for_model(**filled, **cases.config(case, cases.GOLDEN)).to_dict()
    settings = read(tmp_path, original)
    written = hugging_face_config(settings, "bfloat16")
    assert read(tmp_path, written) == settings
    if case != "olmo3_bases":  # readers before transformers 5 know one base
        assert read(tmp_path, {key: value for key, value in written.items() if key != "rope_parameters"}) == settings
    # And transformers reads the original back, save for keys that save() adds and keys that lost their meaning.
    again = transformers.AutoConfig.for_model(**written).to_dict()
    again["rope_parameters"].pop("type", None)
    beside = {"dtype", "bos_token_id", "eos_token_id", "pad_token_id"}
    beside |= {"max_window_layers", "no_rope_layer_interval"}  # layer_types and no_rope_layers override them
    differing = {key: (original[key], again[key]) for key in original if key in again and again[key] != original[key]}
    assert differing.keys() <= beside, differing


# The config.json of published folders, sizes aside, in the layouts of their day.
PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Llama 3.2": (
        "llama",
        {
            "attention_bias": False,
            "mlp_bias": False,
            "pretraining_tp": 1,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "tie_word_embeddings": True,
        },
        {"rope_theta": 5e5, "rope_scaling": RopeScaling(32.0, 1.0, 4.0, 8192), "tie_embeddings": True},
    ),
    "SmolLM 2": (
        "llama",
        {"is_llama_config": True, "rope_interleaved": False, "rope_scaling": None, "transformers.js_config": {"a": 1}},
        {"rope_scaling": None, "tie_embeddings": False},
    ),
    "Mistral 7B v0.1": ("mistral", {"rope_theta": 10000.0, "sliding_window": 4096}, {"sliding_window": 4096}),
    "Mistral 7B v0.3": ("mistral", {"rope_theta": 1e6, "sliding_window": None}, {"sliding_window": None}),
    "Ministral": (
        "ministral",
        {"sliding_window": 32768, "layer_types": ["full_attention", "sliding_attention"] * 3, "rope_theta": 1e8},
        {"sliding_window": 32768, "sliding_layers": (False, True) * 3},
    ),
    "Ministral 3": (
        "ministral3",
        {
            "head_dim": 16,
            "rope_parameters": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 16.0,
                "llama_4_scaling_beta": 0.1,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 16384,
                "rope_theta": 1000000.0,
                "rope_type": "yarn",
                "type": "yarn",
            },
            "sliding_window": None,
        },
        {
            "query_growth": QueryGrowth(0.1, 16384),
            "rope_scaling": Yarn(16.0, 16384, mscale=1.0, mscale_all_dim=1.0),
            "sliding_window": None,
        },
    ),
    "Qwen 2.5": (
        "qwen2",
        {"use_mrope": False, "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21},
        {"sliding_window": None, "qkv_bias": True, "output_bias": False},
    ),
    "Qwen 3": (
        "qwen3",
        {"head_dim": 16, "sliding_window": None, "use_sliding_window": False, "rope_scaling": None},
        {"head_dim": 16, "qk_norm": "head", "qkv_bias": False},
    ),
    "Gemma 2": (
        "gemma2",
        {
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "cache_implementation": "hybrid",
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 144,
            "sliding_window": 4096,
            "sliding_window_size": 4096,
        },
        {"query_scalar": 144, "attention_cap": 50.0, "logit_cap": 30.0, "sliding_layers": (True, False) * 3},
    ),
    "Gemma 3": (
        "gemma3_text",
        {
            "cache_implementation": "hybrid",
            "rope_local_base_freq": 10000,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "rope_theta": 1000000,
            "sliding_window": 512,
            "sliding_window_pattern": 6,
        },
        {
            "rope_theta": 1e6,
            "local_rope_theta": 1e4,
            "rope_scaling": LinearScaling(8.0),
            "sliding_layers": (True,) * 5 + (False,),
            "tie_embeddings": True,
        },
    ),
    "OLMo 2": ("olmo2", {"rope_theta": 500000, "rope_scaling": None}, {"qk_norm": "projection", "pre_norm": False}),
    "OLMo 3": (
        "olmo3",
        {
            "attention_bias": False,
            "layer_types": [*["sliding_attention"] * 3, "full_attention", *["sliding_attention"] * 2],
            "rope_scaling": {
                "attention_factor": 1.2079441541679836,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "yarn",
            },
            "rope_theta": 500000,
            "sliding_window": 4096,
        },
        {
            "rope_theta": 5e5,
            "local_rope_theta": 5e5,
            "rope_scaling": Yarn(8.0, 8192, attention_factor=1.2079441541679836),
            "sliding_layers": (True, True, True, False, True, True),
            "pre_norm": False,
        },
    ),
    "Granite 3.0": (
        "granite",
        {
            "attention_bias": False,
            "attention_dropout": 0.1,
            "attention_multiplier": 0.015625,
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "mlp_bias": False,
            "residual_multiplier": 0.22,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        },
        {
            "attention_multiplier": 0.015625,
            "embedding_multiplier": 12.0,
            "logit_scale": 0.125,
            "residual_multiplier": 0.22,
            "tie_embeddings": True,
        },
    ),
    "Seed-OSS": (
        "seed_oss",
        {
            "attention_bias": True,
            "attention_dropout": 0.1,
            "attention_out_bias": False,
            "head_dim": 16,
            "mlp_bias": False,
            "pretraining_tp": 1,
            "residual_dropout": 0.1,
            "rope_scaling": {"rope_type": "default"},
            "rope_theta": 10000000.0,
        },
        {"qkv_bias": True, "output_bias": False, "rope_theta": 1e7, "head_dim": 16},
    ),
    "GLM-4 0414": (
        "glm4",
        {
            "attention_bias": False,
            "head_dim": 16,
            "num_key_value_heads": 2,
            "partial_rotary_factor": 0.5,
            "rope_theta": 10000.0,
        },
        {
            "head_dim": 16,
            "post_norm": True,
            "pre_norm": True,
            "qkv_bias": False,
            "rope_interleaved": True,
            "rotary_share": 0.5,
        },
    ),
    "EXAONE 4 32B": (
        "exaone4",
        {
            "layer_types": [*["sliding_attention"] * 3, "full_attention", *["sliding_attention"] * 2],
            "rope_scaling": {
                "factor": 16.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 1000000,
            "sliding_window": 4096,
            "sliding_window_pattern": "LLLG",
        },
        {
            "qk_norm": "head",
            "rope_layers": (True, True, True, False, True, True),
            "sliding_layers": (True, True, True, False, True, True),
        },
    ),
    "EXAONE 4 1.2B": (
        "exaone4",
        {"layer_types": ["full_attention"] * 6, "sliding_window": None, "sliding_window_pattern": None},
        {"rope_layers": None, "sliding_layers": None, "sliding_window": None, "pre_norm": False, "post_norm": True},
    ),
    "Command R7B": (
        "cohere2",
        {
            "cache_implementation": "hybrid",
            "head_dim": 8,
            "layer_norm_eps": 1e-05,
            "layer_switch": 4,
            "logit_scale": 0.25,
            "order_of_interleaved_layers": "local_attn_first",
            "position_embedding_type": "rope_gptj",
            "rope_theta": 50000,
            "rotary_pct": 1.0,
            "sliding_window": 4096,
            "sliding_window_pattern": 4,
            "use_embedding_sharing": True,
            "use_gated_activation": True,
            "use_parallel_block": True,
            "use_parallel_embedding": False,
            "use_qk_norm": False,
        },
        {
            "logit_scale": 0.25,
            "norm_centres": True,
            "parallel": True,
            "rope_layers": (True, True, True, False, True, True),
            "tie_embeddings": True,
        },
    ),
    "Granite 4.0 micro": (
        "granitemoehybrid",
        {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attention_multiplier": 0.015625,
            "embedding_multiplier": 12,
            "init_method": "mup",
            "layer_types": ["attention"] * 6,
            "logits_scaling": 10,
            "mamba_chunk_size": 256,
            "mamba_conv_bias": True,
            "mamba_d_conv": 4,
            "mamba_d_head": 64,
            "mamba_d_state": 256,
            "mamba_expand": 2,
            "mamba_n_groups": 1,
            "mamba_n_heads": 128,
            "mamba_proj_bias": False,
            "normalization_function": "rmsnorm",
            "num_experts_per_tok": 0,
            "num_local_experts": 0,
            "output_router_logits": False,
            "position_embedding_type": "rope",
            "residual_multiplier": 0.22,
            "rope_theta": 10000000,
            "router_aux_loss_coef": 0.01,
            "shared_intermediate_size": 59,
            "tie_word_embeddings": True,
        },
        {"d_ff": 59, "logit_scale": 0.1, "embedding_multiplier": 12.0, "sliding_window": None},
    ),
    "Phi-3 mini 4k": (
        "phi3",
        {"auto_map": {"AutoModelForCausalLM": "x"}, "original_max_position_embeddings": 4096, "sliding_window": 2047},
        {"sliding_window": 2047, "rope_scaling": None, "max_positions": 8209},
    ),
    "Phi-3 mini 128k": (
        "phi3",
        {
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "su", "short_factor": [1, 1, 1.5, 2], "long_factor": [1, 2, 3, 4]},
        },
        {
            "max_positions": 4096,
            "rope_scaling": LongRope((1.0, 1.0, 1.5, 2.0), (1.0, 2.0, 3.0, 4.0), 4096, 8209),
        },
    ),
    "SmolLM 3": (
        "smollm3",
        {
            "no_rope_layers": [1, 1, 1, 0, 1, 1],
            "no_rope_layer_interval": 4,
            "layer_types": ["full_attention"] * 6,
            "max_window_layers": 28,
            "pretraining_tp": 2,
            "rope_theta": 5e6,
        },
        {"rope_layers": (True, True, True, False, True, True), "sliding_window": None, "tie_embeddings": True},
    ),
    "Apertus": (
        "apertus",
        {
            "hidden_dropout": 0.0,
            "mlp_bias": False,
            "post_norm": False,
            "qk_norm": True,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
                "type": "llama3",
            },
            "rope_theta": 12000000,
        },
        {"activation": "xielu", "rope_theta": 1.2e7, "rope_scaling": RopeScaling(8.0, 1.0, 4.0, 8192)},
    ),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_layouts_are_read(model: str, tmp_path: Path) -> None:
    kind, published, expected = PUBLISHED[model]
    settings = read(tmp_path, config(kind, **published))
    assert settings.family == KINDS[kind]
    assert {name: getattr(settings, name) for name in expected} == expected
    assert read(tmp_path, hugging_face_config(settings, "float32")) == settings


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
WITHOUT_DROPOUT = [kind for kind in KINDS if not kind.startswith(("granite", "seed"))]
STRETCHED = [
    kind for kind in KINDS if kind not in ("phi3", "ministral3")
]  # families with all kinds of rotary embedding


@pytest.mark.parametrize("kind", STRETCHED)
@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"type": "linear", "factor": 2.5}, LinearScaling(2.5)),
        (YARN, Yarn(4.0, 32768)),
        ({"type": "yarn", "factor": 4}, Yarn(4.0, 8209)),
        (YARN | {"beta_fast": 16, "beta_slow": 1.0, "attention_factor": 1.0}, Yarn(4.0, 32768, 16.0, 1.0, True, 1.0)),
        (YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}, Yarn(4.0, 32768, mscale=1.0, mscale_all_dim=0.5)),
        (YARN | {"beta_fast": None}, Yarn(4.0, 32768)),
    ],
)
def test_linear_and_yarn_embeddings_are_read_and_written(
    kind: str, scaling: dict[str, Any], expected: Any, tmp_path: Path
) -> None:
    settings = read(tmp_path, config(kind, rope_scaling=scaling))
    assert settings.rope_scaling == expected
    assert read(tmp_path, hugging_face_config(settings, "float32")) == settings


def test_keys_of_unsloth_change_nothing(tmp_path: Path) -> None:
    marked = config("llama", unsloth_fixed=True, unsloth_version="2026.11.1")
    assert read(tmp_path, marked) == read(tmp_path, config("llama"))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        *[(kind, {"attention_dropout": 0.2}, "attention_dropout=0.2; supported: 0.") for kind in KINDS],
        *[(kind, {"attention_dropout": 0.1}, "attention_dropout=0.1; supported: 0.0") for kind in WITHOUT_DROPOUT],
        *[(kind, {"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}") for kind in KINDS],
        ("phi3", {"rope_scaling": YARN}, "rope_type='yarn'; supported: 'default'"),
        *[
            (kind, {"rope_scaling": YARN | {"finetuned": True}}, "sets finetuned for rope type yarn")
            for kind in STRETCHED
        ],
        ("llama", {"rope_scaling": YARN | {"truncate": 1}}, "truncate=1; supported: True, False"),
        ("llama", {"rope_scaling": YARN | {"beta_fast": -1.0}}, "beta_fast=-1.0; it must be a positive float"),
        ("llama", {"rope_scaling": YARN, "rope_theta": 1.0}, "rope_theta=1.0; it must be above 1 for rope type yarn"),
        ("gemma3_text", {"rope_scaling": YARN | {"truncate": False}}, "sets truncate for one kind of layer"),
        *[(kind, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'") for kind in KINDS],
        *[
            (kind, {"logits_scaling": 8.0}, "logits_scaling=8.0, which is not supported")
            for kind in KINDS
            if not kind.startswith("granite")
        ],
        ("granite", {"residual_multiplier": 0.0}, "residual_multiplier=0.0; it must be a positive float"),
        *[
            (kind, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5")
            for kind in KINDS
            if kind not in ("phi3", "glm", "glm4")
        ],
        # Listing them one by one would take all memory before the weights are looked at.
        *[(kind, {"num_hidden_layers": 10**15}, "num_hidden_layers=1000000000000000; it must be") for kind in KINDS],
        *[
            (kind, {"hidden_size": 10**15}, "hidden_size=1000000000000000; it must be at most 2147483647")
            for kind in KINDS
        ],
        ("mistral", {"rms_norm_eps": 10**400}, "rms_norm_eps=1000"),
        ("mistral", {"architectures": [["MistralForCausalLM"]]}, "architectures=[['MistralForCausalLM']]"),
        ("mistral", {"sliding_window": 0}, "sliding_window=0; it must be a positive int"),
        ("mistral", {"layer_types": ["full_attention"] * 6}, "layer_types=["),
        ("mistral", {"hidden_act": "gelu"}, "hidden_act='gelu'; supported: 'silu'"),
        ("qwen2", {"use_mrope": True}, "use_mrope=True"),
        ("qwen2", {"use_sliding_window": 1}, "use_sliding_window=1"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 6}, "and no sliding_window to go with them"),
        ("qwen2", {"layer_types": ["full_attention"] * 5}, "it must be 6 times sliding_attention or full_attention"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 6}, "layer_types=['chunked_attention'"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers=-1"),
        ("qwen2", {"attention_bias": True}, "attention_bias=True, which is not supported"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation='gelu'; supported: 'gelu_pytorch_tanh'"),
        ("gemma2", {"hidden_act": "silu"}, "hidden_act='silu'"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0; it must be a positive int"),
        ("gemma2", {"final_logit_softcapping": -30.0}, "final_logit_softcapping=-30.0"),
        ("gemma2", {"sliding_window": None}, "and no sliding_window to go with them"),
        ("gemma2", {"sliding_window_size": 512}, "sliding_window_size=512"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma2", {"sliding_window_pattern": 2}, "sliding_window_pattern=2, which is not supported"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0; supported: None"),
        ("gemma3_text", {"_sliding_window_pattern": 3}, "_sliding_window_pattern=3, yet layers alternate differently"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 7.0}}, "rope_theta=7.0 in rope_parameters"),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "rope_type='linear'; supported: 'default'",
        ),
        (
            "gemma3_text",
            {"rope_local_base_freq": 5.0, "rope_parameters": {"sliding_attention": {"rope_theta": 6.0}}},
            "gives rope_theta twice",
        ),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv=8.0"),
        ("olmo2", {"sliding_window": 4096}, "sliding_window=4096"),
        (
            "olmo3",
            {"rope_theta": 10000.0},
            "rope_theta=10000.0; rope_parameters must say that of sliding_attention and",
        ),
        ("olmo3", {"sliding_window_pattern": 4}, "sliding_window_pattern=4, which is not supported"),
        ("exaone4", {"sliding_window_pattern": "LLLG"}, "sliding_window_pattern='LLLG'; it must be a positive int"),
        ("exaone4", {"sliding_window": None}, "and no sliding_window to go with them"),
        ("cohere2", {"head_dim": 10}, "head_dim=10; supported: 8"),
        ("cohere2", {"use_qk_norm": True}, "use_qk_norm=True; supported: False"),
        ("cohere2", {"rms_norm_eps": 1e-5}, "rms_norm_eps=1e-05, which is not supported"),
        ("granitemoehybrid", {"num_local_experts": 64}, "num_local_experts=64; supported: 0"),
        ("granitemoehybrid", {"position_embedding_type": "nope"}, "position_embedding_type='nope'; supported: 'rope'"),
        ("granitemoehybrid", {"layer_types": ["mamba"] * 6}, "layer_types=['mamba', "),
        ("granitemoehybrid", {"layer_types": None}, "layer_types=None; it must be 6 times attention"),
        ("ministral3", {"rope_scaling": YARN}, "llama_4_scaling_beta=None; it must be a positive float"),
        (
            "ministral3",
            {"rope_scaling": {"rope_type": "default", "llama_4_scaling_beta": 0.1}},
            "rope_type='default'; supported: 'yarn'",
        ),
        (
            "ministral3",
            {"rope_scaling": YARN | {"llama_4_scaling_beta": 0.1, "max_position_embeddings": 7}},
            "max_position_embeddings=7; supported: 8209",
        ),
        ("phi3", {"resid_pdrop": 0.1}, "resid_pdrop=0.1"),
        ("phi3", {"lm_head_bias": True}, "lm_head_bias=True"),
        ("phi3", {"partial_rotary_factor": 0.4}, "of which rotary embeddings turn 3"),
        ("phi3", {"partial_rotary_factor": 1.5}, "of which rotary embeddings turn 12"),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4}},
            "short_factor=[1.0]; it must be a list of 4 numbers",
        ),
        (
            "phi3",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 4,
                    "long_factor": [1.0] * 4,
                    "original_max_position_embeddings": 512,
                }
            },
            "gives original_max_position_embeddings twice, as 512 and 4096",
        ),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers=[1, 0]; it must be 6 times 0 or 1"),
        ("smollm3", {"no_rope_layers": [1, 0, 2, 1, 1, 1]}, "no_rope_layers=[1, 0, 2"),
        ("apertus", {"qk_norm": False}, "qk_norm=False"),
        ("apertus", {"post_norm": True}, "post_norm=True"),
        ("apertus", {"rope_theta": 5000.0}, "gives rope_theta twice, as 5000.0 and 12000000.0"),
        ("qwen3", {"model_type": "qwen3_moe"}, "model_type='qwen3_moe'; supported: 'qwen3'"),
    ],
)
def test_unsupported_settings_of_supported_families_are_refused_by_name(
    kind: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, config(kind, **changes))
    assert message in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_layer_types_override_the_pattern_that_transformers_writes_beside_them(tmp_path: Path) -> None:
    """A Gemma 3 with other layer types is still saved with `_sliding_window_pattern`: 6."""
    transformers = pytest.importorskip("transformers")
    types = ["full_attention", "sliding_attention", "sliding_attention", "full_attention", "full_attention"]
    sizes = {**SIZES, "num_hidden_layers": 5, "num_key_value_heads": 2, "head_dim": 6}
    saved = transformers.Gemma3TextConfig(**sizes, layer_types=types).to_dict()
    assert saved["_sliding_window_pattern"] == 6
    settings = read(tmp_path, {**saved, "architectures": ["Gemma3ForCausalLM"]})
    assert settings.slides == (False, True, True, False, False)
    assert read(tmp_path, hugging_face_config(settings, "float32")) == settings


def test_unknown_architectures_are_refused_with_the_list(tmp_path: Path) -> None:
    for other in ("GemmaForCausalLM", "Gemma3nForConditionalGeneration", "GraniteMoeForCausalLM", "MixtralForCausalLM"):
        with pytest.raises(ValueError) as caught:
            read(tmp_path, {**config("llama"), "architectures": [other]})
        for architecture in (other, *FAMILIES, *WHOLES):
            assert architecture in str(caught.value), str(caught.value)


@pytest.mark.parametrize("key", ["num_local_experts", "position_embedding_type"])
def test_a_granite_4_that_does_not_say_that_it_is_dense_is_refused(key: str, tmp_path: Path) -> None:
    """Where these keys are absent, transformers makes experts, and no rotary embeddings."""
    content = config("granitemoehybrid")
    del content[key]
    with pytest.raises(ValueError, match=f"config.json does not say {key}"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_offset": 1.0}, "a LlamaForCausalLM folder cannot say norm_offset=1.0, only 0.0"),
        ({"sliding_window": 4}, "a LlamaForCausalLM folder cannot say sliding_window=4, only None"),
        ({"logit_cap": 30.0}, "cannot say logit_cap=30.0"),
        ({"qkv_bias": True}, "cannot say output_bias=False, only True"),
        ({"family": "OlmoForCausalLM"}, "family is 'OlmoForCausalLM'; allowed: LlamaForCausalLM, "),
    ],
)
def test_settings_that_a_family_cannot_say_are_not_exported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        hugging_face_config(dataclasses.replace(tiny.SETTINGS, **changes), "float32")
    assert message in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "relu"}, "activation is 'relu'"),
        ({"qk_norm": "row"}, "qk_norm is 'row'"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"sliding_window": 4, "sliding_layers": (True,)}, "sliding_layers speaks of 1 layers, it has 3"),
        ({"rope_layers": (True,) * 4}, "rope_layers speaks of 4 layers"),
        ({"sliding_layers": (True, False, True)}, "sliding_layers is set without a sliding_window"),
        ({"rotary_share": 0.5}, "head_dim is 10, of which rotary embeddings turn 5"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        dataclasses.replace(tiny.SETTINGS, **changes)
    assert message in str(caught.value), str(caught.value)
