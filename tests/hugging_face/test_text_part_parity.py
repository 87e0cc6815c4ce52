"""Models that also read images against live transformers: their text part gives the logits of the whole."""

import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from qrpo_jax.data.text import make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.hugging_face import adapter_folder, model_folder
from qrpo_jax.hugging_face.families import FAMILIES
from qrpo_jax.hugging_face.lora_targets import make_lora
from qrpo_jax.hugging_face.text_part import LAYERS
from qrpo_jax.model import decoder
from qrpo_jax.model.lora import join
from tests.helpers import family_cases as cases
from tests.helpers import sequences, tiny
from tests.helpers.family_models import decoded, load
from tests.helpers.live_models import SIZES, logits_of

pytestmark = pytest.mark.parity

WHOLE = {
    "gemma3": "Gemma3ForConditionalGeneration",
    "mistral": "Mistral3ForConditionalGeneration",
    "ministral3": "Mistral3ForConditionalGeneration",
}
VISION = {"hidden_size": 22, "intermediate_size": 17, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 7, "num_channels": 3, "head_dim": 10}
PROMPT = 13


@pytest.fixture(scope="module", params=WHOLE)
def whole(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Case of the text part, the model in transformers, and the folder that it saves."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    case = request.param
    named = getattr(transformers, WHOLE[case])
    text = cases.config(case, SIZES["deep"]) | {"model_type": FAMILIES[cases.CASES[case][0]].model_type}
    tied = case != "mistral"
    config = named.config_class(text_config=text, vision_config=VISION, tie_word_embeddings=tied)
    model = named._from_config(config, attn_implementation="eager").to(torch.float32).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            ours = name.replace("model.language_model.", "model.")
            if not (tied and name == "lm_head.weight"):
                tensor.copy_(torch.tensor(cases.weight(case, ours, tuple(tensor.shape))))
    folder = tmp_path_factory.mktemp("whole")
    model.save_pretrained(folder)
    return case, model, folder


def ours(graph: nnx.GraphDef, parameters: decoder.Parameters, tokens: np.ndarray) -> np.ndarray:
    def run(parameters: decoder.Parameters) -> jax.Array:
        model = nnx.merge(graph, parameters)
        return model.logits(model(tokens, sequences.one_a_row(tokens.shape))[0])

    return np.asarray(jax.jit(run)(parameters))


def test_logits_and_cached_decoding_are_theirs(whole: Any) -> None:
    case, model, folder = whole
    settings, parameters = load(folder)
    assert settings.family == cases.CASES[case][0]
    tokens = cases.tokens(case, settings.vocab_size, 2)
    expected = logits_of(model, tokens)
    np.testing.assert_allclose(ours(decoder.graph(settings), parameters, tokens), expected, rtol=0, atol=2e-5)
    drawn = decoded(settings, parameters, tokens[0], PROMPT)
    np.testing.assert_allclose(drawn, np.stack([expected[0, PROMPT:]] * 2), rtol=0, atol=2e-5)


def test_both_layouts_of_names_are_the_same_model(whole: Any, tmp_path: Path) -> None:
    """That of transformers before 4.52, in which the first folders are published, and that of its modules since."""
    _, model, folder = whole
    settings, parameters = load(folder)
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if settings.tie_embeddings:
        del tensors["lm_head.weight"]
    old = {
        name.replace("model.language_model.", "language_model.model.")
        .replace("lm_head.", "language_model.lm_head.")
        .removeprefix("model."): tensor
        for name, tensor in tensors.items()
    }
    assert load_file(folder / "model.safetensors").keys() in (old.keys(), tensors.keys())
    for number, stored in enumerate((old, tensors)):
        layout = tmp_path / str(number)
        layout.mkdir()
        (layout / "config.json").write_text((folder / "config.json").read_text())
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in stored.items()}, layout / "model.safetensors")
        again, reloaded = load(layout)
        assert again == settings
        tiny.assert_trees_equal(reloaded, parameters)
        assert model_folder.left_out(layout) == sum("language_model" not in name for name in stored) - (
            "lm_head.weight" in stored
        )


def test_the_export_is_the_text_part_which_transformers_loads(whole: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    case, model, folder = whole
    settings, parameters = load(folder)
    tokenizer = vocabulary_tokenizer([chr(65 + i) for i in range(20)])
    model_folder.save(tmp_path / "out", settings, parameters, make_text(tokenizer, "chat", (tokenizer.eos_token_id,)))
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path / "out"), output_loading_info=True, attn_implementation="eager"
    )
    assert type(loaded).__name__ == cases.CASES[case][0]
    assert not any(info.values()), {key: value for key, value in info.items() if value}
    tokens = cases.tokens(case, settings.vocab_size, 2)
    np.testing.assert_array_equal(logits_of(loaded.eval(), tokens), logits_of(model, tokens))
    again, reloaded = load(tmp_path / "out")
    assert again == settings
    tiny.assert_trees_equal(reloaded, parameters)


def test_peft_puts_adapters_on_the_text_part_of_the_whole(whole: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    case, model, folder = whole
    settings, base = load(folder)
    lora = make_lora(settings, rank=3, alpha=7.5, targets="[qk]_proj|down_proj")
    rng = np.random.default_rng(0)
    shapes = decoder.abstract_parameters(settings, lora)
    adapters = jax.tree.map(lambda s: jnp.asarray(0.15 * rng.normal(size=s.shape), jnp.float32), shapes)
    adapter_folder.save(tmp_path / "a", settings, lora, adapters, base=str(folder), layers=LAYERS)
    tokens = cases.tokens(case, settings.vocab_size, 2)[:, :25]
    before = logits_of(model, tokens)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected|adapter keys).*")
        adapted = peft.PeftModel.from_pretrained(model, str(tmp_path / "a")).eval()
    theirs = logits_of(adapted, tokens)
    assert np.abs(theirs - before).max() > 0.3, "the adapters make too little difference to compare"
    unmerged = ours(decoder.graph(settings, lora), join(base, adapters), tokens)
    np.testing.assert_allclose(unmerged, theirs, rtol=0, atol=2e-5)
    adapted.save_pretrained(str(tmp_path / "again"))
    written, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("a", "again"))
    assert written.keys() == again.keys()
    adapted.unload()


def test_absent_keys_mean_what_they_mean_to_transformers(tmp_path: Path) -> None:
    """The least that published folders say of their text part."""
    transformers = pytest.importorskip("transformers")
    for name, least in (
        ("Gemma3ForConditionalGeneration", {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34}),
        ("Mistral3ForConditionalGeneration", {"model_type": "mistral", "head_dim": 128}),
        ("Mistral3ForConditionalGeneration", {"model_type": "ministral3", "hidden_size": 3072}),
    ):
        kind = getattr(transformers, name).config_class.model_type
        content = {"architectures": [name], "model_type": kind, "text_config": least, "vision_config": {}}
        (tmp_path / "config.json").write_text(json.dumps(content))
        settings = model_folder.read_settings(tmp_path)
        filled = getattr(transformers, name).config_class(text_config=least).text_config.to_dict()
        (tmp_path / "config.json").write_text(json.dumps({**filled, "architectures": [settings.family]}))
        assert model_folder.read_settings(tmp_path) == settings
