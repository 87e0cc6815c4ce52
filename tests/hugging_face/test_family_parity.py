"""Every family against live transformers, at sizes that no golden has, and what it exports loaded by transformers."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from qrpo_jax.data.text import make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.model import decoder
from qrpo_jax.model.compute import Compute
from tests.helpers import family_cases as cases
from tests.helpers import live_models, sequences, tiny
from tests.helpers.family_models import decoded, load, stored_form
from tests.helpers.live_models import SIZES, logits_of
from tests.helpers.row_log_probs import row_log_probs

pytestmark = pytest.mark.parity

# Together below the original length of phi3_long, beyond which transformers rotates all tokens differently.
LENGTH, PROMPT, PADDING = 25, 13, 5


@pytest.fixture(scope="module", params=[(case, name) for case in cases.CASES for name in SIZES], ids="-".join)
def theirs(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Case, model in transformers, and the folder that it saves."""
    pytest.importorskip("torch")
    case, name = request.param
    model = live_models.model(case, SIZES[name])
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return case, model, folder


def test_logits_packed_and_padded_are_theirs(theirs: Any) -> None:
    case, model, folder = theirs
    settings, parameters = load(folder)
    tokens = cases.tokens(case, settings.vocab_size, 2)[:, :LENGTH]
    alone = logits_of(model, tokens)
    assert np.abs(alone).max() > 0.5, "logits too small to compare"
    graph = decoder.graph(settings)

    @jax.jit
    def ours(parameters: decoder.Parameters, *rows: Any) -> jax.Array:
        model = nnx.merge(graph, parameters)
        return model.logits(model(*rows)[0])

    length = tokens.shape[1]
    layout = sequences.one_a_row(tokens.shape)
    np.testing.assert_allclose(ours(parameters, tokens, layout), alone, rtol=0, atol=2e-5)

    # Both sequences in one row, with padding after them.
    row = np.pad(tokens.reshape(1, -1), ((0, 0), (0, PADDING)))
    segments = np.pad(np.repeat([[1, 2]], length, axis=1), ((0, 0), (0, PADDING)))
    positions = np.pad(np.tile(np.arange(length), 2)[None], ((0, 0), (0, PADDING)))
    packed = np.asarray(ours(parameters, row, sequences.layout(segments, positions)))[:, : 2 * length]
    np.testing.assert_allclose(packed.reshape(alone.shape), alone, rtol=0, atol=2e-5)

    # Padded to a common length, theirs with a mask.
    padded = np.pad(tokens, ((0, 0), (0, PADDING)))
    mask = (np.arange(length + PADDING) < np.asarray([[length], [length - 7]])).astype(np.int32)
    positions = np.broadcast_to(np.arange(length + PADDING), padded.shape)
    got = np.asarray(ours(parameters, padded, sequences.layout(mask, positions)))
    np.testing.assert_allclose(got[mask > 0], logits_of(model, padded, mask)[mask > 0], rtol=0, atol=2e-5)


def test_gradients_are_theirs(theirs: Any) -> None:
    case, model, folder = theirs
    settings, parameters = load(folder)
    tokens = cases.tokens(case, settings.vocab_size, 2)
    weights = cases.loss_weights(tokens.shape)
    model.zero_grad()
    live_models.loss(model, tokens, weights).backward()
    expected = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    graph = decoder.graph(settings)
    rows = (tokens, sequences.one_a_row(tokens.shape), sequences.targets(tokens, weights != 0))

    @jax.jit
    @jax.grad
    def gradient(parameters: decoder.Parameters) -> jax.Array:
        scored = row_log_probs(graph, parameters, *rows, vocab_chunk=17, compute=Compute(remat="full"))
        return (scored[:, :-1] * weights[:, 1:]).sum()

    ours = stored_form(settings, gradient(parameters))
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        if name not in without_gradient(settings):
            assert np.abs(value).max() > 1e-4, f"{name}: gradient too small to compare"
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-4, err_msg=name)


def without_gradient(settings: decoder.DecoderSettings) -> set[str]:
    """Biases of keys in layers without positions: they add the same to all scores of a query."""
    roped = settings.rope_layers or (True,) * settings.layers
    return {f"model.layers.{i}.self_attn.k_proj.bias" for i, rotates in enumerate(roped) if not rotates}


def test_cached_decoding_is_their_forward(theirs: Any) -> None:
    case, model, folder = theirs
    settings, parameters = load(folder)
    tokens = cases.tokens(case, settings.vocab_size)[0]
    expected = logits_of(model, tokens[None])[0, PROMPT:]
    drawn = decoded(settings, parameters, tokens, PROMPT)
    np.testing.assert_allclose(drawn, np.stack([expected] * 2), rtol=0, atol=2e-5)


def test_exports_load_in_transformers_and_come_back_identical(theirs: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    case, model, folder = theirs
    settings, parameters = load(folder)
    tokenizer = vocabulary_tokenizer([chr(65 + i) for i in range(20)])
    words = make_text(tokenizer, "chat", (tokenizer.eos_token_id,))
    model_folder.save(tmp_path / "out", settings, parameters, words)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path / "out"), output_loading_info=True, attn_implementation="eager"
    )
    assert type(loaded) is type(model)
    assert not any(info.values()), {key: value for key, value in info.items() if value}
    tokens = cases.tokens(case, settings.vocab_size, 2)
    np.testing.assert_array_equal(logits_of(loaded.eval(), tokens), logits_of(model, tokens))

    again, reloaded = load(tmp_path / "out")
    assert again == settings
    tiny.assert_trees_equal(reloaded, parameters)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].tobytes() == after[name].tobytes(), name


@pytest.mark.parametrize("case", cases.WITH_GOLDEN)
def test_goldens_are_what_transformers_computes(case: str) -> None:
    """A golden that make.py would no longer write fails here."""
    pytest.importorskip("torch")
    goldens = Path(__file__).parent / "goldens"
    model = live_models.model(case, cases.GOLDEN)
    with np.load(goldens / f"{case}.npz") as arrays:
        got = logits_of(model, cases.tokens(case, cases.GOLDEN.vocab))[0]
        np.testing.assert_allclose(got, arrays["logits"], rtol=0, atol=1e-5)
    shapes = json.loads((goldens / f"{case}.json").read_text())["tensors"]
    assert {name: list(t.shape) for name, t in model.state_dict().items() if name in shapes} == shapes
