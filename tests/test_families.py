"""Every family computes what transformers computes: goldens of tests/goldens/make.py, and its stored form."""

import functools
import json
from pathlib import Path
from typing import Any

import family_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from qrpo_jax import decoder, hugging_face, log_probs
from qrpo_jax.mesh import make_mesh
from qrpo_jax.stored import stored_tensors

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


def load(folder: Path) -> tuple[decoder.DecoderSettings, decoder.Parameters]:
    settings = hugging_face.check_folder(folder)
    return settings, hugging_face.load(folder, make_mesh(1, 1, 1, jax.devices()[:1]))


def stored_form(settings: decoder.DecoderSettings, parameters: decoder.Parameters) -> dict[str, np.ndarray]:
    """A tree of the parameters' structure as the tensors of a folder."""
    flat = nnx.traversals.flatten_mapping(parameters)

    def rows(part: Any) -> np.ndarray:
        return part.give(np.asarray(flat[part.path] if part.layer is None else flat[part.path][part.layer]))

    return {
        stored.name: np.concatenate([rows(part) for part in stored.parts])
        for stored in stored_tensors(settings)
        if stored.parts
    }


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
        rows = (tokens, segments, positions)
        scored = log_probs.row_log_probs(graph, parameters, *rows, weights != 0, vocab_chunk=11)
        return (scored * weights).sum(), model.logits(model(*rows)[0])

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(parameters)
    for row, start in enumerate((0, OTHER)):
        np.testing.assert_allclose(logits[row, start : start + LENGTH], expected["logits"], rtol=0, atol=2e-5)
    stored = stored_form(settings, gradients)
    along = [np.sum(stored[name] * cases.direction(name, stored[name].shape)) for name in sorted(stored)]
    np.testing.assert_allclose(along, expected["gradients"], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("case", cases.WITH_GOLDEN)
def test_decoding_with_a_cache_is_the_whole_forward(case: str, folders: Any) -> None:
    """A prompt longer than the window, then the golden sequence's tokens one by one."""
    settings, parameters = load(folders(case))
    _, expected = golden(case)
    tokens, steps = cases.tokens(case, VOCAB)[0], LENGTH - PROMPT
    graph = decoder.graph(settings)

    @jax.jit
    def forced(parameters: decoder.Parameters) -> jax.Array:
        model = nnx.merge(graph, parameters)
        # Prompts of two lengths; the first one's completion is the golden sequence's rest, drawn twice.
        within = np.broadcast_to(np.arange(PROMPT + 2), (2, PROMPT + 2))
        lengths = jnp.asarray([PROMPT, PROMPT + 2])
        prompts = np.stack([tokens[: PROMPT + 2]] * 2)
        _, kept = model(prompts, (within < lengths[:, None]).astype(jnp.int32), within, keep_keys=True)
        empty = jnp.zeros((settings.layers, 4, settings.kv_heads, settings.head_dim, steps))
        cache = decoder.Cache(*kept, lengths, empty, empty, jnp.zeros((), jnp.int32))

        def step(cache: decoder.Cache, token: jax.Array) -> Any:
            hidden, cache = model.decode(jnp.full(4, token), cache)
            return cache, model.logits(hidden)

        return jax.lax.scan(step, cache, jnp.asarray(tokens[PROMPT:]))[1]

    for drawn in np.moveaxis(np.asarray(forced(parameters)), 1, 0)[:2]:
        np.testing.assert_allclose(drawn, expected["logits"][PROMPT:], rtol=0, atol=2e-5)
