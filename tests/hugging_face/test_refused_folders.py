"""Model folders that cannot be read are refused, naming the file, the key or the tensor."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.hugging_face.tokenizer import open_text
from tests.helpers.exports import TIED, assert_identical, one_device


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architectures=['GPT2LMHeadModel']; supported: ['LlamaForCausalLM']"),
        ({"architectures": None}, "architectures=None"),
        ({"model_type": "mistral"}, "model_type='mistral'; supported: 'llama'"),
        ({"attention_bias": 1}, "attention_bias=1; supported: True, False"),
        ({"attention_bias": True}, "lack tensor model.layers.0.self_attn.k_proj.bias"),
        ({"mlp_bias": None}, "mlp_bias=None; supported: True, False"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; supported: 'silu'"),
        ({"pretraining_tp": 2}, "pretraining_tp=2"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "rope_parameters": None}, "rope_type='dynamic'"),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}, "rope_parameters": None}, "rope_type='longrope'"),
        ({"rope_scaling": {"rope_type": "llama3"}, "rope_parameters": None}, "does not say factor for rope type"),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "sets factor for rope type default"),
        ({"rope_parameters": {"rope_theta": 7.0}}, "gives rope_theta twice, as 10000.0 and 7.0"),
        ({"rope_parameters": [1]}, "rope_parameters=[1]"),
        ({"rope_theta": -1, "rope_parameters": None}, "rope_theta=-1; it must be a positive float"),
        ({"hidden_size": "42"}, "hidden_size='42'; it must be a positive int"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"num_key_value_heads": 4}, "6 heads and 4 kv_heads"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes'"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier=12.0, which is not supported"),
    ],
)
def test_settings_that_change_the_mathematics_are_refused_by_name(copy: Path, changes: dict, message: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    refused(copy, message)


@pytest.mark.parametrize("key", ["vocab_size", "num_attention_heads", "rms_norm_eps"])
def test_settings_without_a_size_are_refused(copy: Path, key: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    del config[key]
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy, f"does not say {key}")


def edit(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def zeros(tensors: dict[str, np.ndarray], of: str, first: float, to: str, second: float) -> None:
    """Two tensors that are equal and yet differ in the sign of a zero in their last row."""
    tensors[to] = tensors[of].copy()
    tensors[of][-1, -1], tensors[to][-1, -1] = first, second


def index(weight_map: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return apply


Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "does not exist"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json in"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds a list"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json is not JSON"),
        (pickle_only, "no weights in"),
        (truncate, "model.safetensors is not a whole safetensors file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "is not a whole safetensors file"),
        (edit(lambda t: t.pop(Q0)), f"lack tensor {Q0} of shape [60, 42]"),
        (edit(lambda t: [t.pop(name) for name in list(t)[3:]]), "more"),
        (edit(lambda t: t.update({"model.layers.3.x": np.ones(2, np.float32)})), "model.layers.3.x of shape [2]"),
        (edit(lambda t: t.update({Q0: t[Q0].T.copy()})), f"{Q0} in"),
        (edit(lambda t: t.update({Q0: t[Q0].T.copy()})), "has shape [42, 60]; config.json asks for [60, 42]"),
        (edit(lambda t: t.update({Q0: t[Q0].astype(np.int8)})), "is I8; allowed: F32, BF16, F16"),
        (edit(lambda t: t.update({Q0: t[Q0].astype(np.float64)})), "is F64"),
        (
            edit(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 2})),
            "lm_head.weight differs from model.embed_tokens.weight",
        ),
        (
            edit(lambda t: zeros(t, "model.embed_tokens.weight", 0.0, "lm_head.weight", -0.0)),
            "lm_head.weight differs",
        ),
        (
            edit(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].astype(np.float16)})),
            "lm_head.weight differs",
        ),
        (index({Q0: "gone.safetensors"}), f"places tensor {Q0} in 'gone.safetensors'"),
        (index({Q0: "../copy/part.safetensors"}), "there is no such file"),
        (index({"nothing": "part.safetensors"}), "places tensor nothing in part.safetensors, which does not have it"),
        (index([]), "no weight_map"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(copy: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(copy)
    refused(copy, message)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError) as caught:
        model_folder.check_folder(folder)
    assert message in str(caught.value), str(caught.value)
    assert str(folder) in str(caught.value) and caught.value.about == ("path",), str(caught.value)
    assert "\n" not in str(caught.value)


def with_number(name: str, value: float) -> Callable[[Path], None]:
    """Replaces one number of a tensor."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(-1)[7] = value

    return edit(change)


@pytest.mark.parametrize("name", [Q0, "model.embed_tokens.weight", "model.norm.weight"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name_when_they_are_read(
    copy: Path, name: str, value: float
) -> None:
    with_number(name, value)(copy)
    with pytest.raises(UserError, match=f"tensor {name} in .* holds NaN or infinity \\(1 of its numbers\\)") as caught:
        model_folder.load(copy, one_device())
    assert caught.value.about == ("path",)


def test_weights_beyond_the_range_of_their_type_in_memory_are_refused_by_name(copy: Path) -> None:
    with_number(Q0, 3.4e38)(copy)
    model_folder.load(copy, one_device())
    with pytest.raises(UserError, match=f"tensor {Q0} in .* has numbers beyond the range of bfloat16 \\(1 of them\\)"):
        model_folder.load(copy, one_device(), jnp.bfloat16)


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("token", [94, [2, 10**30]])
def test_end_tokens_that_the_model_does_not_know_are_refused(copy: Path, file: str, token: object) -> None:
    settings = model_folder.check_folder(copy)
    model_folder.check_vocabulary(settings, open_text(copy, "plain"))
    content = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(content | {"eos_token_id": token}))
    with pytest.raises(UserError, match="eos_token_id names token .*, and the model knows 94 tokens") as caught:
        model_folder.check_vocabulary(settings, open_text(copy, "plain"))
    assert caught.value.about == ("path",)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "null"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[" * 100_000),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "[" * 100_000),
        ("tokenizer_config.json", '{"tokenizer_class": 5}'),
        ("tokenizer_config.json", '{"model_max_length": "long"}'),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_refused_in_one_line(copy: Path, file: str, content: str) -> None:
    (copy / file).write_text(content)
    with pytest.raises(UserError, match="^the tokenizer in .* cannot be read") as caught:
        open_text(copy, "plain")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 and caught.value.about == ("path",)


def test_tensors_that_follow_from_others_are_allowed(copy: Path) -> None:
    """A tied head equal to the embedding and the rotary frequencies of old checkpoints change nothing."""
    before = model_folder.load(copy, one_device())
    edit(
        lambda t: t.update(
            {
                "lm_head.weight": t["model.embed_tokens.weight"].copy(),
                "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(5, np.float32),
            }
        )
    )(copy)
    assert_identical(model_folder.load(copy, one_device()), before)


def test_tied_heads_are_compared_a_part_at_a_time(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the largest tensors; a difference in any part is detected."""
    parts = []

    class File:
        def __init__(self, path: Path) -> None:
            self.opened = real(path)

        def __enter__(self) -> "File":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def get_slice(self, name: str) -> object:
            tensor = self.opened.get_slice(name)

            class Slice:
                def __getitem__(self, rows: slice) -> np.ndarray:
                    parts.append((name, tensor[rows].size))
                    return tensor[rows]

            return Slice()

    edit(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))(copy)
    real = model_folder.open_tensors
    monkeypatch.setattr(model_folder, "open_tensors", File)
    monkeypatch.setattr(model_folder, "COMPARED_NUMBERS", 11 * TIED.d_model + 5)
    model_folder.check_folder(copy)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        sizes = [size for tensor, size in parts if tensor == name]
        assert max(sizes) == 11 * TIED.d_model and sum(sizes) == TIED.vocab_size * TIED.d_model, sizes
    for row in (0, 10, 11, 93):

        def change(tensors: dict[str, np.ndarray], row: int = row) -> None:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
            tensors["lm_head.weight"][row, 3] += 1e-3

        edit(change)(copy)
        refused(copy, "lm_head.weight differs")
