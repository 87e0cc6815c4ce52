"""Weights between disk and mesh: which numbers are read, how often, and how they change."""

import dataclasses
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qrpo_jax.data.text import make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.hugging_face import model_folder, weights
from qrpo_jax.hugging_face.tensors import stored_tensors
from tests.helpers import tiny

TOKENIZER = vocabulary_tokenizer(list("abcdefghij"))
TEXT = make_text(TOKENIZER, "plain", (TOKENIZER.eos_token_id,))
SETTINGS = dataclasses.replace(tiny.SETTINGS, d_model=42)  # a multiple of heads, as a Llama folder has it


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "saved"
    model_folder.save(path, SETTINGS, tiny.parameters(SETTINGS), TEXT, max_shard_bytes=20_011)
    return path


class Recorder:
    """safe_open, counting the elements that are read of each tensor."""

    def __init__(self) -> None:
        self.reads: Counter = Counter()
        self.elements: Counter = Counter()

    def __call__(self, path, framework):
        recorder, opened = self, REAL(path, framework)

        class Slice:
            def __init__(self, name):
                self.name, self.real = name, opened.get_slice(name)

            def __getitem__(self, index):
                values = self.real[index]
                recorder.reads[self.name, str(index)] += 1
                recorder.elements[self.name] += values.size
                return values

        class File:
            def __enter__(self):
                opened.__enter__()
                return self

            def __exit__(self, *error):
                return opened.__exit__(*error)

            def get_slice(self, name):
                return Slice(name)

        return File()


REAL = weights.safe_open


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (4, 1, 2), (1, 2, 1)])
def test_every_number_is_read_once_however_many_devices_want_it(sizes, folder, monkeypatch) -> None:
    headers, recorder = weights.read_headers(folder), Recorder()
    monkeypatch.setattr(weights, "safe_open", recorder)
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    loaded = weights.load_weights(headers, SETTINGS, mesh)
    assert max(recorder.reads.values()) == 1, recorder.reads.most_common(3)
    expected = {stored.name: int(np.prod(stored.shape)) for stored in stored_tensors(SETTINGS)}
    assert recorder.elements == expected
    tiny.assert_trees_equal(jax.tree.map(np.asarray, loaded), jax.tree.map(np.asarray, tiny.parameters(SETTINGS)))


def test_a_split_tensor_is_read_in_its_devices_slices(folder, monkeypatch) -> None:
    headers, recorder = weights.read_headers(folder), Recorder()
    monkeypatch.setattr(weights, "safe_open", recorder)
    weights.load_weights(headers, SETTINGS, make_mesh(1, 2, 2, devices=jax.devices()[:4]))
    indices = [index for name, index in recorder.reads if name == "model.layers.1.self_attn.q_proj.weight"]
    rows, columns = SETTINGS.heads * SETTINGS.head_dim, SETTINGS.d_model
    half = [(0, rows // 2), (rows // 2, rows)], [(0, columns // 2), (columns // 2, columns)]
    assert sorted(indices) == sorted(f"({slice(*r)}, {slice(*c, 1)})" for r in half[0] for c in half[1])


def test_an_export_from_a_mesh_is_the_one_from_a_device_bit_for_bit(folder, tmp_path) -> None:
    spread = model_folder.load(folder, make_mesh(2, 2, 2))
    model_folder.save(tmp_path / "spread", SETTINGS, spread, TEXT, max_shard_bytes=20_011)
    files = sorted(path.name for path in folder.iterdir())
    assert len([name for name in files if name.endswith(".safetensors")]) > 2
    assert files == sorted(path.name for path in (tmp_path / "spread").iterdir())
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / "spread" / name).read_bytes(), name


@pytest.mark.parametrize(
    "stored, dtype, line",
    [
        ("float32", jnp.float32, "float32 as stored"),
        ("bfloat16", jnp.bfloat16, "bfloat16 as stored"),
        ("bfloat16", jnp.float32, "bfloat16 -> float32"),
        ("float32", jnp.bfloat16, "float32 -> bfloat16, rounded"),
        ("float16", jnp.bfloat16, "float16 -> bfloat16, rounded"),
    ],
)
def test_a_line_says_how_an_import_changes_numbers(stored, dtype, line, tmp_path) -> None:
    model_folder.save(tmp_path / "m", SETTINGS, tiny.parameters(SETTINGS), TEXT, dtype=stored)
    headers = weights.read_headers(tmp_path / "m")
    assert weights.conversions(headers, dtype) == f"{len(headers)} tensors {line}"
    loaded = weights.load_weights(headers, SETTINGS, make_mesh(1, 1, 1, devices=jax.devices()[:1]), dtype)
    want = jax.tree.map(lambda x: np.asarray(x.astype(stored).astype(dtype), np.float32), tiny.parameters(SETTINGS))
    tiny.assert_trees_equal(jax.tree.map(lambda x: np.asarray(x, np.float32), loaded), want)


def test_that_line_ignores_tensors_that_are_not_parameters(folder) -> None:
    """Old folders hold rotary frequencies, of whatever type."""
    odd = weights.Header(folder, (5,), "F64", "rotary_emb.inv_freq")
    headers = weights.read_headers(folder)
    line = weights.conversions({**headers, "model.layers.0.self_attn.rotary_emb.inv_freq": odd}, jnp.float32)
    assert line == weights.conversions(headers, jnp.float32) == f"{len(headers)} tensors float32 as stored"
