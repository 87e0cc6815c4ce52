"""The decoder computes what transformers computes, and transformers loads what is exported."""

import copy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qrpo_jax.data.rows import Message
from qrpo_jax.data.text import make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.hugging_face.tokenizer import open_text
from qrpo_jax.model import decoder, rope
from qrpo_jax.model.layout import Layout
from tests.helpers import sequences
from tests.helpers.row_log_probs import row_log_probs

pytestmark = pytest.mark.parity

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 13,
}
CASES = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False, "rms_norm_eps": 1e-3},
    "wide heads": {"tie_word_embeddings": True, "head_dim": 10, "num_key_value_heads": 6},
    "llama3": {"tie_word_embeddings": False, "rope_parameters": LLAMA3},
}
LENGTH = 59  # beyond original_max_position_embeddings


def one_device() -> jax.sharding.Mesh:
    return make_mesh(1, 1, 1, devices=jax.devices()[:1])


def make_theirs(name: str, folder: Path) -> Any:
    """A transformers model with random weights of a size that makes logits of order 1, also saved to `folder`."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": 97,
        "hidden_size": 42,
        "intermediate_size": 53,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 14,
        "max_position_embeddings": 61,
        "initializer_range": 0.15,
    }
    torch.manual_seed(5)
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **CASES[name]})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def their_logits(model: Any, tokens_BxL: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.tensor(tokens_BxL)).logits.numpy()


def our_logits(
    settings: decoder.DecoderSettings,
    parameters: decoder.Parameters,
    tokens_BxL: np.ndarray,
    layout: Layout | None = None,
) -> np.ndarray:
    @jax.jit
    def forward(parameters: decoder.Parameters, *row: Any) -> jax.Array:
        model = nnx.merge(decoder.graph(settings), parameters)
        return model.logits(model(*row)[0])

    return np.asarray(forward(parameters, tokens_BxL, layout or sequences.one_a_row(tokens_BxL.shape)))


def random_tokens(vocab: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, vocab, shape)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_are_theirs(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = make_theirs(name, tmp_path / "weights")
    settings = model_folder.check_folder(tmp_path / "weights")
    parameters = model_folder.load(tmp_path / "weights", one_device())
    tokens_BxL = random_tokens(97, 2, LENGTH)
    theirs, ours = their_logits(model, tokens_BxL), our_logits(settings, parameters, tokens_BxL)
    assert np.abs(theirs).max() > 0.5, "logits too small to compare"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)

    # Half of the tokens count, each with its own weight, as in a loss.
    weights_BxL = np.random.default_rng(4).normal(size=tokens_BxL.shape).astype(np.float32) / LENGTH
    own_BxL = np.broadcast_to(np.arange(LENGTH) >= LENGTH // 2, tokens_BxL.shape)
    layout, targets_BxL = sequences.one_a_row(tokens_BxL.shape), sequences.targets(tokens_BxL, own_BxL)
    graph = decoder.graph(settings)

    @jax.jit
    @jax.grad
    def our_gradient(parameters: decoder.Parameters) -> jax.Array:
        scored_BxL = row_log_probs(graph, parameters, tokens_BxL, layout, targets_BxL, vocab_chunk=23)
        return (scored_BxL[:, :-1] * weights_BxL[:, 1:]).sum()

    scored = torch.log_softmax(model(torch.tensor(tokens_BxL)).logits, -1)[:, :-1]
    picked = scored.gather(-1, torch.tensor(tokens_BxL)[:, 1:, None])[..., 0]
    (picked * torch.tensor((weights_BxL * own_BxL)[:, 1:])).sum().backward()
    # Gradients have the layout of the weights, so they are imported like weights.
    carrier = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, of in zip(carrier.parameters(), model.parameters(), strict=True):
            parameter.copy_(of.grad)
    carrier.save_pretrained(tmp_path / "gradients")
    their_gradient = model_folder.load(tmp_path / "gradients", one_device())
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(our_gradient(parameters)), jax.tree.leaves(their_gradient), strict=True
    ):
        assert np.abs(theirs).max() > 1e-3, f"{path}: gradient too small to compare"
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4, err_msg=str(path))


@pytest.mark.parametrize("name", ["tied", "llama3"])
def test_packing_and_padding_do_not_change_their_logits(name: str, tmp_path: Path) -> None:
    model = make_theirs(name, tmp_path / "weights")
    settings = model_folder.check_folder(tmp_path / "weights")
    parameters = model_folder.load(tmp_path / "weights", one_device())
    lengths = (17, 23, 5)
    tokens_1xL = random_tokens(97, 1, LENGTH)
    segments = np.repeat(np.arange(4), (0, *lengths))
    positions = np.concatenate([np.arange(length) for length in lengths])
    padding = (0, LENGTH - sum(lengths))
    layout = sequences.layout(np.pad(segments, padding)[None], np.pad(positions, padding)[None])
    ours = our_logits(settings, parameters, tokens_1xL, layout)
    start = 0
    for length in lengths:
        alone = their_logits(model, tokens_1xL[:, start : start + length])
        np.testing.assert_allclose(ours[:, start : start + length], alone, rtol=0, atol=2e-5)
        start += length


def load_theirs(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(str(folder), output_loading_info=True)
    assert not any(info.values()), {key: value for key, value in info.items() if value}
    return model.eval()


def test_exported_stories_load_in_transformers(fixtures: Path, tmp_path: Path) -> None:
    stories = fixtures / "stories260K-hf"
    if not stories.is_dir():
        pytest.skip(f"no stories260K-hf in {fixtures}")
    settings = model_folder.check_folder(stories)
    parameters = model_folder.load(stories, one_device())
    model_folder.save(tmp_path / "out", settings, parameters, open_text(stories, "plain"))
    tokens_BxL = random_tokens(settings.vocab_size, 2, 251)
    before = their_logits(load_theirs(stories), tokens_BxL)
    after = their_logits(load_theirs(tmp_path / "out"), tokens_BxL)
    np.testing.assert_array_equal(after, before)
    np.testing.assert_allclose(our_logits(settings, parameters, tokens_BxL), after, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["tied", "llama3"])
@pytest.mark.parametrize("max_shard_bytes", [model_folder.MAX_SHARD_BYTES, 30_011])
def test_a_model_trained_from_scratch_loads_in_transformers(name: str, max_shard_bytes: int, tmp_path: Path) -> None:
    """Weights, tokenizer, chat template and end token of a model that transformers did not make."""
    transformers = pytest.importorskip("transformers")
    scaling = rope.RopeScaling(8.0, 1.0, 4.0, 13) if name == "llama3" else None
    vocabulary = [*"0123456789+-*()x, =\n", "lambda x: ", "abs(", "max(", "é"]
    settings = decoder.DecoderSettings(
        vocab_size=len(vocabulary) + 4 + 3,
        d_model=42,
        layers=3,
        heads=6,
        kv_heads=2,
        head_dim=10,
        d_ff=53,
        max_positions=61,
        rope_theta=700.0,
        rope_scaling=scaling,
        tie_embeddings=name == "tied",
    )
    rng = np.random.default_rng(1)
    shapes = decoder.abstract_parameters(settings)
    parameters = jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32), shapes)
    tokenizer = vocabulary_tokenizer(vocabulary)
    ours = make_text(tokenizer, "chat", (tokenizer.eos_token_id,))
    model_folder.save(tmp_path / "m", settings, parameters, ours, max_shard_bytes=max_shard_bytes)

    model = load_theirs(tmp_path / "m")
    tokens_BxL = random_tokens(settings.vocab_size, 2, LENGTH)
    np.testing.assert_allclose(
        our_logits(settings, parameters, tokens_BxL), their_logits(model, tokens_BxL), rtol=0, atol=2e-5
    )
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id

    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "m"))
    source = "lambda x: max(x*x, 17) - abs(é)\n"
    assert theirs.encode(source, add_special_tokens=False) == ours.encode(source)
    assert theirs.decode(ours.encode(source)) == source
    messages = [Message("user", "x=1"), Message("assistant", "12"), Message("user", "x=2")]
    templated = theirs.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages], add_generation_prompt=True
    )
    np.testing.assert_array_equal(templated["input_ids"], ours.prompt(messages))
    assert (jnp.asarray(ours.prompt(messages)) == theirs.bos_token_id).sum() == 1
