"""Exported tokenizers are files that transformers 4 and 5 both know."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrpo_jax.data.text import Text, make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.hugging_face.tokenizer import open_tokenizer
from qrpo_jax.hugging_face.tokenizer_files import NEW_CLASSES, OLD_CLASS, SETTINGS, save_tokenizer
from tests.helpers import family_cases as cases
from tests.helpers.exports import CHARACTERS, TIED, fresh

# A folder with transformers 4 and what it needs beside torch, as `pip install --target` makes it.
TRANSFORMERS_4 = os.environ.get("QRPO_TRANSFORMERS_4", "")
READ = """
import json, sys
import numpy as np, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

assert transformers.__version__.startswith("4."), transformers.__version__
results = {}
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    tokens = torch.tensor(np.load(folder + "/../tokens.npy"))
    with torch.no_grad():
        np.save(folder + "/../logits.npy", model.eval()(tokens).logits.numpy())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    results[folder] = {
        "wrong": {key: value for key, value in info.items() if value},
        "dtype": str(model.dtype),
        "tokens": tokenizer.encode("ABBA", add_special_tokens=False),
        "chat": tokenizer.apply_chat_template([{"role": "user", "content": "AB"}], tokenize=False),
    }
print(json.dumps(results))
"""


def source(folder: Path, **settings: Any) -> Path:
    """A model folder as others publish it, as far as a tokenizer is concerned."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    vocabulary_tokenizer(CHARACTERS).save_pretrained(folder)
    written = json.loads((folder / SETTINGS).read_text()) | settings
    (folder / SETTINGS).write_text(json.dumps({key: value for key, value in written.items() if value is not None}))
    return folder


def exported(tmp_path: Path, folder: Path) -> Path:
    tokenizer, _ = open_tokenizer(folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_tokenizer(tokenizer, tmp_path / "out")
    return tmp_path / "out"


def settings_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / SETTINGS).read_text())


def test_a_tokenizer_made_here_has_a_class_that_transformers_4_knows(tmp_path: Path, tokenizer_text: Text) -> None:
    model_folder.save(tmp_path / "m", TIED, fresh(TIED, 0), tokenizer_text)
    written = settings_of(tmp_path / "m")
    assert written["tokenizer_class"] == OLD_CLASS and "backend" not in written
    assert (tmp_path / "m" / "chat_template.jinja").read_text() == tokenizer_text.tokenizer.chat_template


@pytest.mark.parametrize(
    "name", ["LlamaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "PythonBackend", None]
)
def test_the_class_is_that_of_the_source_unless_it_is_new(tmp_path: Path, name: str | None) -> None:
    folder = source(tmp_path / "source", tokenizer_class=name)
    written = settings_of(exported(tmp_path, folder))
    assert written.get("tokenizer_class") == (OLD_CLASS if name in NEW_CLASSES else name)


def test_the_class_may_be_in_config_json(tmp_path: Path) -> None:
    folder = source(tmp_path / "source", tokenizer_class=None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    assert settings_of(exported(tmp_path, folder))["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_files_and_settings_of_the_source_are_kept_byte_by_byte(tmp_path: Path) -> None:
    kept = {"add_bos_token": True, "legacy": False, "model_max_length": 61, "additional_special_tokens": ["<s>"]}
    folder = source(tmp_path / "source", tokenizer_class="LlamaTokenizerFast", **kept)
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
    (folder / "tokenizer.model").write_bytes(b"\x00sentences")
    (folder / "thesis.tex").write_text("not of the tokenizer")
    out = exported(tmp_path, folder)
    names = {"config.json", "tokenizer.json", "special_tokens_map.json", "tokenizer.model", "chat_template.jinja"}
    assert {path.name for path in out.iterdir()} == names | {SETTINGS}
    for name in names:
        assert (out / name).read_bytes() == (folder / name).read_bytes(), name
    expected = settings_of(folder)
    del expected["backend"]
    assert settings_of(out) == expected


def test_special_tokens_have_the_name_that_both_know_and_code_is_not_exported(tmp_path: Path) -> None:
    code = {"AutoTokenizer": [None, "mine.Tokenizer"]}
    folder = source(tmp_path / "source", extra_special_tokens=["!", "#"], auto_map=code)
    out = exported(tmp_path, folder)
    written = settings_of(out)
    assert written["additional_special_tokens"] == ["!", "#"]
    assert not {"extra_special_tokens", "auto_map"} & written.keys()
    assert open_tokenizer(out)[0].all_special_tokens == open_tokenizer(folder)[0].all_special_tokens


def test_a_tokenizer_that_changed_since_it_was_opened_is_refused(tmp_path: Path) -> None:
    folder = source(tmp_path / "source")
    tokenizer, _ = open_tokenizer(folder)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace('"A": 36', '"A": 9999'))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(UserError, match="the tokenizer in .*/source changed while the job ran"):
        save_tokenizer(tokenizer, tmp_path / "out")


@pytest.mark.parity
@pytest.mark.skipif(not TRANSFORMERS_4, reason="QRPO_TRANSFORMERS_4 names no folder")
def test_transformers_4_loads_every_family_and_gives_the_logits_of_transformers_5(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.helpers import live_models
    from tests.helpers.family_models import load

    tokenizer = vocabulary_tokenizer([chr(65 + i) for i in range(20)])
    words = make_text(tokenizer, "chat", (tokenizer.eos_token_id,))
    folders, expected = [], {}
    for case in cases.CASES:
        model = live_models.model(case, live_models.SIZES["deep"])
        model.save_pretrained(tmp_path / case / "source")
        settings, parameters = load(tmp_path / case / "source")
        folder = tmp_path / case / "out"
        model_folder.save(folder, settings, parameters, words)
        tokens = cases.tokens(case, settings.vocab_size, 2)[:, :25]
        np.save(tmp_path / case / "tokens.npy", tokens)
        expected[case] = live_models.logits_of(model, tokens)
        folders.append(str(folder))
    done = subprocess.run(
        [sys.executable, "-c", READ, *folders],
        env={**os.environ, "PYTHONPATH": TRANSFORMERS_4},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    for case, folder in zip(cases.CASES, folders, strict=True):
        got = results[folder]
        assert not got["wrong"] and got["dtype"] == "torch.float32", (case, got)
        assert got["tokens"] == words.encode("ABBA") and got["chat"] == "<s>AB", (case, got)
        # The activation of Apertus has parameters of its own, which transformers 4 rounds to bfloat16.
        atol = 2e-2 if case == "apertus" else 2e-5
        np.testing.assert_allclose(np.load(Path(folder).parent / "logits.npy"), expected[case], rtol=0, atol=atol)
