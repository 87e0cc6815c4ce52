"""Every family computes what transformers computes, by the goldens of goldens/make.py, and is stored as it was."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from qrpo_jax.data.text import Text, make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.devices.mesh import make_mesh, parameter_shardings
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.model import decoder
from qrpo_jax.model.layers import RMSNorm
from qrpo_jax.model.token_log_probs import Head, token_log_probs
from qrpo_jax.sampling import sampler
from qrpo_jax.training.optimizer import Optimization, make_optimizer
from tests.helpers import family_cases as cases
from tests.helpers import sequences, tiny
from tests.helpers.family_models import decoded, load, stored_form
from tests.helpers.row_log_probs import row_log_probs

GOLDENS = Path(__file__).parent / "goldens"
VOCAB, LENGTH = cases.GOLDEN.vocab, cases.LENGTH
OTHER = 7  # tokens of another sequence before the golden one, in its row
PADDING = 3
PROMPT = 2 * cases.WINDOW + 1


@functools.cache
def golden(case: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    content = json.loads((GOLDENS / f"{case}.json").read_text())
    with np.load(GOLDENS / f"{case}.npz") as arrays:
        return content, dict(arrays)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes the folder that transformers saved, from its names and shapes."""

    @functools.cache
    def make(case: str) -> Path:
        folder = tmp_path_factory.mktemp(case)
        content, _ = golden(case)
        (folder / "config.json").write_text(json.dumps(content["config"]))
        tensors = {name: cases.weight(case, name, tuple(shape)) for name, shape in content["tensors"].items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


@pytest.fixture(scope="module")
def words() -> Text:
    tokenizer = vocabulary_tokenizer([chr(65 + i) for i in range(20)])
    return make_text(tokenizer, "chat", (tokenizer.eos_token_id,))


@pytest.mark.parametrize("case", cases.WITH_GOLDEN)
def test_logits_and_gradients_packed_and_padded_are_those_of_transformers(case: str, folders: Any) -> None:
    """Row 0 is the golden sequence and padding, row 1 another sequence and then the golden one."""
    settings, parameters = load(folders(case))
    _, expected = golden(case)
    own, other = cases.tokens(case, VOCAB)[0], cases.tokens("other", VOCAB)[0, :OTHER]
    width = OTHER + LENGTH + PADDING
    tokens, segments, positions = (np.zeros((2, width), np.int32) for _ in range(3))
    weights = np.zeros((2, width), np.float32)
    for row, start in enumerate((0, OTHER)):
        at = slice(start, start + LENGTH)
        tokens[row, at], segments[row, at], positions[row, at] = own, 5, np.arange(LENGTH)
        weights[row, at] = cases.loss_weights((1, LENGTH))[0] / 2
    tokens[1, :OTHER], segments[1, :OTHER], positions[1, :OTHER] = other, 1, np.arange(OTHER)
    graph = decoder.graph(settings)

    def loss(parameters: decoder.Parameters) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, parameters)
        hidden, _ = model(tokens, sequences.layout(segments, positions))
        head = Head(1.0, settings.logit_cap, 11, None, settings.logit_scale)
        scored = token_log_probs(hidden, model.unembedding(), np.roll(tokens, -1, 1), head)
        return (scored * np.roll(weights, -1, 1)).sum(), model.logits(hidden)

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(parameters)
    for row, start in enumerate((0, OTHER)):
        np.testing.assert_allclose(logits[row, start : start + LENGTH], expected["logits"], rtol=0, atol=2e-5)
    stored = stored_form(settings, gradients)
    along = [np.sum(stored[name] * cases.direction(name, stored[name].shape)) for name in sorted(stored)]
    np.testing.assert_allclose(along, expected["gradients"], rtol=1e-4, atol=2e-6)


# Families whose layers attend alike are decoded by one of them here, and all of them in test_family_parity.py.
@pytest.mark.parametrize(
    "case",
    [
        "mistral",
        "qwen2_windows",
        "gemma2",
        "gemma3",
        "olmo2",
        "phi3",
        "phi3_long",
        "smollm3_windows",
        "olmo3",
        "cohere2",
        "ministral3",
    ],
)
def test_decoding_with_a_cache_is_the_whole_forward(case: str, folders: Any) -> None:
    """A prompt longer than the window, then the golden sequence's tokens one by one."""
    settings, parameters = load(folders(case))
    _, expected = golden(case)
    drawn = decoded(settings, parameters, cases.tokens(case, VOCAB)[0], PROMPT)
    np.testing.assert_allclose(drawn, np.stack([expected["logits"][PROMPT:]] * 2), rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", cases.WITH_GOLDEN)
def test_import_then_export_then_import_is_identity(case: str, folders: Any, tmp_path: Path, words: Text) -> None:
    settings, parameters = load(folders(case))
    model_folder.save(tmp_path / "out", settings, parameters, words, max_shard_bytes=10_007)
    again, reloaded = load(tmp_path / "out")
    assert again == settings
    tiny.assert_trees_equal(reloaded, parameters)
    before = load_file(folders(case) / "model.safetensors")
    after: dict[str, np.ndarray] = {}
    for shard in (tmp_path / "out").glob("*.safetensors"):
        after |= load_file(shard)
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].tobytes() == after[name].tobytes(), name


def test_completions_have_the_scored_log_probs(folders: Any) -> None:
    """With both soft caps and a window, at a temperature: sampling and scoring are one distribution."""
    settings, parameters = load(folders("gemma2"))
    graph, new, temperature = decoder.graph(settings), 7, 0.7
    prompts, lengths = cases.tokens("gemma2", VOCAB, 2, 13), np.asarray([13, 9])
    options: dict[str, Any] = dict(completions=2, max_new_tokens=new, temperature=temperature, end_tokens=(VOCAB,))
    drawn = jax.jit(sampler.make_sampler(graph, **options))(
        parameters, prompts, lengths, jax.random.split(jax.random.key(0), 2)
    )
    rows, at = np.zeros((4, 13 + new), np.int32), np.tile(np.arange(13 + new), (4, 1))
    own = (at >= np.repeat(lengths, 2)[:, None]) & (at < np.repeat(lengths, 2)[:, None] + new)
    for row, prompt, length, drawn_T in zip(
        rows, prompts.repeat(2, 0), lengths.repeat(2), drawn.tokens_PxnxT.reshape(4, new), strict=True
    ):
        row[: length + new] = [*prompt[:length], *drawn_T]
    layout = sequences.layout(np.ones_like(rows), at, own)
    scored = jax.jit(
        lambda p: row_log_probs(
            graph, p, rows, layout, sequences.targets(rows, own), temperature=temperature, vocab_chunk=5
        )
    )(parameters)
    np.testing.assert_allclose(drawn.log_probs_Pxn.reshape(-1), scored.sum(-1), rtol=0, atol=2e-5)


def test_program_does_not_grow_with_depth_where_layers_differ() -> None:
    def equations(layers: int) -> int:
        settings = dataclasses.replace(
            tiny.SETTINGS,
            layers=layers,
            sliding_window=5,
            local_rope_theta=90.0,
            sliding_layers=(True, False) * (layers // 2),
        )
        graph, shapes = decoder.graph(settings), decoder.abstract_parameters(settings)
        row, layout = np.ones((1, 9), np.int32), sequences.one_a_row((1, 9))
        jaxpr = jax.make_jaxpr(lambda p: nnx.merge(graph, p)(row, layout)[0])(shapes)
        return sum(line.count("=") for line in str(jaxpr).splitlines() if "[" in line)

    assert equations(2) == equations(12)


@pytest.mark.parametrize("case", ["mistral", "gemma2"])
def test_a_token_sees_the_window_and_no_further_back(case: str, folders: Any) -> None:
    """One sliding layer: a token changes nothing from `window` tokens later on."""
    settings, parameters = load(folders(case))
    settings = dataclasses.replace(settings, layers=1, sliding_layers=None)
    parameters = parameters | {"layers": jax.tree.map(lambda p: p[:1], parameters["layers"])}
    model = nnx.merge(decoder.graph(settings), parameters)
    tokens = cases.tokens(case, VOCAB)
    layout = sequences.one_a_row(tokens.shape)
    changed = tokens.copy()
    changed[0, 3] = changed[0, 3] % (VOCAB - 1) + 1
    moved = np.abs(np.asarray(model(tokens, layout)[0]) - np.asarray(model(changed, layout)[0])).max(-1)[0]
    expected = (np.arange(LENGTH) >= 3) & (np.arange(LENGTH) < 3 + cases.WINDOW)
    np.testing.assert_array_equal(moved > 0, expected)


@pytest.mark.parametrize("rounds", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norms_round_where_their_family_does(rounds: bool, offset: float) -> None:
    """In bfloat16, bit for bit: Llama rounds before it scales, Gemma and OLMo 2 only after."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(3, 5, tiny.SETTINGS.d_model)).astype(jnp.bfloat16)
    scale = rng.normal(size=tiny.SETTINGS.d_model).astype(jnp.bfloat16).astype(np.float32)
    norm = RMSNorm(dataclasses.replace(tiny.SETTINGS, norm_rounds=rounds, norm_offset=offset))
    norm.scale[...] = jnp.asarray(scale)
    x32 = x.astype(np.float32)
    x32 = x32 * np.asarray(jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + tiny.SETTINGS.norm_epsilon))
    if rounds:
        x32 = x32.astype(jnp.bfloat16).astype(np.float32)
    expected = (x32 * (scale + np.float32(offset))).astype(jnp.bfloat16)
    got = np.asarray(jax.jit(norm)(jnp.asarray(x)))
    assert got.dtype == jnp.bfloat16 and (got == expected).all(), (got != expected).mean()


def test_constants_of_an_activation_may_be_absent_but_not_different(folders: Any, tmp_path: Path) -> None:
    source, name = folders("apertus"), "model.layers.1.mlp.act_fn.eps"
    shutil.copy(source / "config.json", tmp_path)
    tensors = load_file(source / "model.safetensors")
    rounded = float(np.asarray(-1e-6).astype(jnp.bfloat16))
    wrong = ((-2e-6, f"tensor {name} in {tmp_path}"), ([-1e-6], "has shape [1]"))
    for value, message in ((None, None), (-1e-6, None), (rounded, None), *wrong):
        others = {key: tensor for key, tensor in tensors.items() if key != name}
        others |= {} if value is None else {name: np.asarray(value, np.float32)}
        save_file(others, tmp_path / "model.safetensors")
        if message is None:
            assert model_folder.check_folder(tmp_path).activation == "xielu"
            continue
        with pytest.raises(ValueError) as caught:
            model_folder.check_folder(tmp_path)
        assert message in str(caught.value), str(caught.value)


EVERYTHING = dataclasses.replace(
    tiny.SETTINGS,
    **dict(qkv_bias=True, output_bias=True, mlp_bias=True, qk_norm="projection", post_norm=True, activation="xielu"),
)


def test_weight_decay_is_for_matrices_alone() -> None:
    """Biases, norms and activations stay where they are without a gradient, whatever axes they have."""
    options: dict[str, Any] = dict(schedule="constant", warmup_share=0.0, b1=0.9, b2=0.9, clip_norm=0.0)
    optimizer, _ = make_optimizer(Optimization(learning_rate=0.5, weight_decay=0.1, **options), steps=1)
    shapes = decoder.abstract_parameters(EVERYTHING)
    ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    none = jax.tree.map(np.zeros_like, ones)
    updates, _ = optimizer.update(none, optimizer.init(ones), ones)
    decayed = {path[-1] for path, x in nnx.traversals.flatten_mapping(updates).items() if np.asarray(x).any()}
    assert decayed == {"embedding", "q", "k", "v", "o", "up", "down"}


def test_axes_and_shapes_describe_the_parameters_and_split_over_a_mesh() -> None:
    """Sizes that a mesh of two by two can split; biases, norms and activations included."""
    settings = EVERYTHING
    shapes, axes = decoder.abstract_parameters(settings), decoder.logical_axes(settings)
    shardings = parameter_shardings(make_mesh(2, 2, 2), axes, shapes)
    assert shardings["layers"]["attention"]["q_norm"]["scale"].shard_shape((3, 6, 10)) == (3, 3, 10)
    assert shardings["layers"]["attention"]["k_bias"].shard_shape((3, 2, 10)) == (3, 1, 10)
    assert shardings["layers"]["mlp"]["activation"]["alpha_p"].shard_shape((3, 1)) == (3, 1)
    fresh = jax.eval_shape(functools.partial(decoder.initial_parameters, settings), jax.random.key(0))
    assert jax.tree.map(lambda p: (p.shape, p.dtype), fresh) == jax.tree.map(lambda p: (p.shape, p.dtype), shapes)
