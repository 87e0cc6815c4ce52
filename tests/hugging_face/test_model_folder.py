"""Hugging Face folders: they come back as they were written, and faults are named."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from safetensors.numpy import load_file

from configs import default
from qrpo_jax import files
from qrpo_jax.data.text import Text, make_text
from qrpo_jax.data.vocabulary import CHAT_TEMPLATE, vocabulary_tokenizer
from qrpo_jax.devices.mesh import make_mesh
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face import config as model_config
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.hugging_face.tokenizer import open_text
from qrpo_jax.job.job import Job, Shape, Shard
from qrpo_jax.model import decoder, rope
from qrpo_jax.sampling import sampler
from qrpo_jax.stages import STAGES, export
from tests.helpers import sequences
from tests.helpers.exports import CHARACTERS, TIED, assert_identical, fresh, one_device
from tests.helpers.row_log_probs import row_log_probs

LLAMA3 = dataclasses.replace(
    TIED,
    tie_embeddings=False,
    norm_epsilon=3e-6,
    rope_theta=5000.0,
    rope_scaling=rope.RopeScaling(8.0, 1.0, 4.0, 13),
)
SETTINGS = {
    "tied": TIED,
    "untied": dataclasses.replace(TIED, tie_embeddings=False),
    "llama3": LLAMA3,
    "multi-head": dataclasses.replace(TIED, kv_heads=6, head_dim=14),
}


@pytest.fixture
def stories(fixtures: Path) -> Path:
    if not (fixtures / "stories260K-hf").is_dir():
        pytest.skip(f"no stories260K-hf in {fixtures}")
    return fixtures / "stories260K-hf"


def logits(settings: decoder.DecoderSettings, parameters: decoder.Parameters, tokens_BxL: np.ndarray) -> np.ndarray:
    @jax.jit
    def forward(parameters: decoder.Parameters, tokens_BxL: jax.Array) -> jax.Array:
        model = decoder.nnx.merge(decoder.graph(settings), parameters)
        hidden_BxLxD, _ = model(tokens_BxL, sequences.one_a_row(tokens_BxL.shape))
        return model.logits(hidden_BxLxD)

    return np.asarray(forward(parameters, jnp.asarray(tokens_BxL)))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("max_shard_bytes", [model_folder.MAX_SHARD_BYTES, 20_011])
def test_export_then_import_is_identity(name: str, max_shard_bytes: int, tmp_path: Path, tokenizer_text: Text) -> None:
    settings = SETTINGS[name]
    parameters = fresh(settings, 3)
    folder = tmp_path / "deep" / "model"
    model_folder.save(folder, settings, parameters, tokenizer_text, max_shard_bytes=max_shard_bytes)
    assert model_folder.check_folder(folder) == settings
    assert_identical(model_folder.load(folder, one_device()), parameters)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert (files == ["model.safetensors"]) == (max_shard_bytes == model_folder.MAX_SHARD_BYTES), files
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_rounds_once_and_then_is_identity(dtype: str, tmp_path: Path, tokenizer_text: Text) -> None:
    parameters = fresh(TIED, 5)
    model_folder.save(tmp_path / "a", TIED, parameters, tokenizer_text, dtype=dtype)
    once = model_folder.load(tmp_path / "a", one_device())
    assert_identical(once, jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), parameters))
    model_folder.save(tmp_path / "b", TIED, once, tokenizer_text, dtype=dtype)
    assert_identical(model_folder.load(tmp_path / "b", one_device()), once)
    as_stored = model_folder.load(tmp_path / "b", one_device(), jnp.dtype(dtype))
    assert_identical(as_stored, jax.tree.map(lambda x: x.astype(dtype), parameters))


def test_matrices_are_stored_as_outputs_by_inputs(saved: Path) -> None:
    """q of head h, unit k is row h·K + k, the layout `q_proj` has; o is its mirror image."""
    parameters = fresh(TIED, 7)
    stored = load_file(saved / "model.safetensors")
    q, o = parameters["layers"]["attention"]["q"], parameters["layers"]["attention"]["o"]
    for layer, head, unit in [(0, 0, 0), (2, 5, 9), (1, 3, 7)]:
        row = head * TIED.head_dim + unit
        at = f"model.layers.{layer}.self_attn"
        np.testing.assert_array_equal(stored[f"{at}.q_proj.weight"][row], q[layer, :, head, unit])
        np.testing.assert_array_equal(stored[f"{at}.o_proj.weight"][:, row], o[layer, head, unit])
    assert stored["model.layers.1.mlp.down_proj.weight"].shape == (42, 58)


def test_stories_import_export_import_is_identity(stories: Path, tmp_path: Path) -> None:
    settings = model_folder.check_folder(stories)
    parameters = model_folder.load(stories, one_device())
    model_folder.save(tmp_path / "out", settings, parameters, open_text(stories, "plain"))
    assert model_folder.check_folder(tmp_path / "out") == settings
    assert_identical(model_folder.load(tmp_path / "out", one_device()), parameters)
    before, after = load_file(stories / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].tobytes() == after[name].tobytes(), name
    again = open_text(tmp_path / "out", "plain")
    assert again.encode("Once upon a time") == open_text(stories, "plain").encode("Once upon a time")
    assert again.end_tokens == (2,)


def test_stories_reproduces_the_reference_greedy_text(stories: Path) -> None:
    """200 greedy tokens after the beginning-of-sequence token alone."""
    settings = model_folder.check_folder(stories)
    opened = open_text(stories, "plain")
    draw = jax.jit(
        sampler.make_sampler(
            decoder.graph(settings),
            completions=1,
            max_new_tokens=200,
            temperature=0,
            end_tokens=opened.end_tokens,
        )
    )
    parameters = model_folder.load(stories, one_device())
    keys = jax.random.split(jax.random.key(0), 1)
    samples = draw(parameters, jnp.asarray([[opened.tokenizer.bos_token_id]]), jnp.asarray([1]), keys)
    expected = (stories / "greedy_200_tokens.txt").read_text(encoding="utf-8")
    assert int(samples.lengths_Pxn[0, 0]) == 200 and not bool(samples.finished_Pxn[0, 0])
    # This text begins a sequence, so the space that the tokenizer puts before every word is not part of it.
    assert opened.decode(np.asarray(samples.tokens_PxnxT[0, 0]), finished=False).removeprefix(" ") == expected


@pytest.mark.parametrize("name", ["tied", "llama3"])
def test_cached_decoding_is_the_full_forward(name: str) -> None:
    """Greedy tokens are the argmax of a full forward, and their log-probabilities are the scored ones."""
    settings, parameters = SETTINGS[name], fresh(SETTINGS[name], 11)
    graph = decoder.graph(settings)
    width, new, lengths_P = 7, 23, np.asarray([5, 2, 7])
    prompts_PxL = np.asarray(jax.random.randint(jax.random.key(2), (3, width), 0, settings.vocab_size))
    draw = sampler.make_sampler(graph, completions=2, max_new_tokens=new, temperature=0, end_tokens=(94,))
    keys = jax.random.split(jax.random.key(0), 3)
    samples = jax.jit(draw)(parameters, jnp.asarray(prompts_PxL), jnp.asarray(lengths_P), keys)
    rows_PxL = np.zeros((3, width + new), np.int32)
    for row, prompt, length, tokens in zip(rows_PxL, prompts_PxL, lengths_P, samples.tokens_PxnxT[:, 1], strict=True):
        row[: length + new] = [*prompt[:length], *tokens]
    at_PxL = np.broadcast_to(np.arange(width + new), rows_PxL.shape)
    own_PxL = (at_PxL >= lengths_P[:, None]) & (at_PxL < lengths_P[:, None] + new)
    next_PxL = np.roll(logits(settings, parameters, rows_PxL).argmax(-1), 1, axis=1)
    np.testing.assert_array_equal(next_PxL[own_PxL], rows_PxL[own_PxL])
    segments_PxL = (at_PxL < lengths_P[:, None] + new).astype(np.int32)
    layout, targets_PxL = sequences.layout(segments_PxL, at_PxL, own_PxL), sequences.targets(rows_PxL, own_PxL)
    scored_PxL = jax.jit(row_log_probs, static_argnums=0)(graph, parameters, rows_PxL, layout, targets_PxL)
    np.testing.assert_allclose(samples.log_probs_Pxn[:, 1], scored_PxL.sum(-1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sizes", [(1, 1, 2), (1, 2, 2), (2, 2, 2)])
def test_sharded_is_one_device(sizes: tuple[int, int, int], saved: Path) -> None:
    """A folder loaded onto a mesh holds the same parameters, spread out, and gives the same logits."""
    count = int(np.prod(sizes))
    if len(jax.devices()) < count:
        pytest.skip(f"{len(jax.devices())} devices")
    alone = model_folder.load(saved, one_device())
    spread = model_folder.load(saved, make_mesh(*sizes, devices=jax.devices()[:count]))
    assert_identical(spread, alone)
    q = spread["layers"]["attention"]["q"]
    assert q.addressable_shards[0].data.shape == (3, 42 // sizes[1], 6 // sizes[2], 10)
    tokens = np.asarray(jax.random.randint(jax.random.key(1), (2, 17), 0, TIED.vocab_size))
    np.testing.assert_allclose(logits(TIED, spread, tokens), logits(TIED, alone, tokens), rtol=0, atol=2e-5)


def test_rope_is_read_from_old_and_new_layouts(copy: Path) -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 13,
    }
    old = {"rope_theta": 5000.0, "rope_scaling": {"type": "llama3", **scaling}}
    new = {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "llama3", **scaling}}
    config = json.loads((copy / "config.json").read_text())
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
        del config[key]
    for layout in (old, new, {**old, **new}):
        (copy / "config.json").write_text(json.dumps({**config, **layout}))
        settings = model_config.read_settings(copy)
        assert settings.rope_theta == 5000.0 and settings.rope_scaling == LLAMA3.rope_scaling, layout
    (copy / "config.json").write_text(json.dumps(config))
    assert model_config.read_settings(copy).rope_theta == 10_000.0


@pytest.mark.parametrize("vocab_size", [84, 91, 83])
def test_models_may_have_more_embeddings_than_tokens_and_idle_special_tokens_more(
    vocab_size: int, tmp_path: Path
) -> None:
    """As Qwen's and Phi's are padded, and as Gemma 3 1B has a token for images without an embedding."""
    tokenizer = vocabulary_tokenizer(CHARACTERS[: 79 if vocab_size == 83 else 80])
    if vocab_size == 83:
        tokenizer.add_tokens(["<image>"], special_tokens=True)
    settings = dataclasses.replace(TIED, vocab_size=vocab_size)
    words = make_text(tokenizer, "chat", (tokenizer.eos_token_id,))
    assert len(tokenizer) == 84
    model_folder.save(tmp_path / "m", settings, fresh(settings, 7), words)
    opened = open_text(tmp_path / "m", "chat")
    model_folder.check_vocabulary(model_folder.check_folder(tmp_path / "m"), opened)
    assert max(opened.encode("<image>")) < vocab_size


@pytest.mark.parametrize("kind", ["plain token", "padding token", "token of the template"])
def test_tokens_in_use_without_an_embedding_are_refused(kind: str) -> None:
    tokenizer = vocabulary_tokenizer(CHARACTERS[:79])
    tokenizer.add_tokens(["<new>"], special_tokens=kind != "plain token")
    if kind == "padding token":
        tokenizer.pad_token = "<new>"
    if kind == "token of the template":
        tokenizer.chat_template = "<new>" + CHAT_TEMPLATE
    words = make_text(tokenizer, "chat", (tokenizer.eos_token_id,))
    with pytest.raises(ValueError, match=r"84 tokens, the model 83 embeddings and so none for '<new>', token 83"):
        model_folder.check_vocabulary(dataclasses.replace(TIED, vocab_size=83), words)


@pytest.mark.parametrize("eos", ["</s>", ["</s>"], True, [2, -1], 2.5, {"a": 1}])
def test_end_tokens_that_are_no_token_ids_are_refused(eos: object, copy: Path) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(
        UserError, match=r"generation_config.json sets eos_token_id=.*; it must be a token id"
    ) as caught:
        open_text(copy, "chat")
    assert "\n" not in str(caught.value) and caught.value.about == ("path",)
    (copy / "generation_config.json").write_text(json.dumps([eos]))
    with pytest.raises(ValueError, match=r"generation_config.json holds a list"):
        open_text(copy, "chat")


def test_an_export_keeps_the_sampling_settings_of_its_base(
    copy: Path, tmp_path: Path, tokenizer_text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM takes its defaults from there. The token ids are those of the policy."""
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    before = {**sampling, "eos_token_id": [5, 2], "transformers_version": "4.42.3", "_from_model_config": True}
    (copy / "generation_config.json").write_text(json.dumps(before))
    config, graph = default.get_config(), decoder.graph(TIED)
    config.stages, config.model.path = ("train", "export"), str(copy)
    job = Job(FrozenConfigDict(config), tmp_path / "run", Shard(0, 1), STAGES)
    job.__dict__ |= {"shape": Shape(TIED, graph, None, graph), "text": tokenizer_text}
    monkeypatch.setattr(export, "merged_parameters", lambda job: fresh(TIED, 7))
    export.run(job)
    written = json.loads((tmp_path / "run" / "export" / "model" / "generation_config.json").read_text())
    assert written == {**sampling, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (copy / "generation_config.json").unlink()
    assert model_folder.generation_settings(copy) == {}


def test_nothing_is_overwritten_and_nothing_half_written(copy: Path, tmp_path: Path, tokenizer_text: Text) -> None:
    parameters = fresh(TIED, 7)
    before = {path: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(UserError, match="exists and is not empty; remove it or choose another folder to export to"):
        model_folder.save(copy, TIED, parameters, tokenizer_text)
    assert {path: path.read_bytes() for path in copy.iterdir()} == before

    broken = {**parameters, "norm": {"scale": parameters["norm"]["scale"].at[1].set(jnp.nan)}}
    with pytest.raises(ValueError, match=r"model.norm.weight is not finite as float32"):
        model_folder.save(tmp_path / "new", TIED, broken, tokenizer_text)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]

    (tmp_path / "new").mkdir()
    model_folder.save(tmp_path / "new", TIED, parameters, tokenizer_text)
    assert_identical(model_folder.load(tmp_path / "new", one_device()), parameters)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "new"]


def test_a_folder_appears_whole_or_not_at_all(
    tmp_path: Path, tokenizer_text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is at the folder's place before the rename, and the renamed folder is complete."""
    renamed = []

    def rename(source: Path, target: Path) -> None:
        if target == tmp_path / "new":
            assert not target.exists()
            assert model_folder.check_folder(source) == TIED
            assert (source / "tokenizer.json").is_file() and source.parent == target.parent
            renamed.append(target)
        source.rename(target)

    monkeypatch.setattr(files.os, "replace", rename)
    leftover = tmp_path / f"{files.TEMPORARY}new-{'0' * 32}"
    leftover.mkdir()
    (leftover / "config.json").touch()
    model_folder.save(tmp_path / "new", TIED, fresh(TIED, 7), tokenizer_text)
    assert renamed == [tmp_path / "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_exported_files_have_the_permissions_of_any_new_file(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    ordinary = (tmp_path / "new").stat().st_mode
    modes = {path.name: oct(path.stat().st_mode) for path in saved.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} < modes.keys()
    assert set(modes.values()) == {oct(ordinary)}, modes


@pytest.mark.parametrize(
    ("settings", "dtype", "message", "about"),
    [
        (TIED, "int8", "dtype is 'int8'; allowed: float32, bfloat16, float16", "dtype"),
        (dataclasses.replace(TIED, d_model=43), "float32", "d_model 43 is not a multiple of heads 6", "settings"),
        (dataclasses.replace(TIED, vocab_size=83), "float32", "tokenizer has 84 tokens, the model 83", "path"),
    ],
)
def test_exports_that_could_not_be_loaded_are_refused(
    settings: decoder.DecoderSettings, dtype: str, message: str, about: str, tmp_path: Path, tokenizer_text: Text
) -> None:
    with pytest.raises(UserError) as caught:
        model_folder.save(tmp_path / "new", settings, {}, tokenizer_text, dtype=dtype)
    assert message in str(caught.value) and caught.value.about == (about,)
    assert list(tmp_path.iterdir()) == []


def test_exported_tokenizer_and_generation_settings_are_read_back(tmp_path: Path, tokenizer_text: Text) -> None:
    parameters = fresh(TIED, 0)
    both = dataclasses.replace(tokenizer_text, end_tokens=(2, 5))
    model_folder.save(tmp_path / "m", TIED, parameters, both, generation={"do_sample": True, "temperature": 0.7})
    written = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert written == {
        "bos_token_id": 1,
        "eos_token_id": [2, 5],
        "pad_token_id": 0,
        "do_sample": True,
        "temperature": 0.7,
    }
    opened = open_text(tmp_path / "m", "chat")
    assert opened.end_tokens == (2, 5)
    characters = "".join(CHARACTERS[3:19])
    assert opened.encode(characters) == tokenizer_text.encode(characters) == list(range(7, 23))
    assert opened.decode(np.asarray(opened.encode(characters)), finished=False) == characters
    assert opened.tokenizer.chat_template == tokenizer_text.tokenizer.chat_template
