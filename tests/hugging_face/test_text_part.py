"""Folders of models that also read images: what is read of them, what is left out, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face import adapter_folder, model_folder
from qrpo_jax.hugging_face.config import read_settings
from qrpo_jax.hugging_face.lora_targets import make_lora, modules
from qrpo_jax.hugging_face.tensors import stored_tensors
from qrpo_jax.hugging_face.text_part import LAYERS, layers_in
from qrpo_jax.model.rope import LinearScaling
from tests.helpers import jobs, tiny
from tests.helpers.exports import one_device
from tests.helpers.family_models import load

# config.json of the published folders, with smaller sizes; the vision part's config is never read.
GEMMA: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
MISTRAL: dict[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "image_token_index": 10,
    "model_type": "mistral3",
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "text_config": {
        "attention_dropout": 0.0,
        "head_dim": 10,
        "hidden_act": "silu",
        "hidden_size": 26,
        "intermediate_size": 34,
        "max_position_embeddings": 61,
        "model_type": "mistral",
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e9,
        "sliding_window": None,
        "use_cache": True,
        "vocab_size": 46,
    },
    "vision_config": {"hidden_size": 1024, "model_type": "pixtral"},
    "vision_feature_layer": -1,
}
IMAGES = ("vision_tower.patch_conv.weight", "multi_modal_projector.linear_1.weight")


def write(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def folder_with_weights(folder: Path, **more: np.ndarray) -> Path:
    settings = read_settings(write(folder, MISTRAL))
    rng = np.random.default_rng(5)
    tensors = {
        f"language_model.{stored.name}": rng.normal(size=stored.shape).astype(np.float32)
        for stored in stored_tensors(settings)
    }
    tensors |= {name: np.ones((2, 3), np.float32) for name in IMAGES} | more
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_gemma_3_of_4_billion_parameters_is_read_as_published(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, GEMMA))
    expected = {
        "family": "Gemma3ForCausalLM",
        "vocab_size": 262_208,
        "layers": 34,
        "heads": 8,
        "kv_heads": 4,
        "head_dim": 256,
        "max_positions": 131_072,
        "sliding_window": 1024,
        "rope_theta": 1e6,
        "local_rope_theta": 1e4,
        "rope_scaling": LinearScaling(8.0),
        "tie_embeddings": True,
        "query_scalar": 256,
    }
    assert {name: getattr(settings, name) for name in expected} == expected


def test_whether_embeddings_are_tied_is_the_word_of_the_text_part_then_of_the_whole(tmp_path: Path) -> None:
    def tied(content: dict[str, Any], whole: dict[str, bool], text: dict[str, bool]) -> bool:
        changed = {**content, **whole, "text_config": {**content["text_config"], **text}}
        return read_settings(write(tmp_path, changed)).tie_embeddings

    on, off = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
    assert tied(GEMMA, {}, {}) and not tied(MISTRAL, {}, {})
    assert not tied(GEMMA, off, {}) and tied(MISTRAL, on, {})
    assert not tied(MISTRAL, on, off) and tied(GEMMA, off, on)


def test_the_vision_part_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = folder_with_weights(tmp_path)
    settings, parameters = load(folder)
    assert settings.family == "MistralForCausalLM" and not settings.tie_embeddings
    assert model_folder.left_out(folder) == len(IMAGES)
    assert len(model_folder.decoder_headers(folder)) == len(list(stored_tensors(settings)))
    # The same tensors under the names of the family are the same parameters.
    alone = tmp_path / "alone"
    alone.mkdir()
    write(alone, {**MISTRAL["text_config"], "architectures": ["MistralForCausalLM"]})
    tensors = {stored.name: None for stored in stored_tensors(settings)}
    with model_folder.open_tensors(folder / "model.safetensors") as opened:
        tensors = {name: opened.get_tensor(f"language_model.{name}") for name in tensors}
    save_file(tensors, alone / "model.safetensors", metadata={"format": "pt"})
    tiny.assert_trees_equal(load(alone)[1], parameters)
    assert model_folder.left_out(alone) == 0


def test_adapters_name_the_modules_of_the_text_part(tmp_path: Path) -> None:
    assert layers_in(GEMMA) == LAYERS and layers_in({"architectures": ["LlamaForCausalLM"]}) == "model.layers"
    lora = make_lora(tiny.SETTINGS, rank=2, alpha=4, targets="[qv]_proj")
    adapted = [module for module in modules(tiny.SETTINGS) if module.matrices[0][1] in lora.matrices]
    written = adapter_folder.adapter_config(lora, adapted, "base", LAYERS)
    expected = r"model\.language_model\.layers\.\d+\.(self_attn\.q_proj|self_attn\.v_proj)"
    assert written["target_modules"] == expected
    assert adapter_folder.adapter_config(lora, adapted, "base")["target_modules"] == ["q_proj", "v_proj"]


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError) as caught:
        model_folder.check_folder(folder)
    assert message in str(caught.value) and caught.value.about == ("path",), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": None}, "text_config=None; it must be the config of the text part"),
        ({"text_config": {"model_type": "mixtral"}}, "text_config.model_type='mixtral'; supported: 'mistral', "),
        ({"model_type": "gemma3"}, "model_type='gemma3'; supported: 'mistral3'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config={'quant_method': 'fp8'}, which is not"),
        ({"text_config": {**MISTRAL["text_config"], "use_moe": True}}, "sets use_moe=True, which is not supported"),
        ({"architectures": ["Gemma3nForConditionalGeneration"]}, "['Mistral3ForConditionalGeneration']"),
        ({"architectures": ["Llama4ForConditionalGeneration"]}, "['Llama4ForConditionalGeneration']; supported: "),
    ],
)
def test_other_wholes_are_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    refused(write(tmp_path, {**MISTRAL, **changes}), message)


@pytest.mark.parametrize("name", ["audio_tower.weight", "language_model.model.layers.3.x", "vision_towers.weight"])
def test_tensors_of_neither_part_are_refused_by_the_name_that_they_have(name: str, tmp_path: Path) -> None:
    refused(folder_with_weights(tmp_path, **{name: np.ones((2,), np.float32)}), f"has tensor {name} of shape [2]")


def test_only_a_whole_may_have_a_vision_part(tmp_path: Path) -> None:
    folder = folder_with_weights(tmp_path)
    with model_folder.open_tensors(folder / "model.safetensors") as opened:
        tensors = {name.removeprefix("language_model."): opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write(folder, {**MISTRAL["text_config"], "architectures": ["MistralForCausalLM"]})
    refused(folder, f"has tensor {IMAGES[1]} of shape [2, 3]")


def test_a_run_says_aloud_that_the_vision_part_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_with_weights(tmp_path)
    job = jobs.job(tmp_path / "run", model__path=str(folder))
    job.fresh_parameters(one_device())
    said = capsys.readouterr().err
    assert "model: 30 tensors float32 as stored" in said, said
    assert f"model: the text part alone; 2 tensors of its vision part are left out ({folder})" in said, said
