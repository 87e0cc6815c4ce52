"""Models of the hub: what is downloaded of them, at which commit, and what is said where there is none.

The hub is a small server on this machine, which the library huggingface_hub asks as it would ask the real one.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face.hub import HubModel, download, read_id, resolve
from tests.helpers.fake_hub import Model
from tests.helpers.jobs import environment

TEXT = {"config.json": b"{}", "tokenizer.json": b"{}", "generation_config.json": b"{}", "chat_template.jinja": b"x"}
TEXT |= {"README.md": b"---\nlicense: mit\n---", "LICENSE.txt": b"terms"}
REFUSED = {"modeling_custom.py": b"raise SystemExit", "pytorch_model.bin": b"pickle", "consolidated.safetensors": b"c"}
WHOLE = TEXT | REFUSED | {"model.safetensors": b"weights", "original/model.safetensors": b"o", "train.py": b"r"}
NAME = HubModel("org/tiny-model_1.0", "")


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("org/name", ("org/name", "")),
        ("org/na.me-1@refs/pr/4", ("org/na.me-1", "refs/pr/4")),
        ("org/name@0123abc", ("org/name", "0123abc")),
        *(
            (text, None)
            for text in ("name", "/org/name", "./org", "../name", "a/b/c", "gs://b/c", "org/", "~/name", "")
        ),
    ],
)
def test_an_id_has_two_parts_and_may_have_a_revision(text, model):
    assert read_id(text) == (None if model is None else HubModel(*model))


def test_only_configuration_tokenizer_safetensors_card_and_licence_are_downloaded(hub):
    hub.models[NAME.name] = Model()
    commit = hub.models[NAME.name].push(WHOLE)
    assert resolve(NAME) == commit
    folder = download(NAME, commit, weights=False)
    assert names(folder) == set(TEXT) and folder.name == commit
    folder = download(NAME, commit, weights=True)
    assert names(folder) == {*TEXT, "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert all(count == 1 for count in hub.fetched.values()), hub.fetched
    assert not any(name in key for key in hub.fetched for name in REFUSED), hub.fetched


def test_weights_in_several_files_are_those_of_their_index(hub):
    parts = {f"model-0000{i}-of-00002.safetensors": f"{i}".encode() for i in (1, 2)}
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors", "c": 3}}
    files = TEXT | REFUSED | parts | {"model.safetensors.index.json": json.dumps(index).encode()}
    hub.models[NAME.name] = Model()
    folder = download(NAME, hub.models[NAME.name].push(files), weights=True)
    assert names(folder) == {*TEXT, *parts, "model.safetensors.index.json"}


def test_a_commit_stays_when_its_branch_moves_and_needs_no_hub_again(hub):
    model = hub.models[NAME.name] = Model()
    first = model.push(WHOLE)
    second = model.push(WHOLE | {"config.json": b'{"new": 1}'}, branch="next")
    assert resolve(NAME) == first and resolve(HubModel(NAME.name, "next")) == second
    assert resolve(HubModel(NAME.name, first)) == first
    download(NAME, first, weights=True)
    third = model.push(WHOLE | {"config.json": b'{"new": 2}'})
    assert resolve(NAME) == third
    assert (download(NAME, first, weights=True) / "config.json").read_bytes() == b"{}"
    hub.stop()
    assert (download(NAME, first, weights=True) / "config.json").read_bytes() == b"{}"
    assert resolve(NAME) == third, "the cache knows where the branch was"
    with pytest.raises(
        UserError, match="does not exist, and the hub cannot be reached, nor does its cache have"
    ) as error:
        resolve(HubModel("org/other", ""))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            HubModel("org/none", ""),
            "model folder org/none does not exist, and the hub has no model of that name, or a",
        ),
        (HubModel(NAME.name, "v9"), r"model org/tiny-model_1.0 of the hub has no revision 'v9'"),
        (HubModel("org/gated", ""), "model org/gated of the hub is gated: accept its terms on its page, then log in"),
        (HubModel("org/data", ""), "org/data of the hub has no config.json at commit [0-9a-f]{40}; name a whole model"),
        (HubModel("org/a--b..c", ""), "model org/a--b..c of the hub cannot be downloaded: HFValidationError"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line(hub, model, message):
    hub.models |= {NAME.name: Model(), "org/gated": Model(gated=True), "org/data": Model()}
    for name in hub.models:
        hub.models[name].push({"README.md": b"r"} if name == "org/data" else WHOLE)
    with pytest.raises(UserError, match=message) as error:
        download(model, resolve(model), weights=True)
    assert "\n" not in str(error.value) and error.value.about == ("path",), error.value


def test_without_the_library_a_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"model folder org/x does not exist, and models of the hub need .*'.\[hf\]'"):
        resolve(HubModel("org/x", ""))


PROGRAM = """
import sys
from qrpo_jax.hugging_face.hub import HubModel, download
print(download(HubModel(sys.argv[1], ""), sys.argv[2], weights=True))
"""


@pytest.mark.slow
def test_processes_of_a_host_download_each_file_once(hub, tmp_path):
    model = hub.models[NAME.name] = Model()
    commit = model.push(WHOLE | {"model.safetensors": b"w" * 5_000_000})
    variables = environment(HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="0")
    command = [sys.executable, "-c", PROGRAM, NAME.name, commit]
    started = [subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {process.communicate()[0].strip() for process in started}
    assert len(folders) == 1 and [process.returncode for process in started] == [0] * 3
    assert (Path(folders.pop()) / "model.safetensors").stat().st_size == 5_000_000
    assert all(count == 1 for count in hub.fetched.values()), hub.fetched
