"""The exported folder has a model card with the base's licence, and is uploaded only where the config says so."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from qrpo_jax import pipeline
from qrpo_jax.errors import ServerError, UserError
from qrpo_jax.hugging_face import model_folder, publish
from qrpo_jax.hugging_face.base_card import front_matter
from qrpo_jax.hugging_face.hub import HubModel
from qrpo_jax.job import card
from qrpo_jax.job.card import describe_evaluation
from qrpo_jax.sweep.points import points_of
from tests.helpers.fake_hub import FakeHub, Model, files_of
from tests.helpers.jobs import job
from tests.helpers.sweep_jobs import toy_config

TINY = {"prompts__count": 5, "prompts__held_out": 3, "sample__completions": 2, "evaluate__completions": 2}
TINY |= {"train__batch_size": 5, "sample__max_new_tokens": 4, "evaluate__max_new_tokens": 4}
CARD = "---\nlicense: llama3.1\nlanguage:\n- en\n---\n# The base\n"


@pytest.fixture
def base(fixtures: Path, tmp_path: Path) -> Path:
    """The stories model with a card and a licence."""
    folder = tmp_path / "secret-place" / "stories"
    shutil.copytree(fixtures / "stories260K-hf", folder)
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("terms")
    return folder


def stories(tmp_path: Path, base: Path | str, **overrides: object):
    prompts = tmp_path / "secret-place" / "stories.jsonl"
    prompts.parent.mkdir(exist_ok=True)
    prompts.write_text("".join(json.dumps({"prompt": f"One day, {name}"}) + "\n" for name in "ABCDEFGH"))
    keys = {"model__path": str(base), "model__template": "plain", "prompts__source": f"jsonl:{prompts}"}
    keys |= {"reward__name": "length(1, 9)", "stages": ("sample", "score", "reference", "train", "evaluate", "export")}
    return job(tmp_path / "run", **TINY | keys | overrides)


@pytest.fixture
def token(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub that knows who we are."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub


@pytest.mark.slow
def test_the_folder_has_a_card_with_results_and_the_base_s_licence_and_no_path(tmp_path, base):
    run = stories(tmp_path, base)
    assert pipeline.run(run)
    folder = run.folder("export") / "model"
    text = (folder / "README.md").read_text()
    metadata = front_matter(text)
    assert metadata["license"] == "llama3.1" and metadata["language"] == ["en"], metadata
    assert "base_model" not in metadata, "a folder is no id of the hub"
    assert (folder / "LICENSE").read_text() == "terms"
    results = json.loads((run.workdir / "results.json").read_text())
    assert f"| reference, mean reward | {results['reference']['mean_reward']:.3f} (" in text, text
    assert "jsonl:stories.jsonl" in text and "a folder named stories" in text
    assert "secret-place" not in text and str(tmp_path) not in text, text


def test_a_base_of_the_hub_is_named_and_a_published_folder_is_the_exported_one(tmp_path, base, token):
    token.models["org/tiny"] = Model()
    token.models["org/tiny"].push(files_of(base))
    run = stories(
        tmp_path,
        "org/tiny",
        export__push_to_hub="me/aligned",
        stages=("sample", "score", "reference", "train", "export"),
    )
    assert pipeline.run(run)
    (commit,) = token.models["me/aligned"].commits.values()
    assert commit == files_of(run.folder("export") / "model")
    assert front_matter(commit["README.md"].decode())["base_model"] == "org/tiny"
    assert "## Results" not in commit["README.md"].decode(), "it was not evaluated"
    assert token.created["me/aligned"]["visibility"] == "private", token.created


def test_nothing_is_uploaded_by_default_and_a_base_without_a_licence_is_said(tmp_path, base, token, capsys):
    calls = token.calls
    (base / "README.md").unlink()
    assert pipeline.run(stories(tmp_path, base))
    assert token.calls == calls and not token.created
    assert "WARNING: the base names no licence" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["aligned", "me/", "me/aligned/x", "https://hub/me/aligned"])
def test_a_name_that_no_model_can_have_is_refused_before_anything_runs(tmp_path, base, token, name):
    with pytest.raises(UserError, match="allowed: ORG/NAME.*config.export.push_to_hub"):
        pipeline.run(stories(tmp_path, base, export__push_to_hub=name))
    assert not (tmp_path / "run").exists()


def test_without_a_token_it_is_refused_before_anything_runs(tmp_path, base, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="does not know who you are.*hf auth login.*config.export.push_to_hub"):
        pipeline.run(stories(tmp_path, base, export__push_to_hub="me/aligned"))
    assert not (tmp_path / "run").exists()


def test_a_hub_that_refuses_is_one_line_and_the_folder_stays(tmp_path, token):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    token.token = "hf_other"
    with pytest.raises(
        ServerError, match="is complete, but the hub did not take it as me/aligned.*tries again"
    ) as error:
        publish.push(folder, "me/aligned", private=True)
    assert "\n" not in str(error.value) and (folder / "config.json").exists()
    assert HubModel("me/aligned", "").name not in token.models


def test_points_of_a_sweep_are_not_published_as_one_model():
    grid = {"train.beta": [0.1, 0.3]}
    with pytest.raises(UserError, match="would both be published as me/aligned"):
        points_of(toy_config(grid, export__push_to_hub="me/aligned"))
    names = [{"train.beta": [beta], "export.push_to_hub": [f"me/aligned-{beta}"]} for beta in (0.1, 0.3)]
    assert len(points_of(toy_config(names))) == 2


def test_completions_are_those_of_all_seeds_of_the_evaluation(tmp_path: Path, base: Path) -> None:
    config = stories(tmp_path, base, evaluate__seeds=(0, 1, 2)).config
    assert "with 6 completions each at temperature 1;" in describe_evaluation(config), describe_evaluation(config)


def test_a_card_of_an_on_policy_run_says_what_its_policy_drew_and_no_key_that_it_does_not_use(tmp_path):
    own = {"train__data": "on_policy", "rollout__iterations": 7, "rollout__prompts": 13, "rollout__completions": 3}
    config = job(tmp_path, train__objective="grpo", stages=("sft", "train", "export"), **own).config
    shown = card.settings(config)
    assert shown["train.data"] == "on_policy" and shown["rollout.iterations"] == 7 and "train.beta" in shown
    assert not {"train.transform", "train.length_normalised"} & shown.keys(), shown
    text = card.describe_data(config)
    assert text.endswith("3 completions of the policy itself for each of 13 prompts, 7 times"), text
    stored = job(tmp_path, train__objective="qrpo").config
    assert "train.transform" in card.settings(stored) and "policy itself" not in card.describe_data(stored)


def test_a_model_after_sft_alone_is_exported_with_a_card_of_its_own(tmp_path: Path) -> None:
    run = job(tmp_path / "run", **TINY, sft__examples=32, stages=("sft", "export"))
    assert pipeline.run(run)
    folder = run.folder("export") / "model"
    exported, trained = model_folder.load(folder, run.mesh, jnp.float32), run.reference_parameters(run.mesh)
    different = jax.tree.map(lambda one, other: int((one != other).sum()), exported, trained)
    assert not any(jax.tree.leaves(different)), different
    untrained = run.fresh_parameters(run.mesh)
    assert any(jax.tree.leaves(jax.tree.map(lambda one, other: bool((one != other).any()), exported, untrained)))
    text = (folder / "README.md").read_text()
    assert "trained with SFT" in text and "- Data: demonstrations of programs." in text, text
    assert "sft.learning_rate" in text and "train.beta" not in text and "Reward" not in text, text


def test_export_without_training_and_a_step_of_sft_are_refused(tmp_path: Path, base: Path) -> None:
    with pytest.raises(UserError, match="'train' or 'sft' has trained.*change config.stages"):
        pipeline.run(stories(tmp_path, base, stages=("sample", "export")))
    with pytest.raises(UserError, match="best, a step of stage 'train'.*config.export.checkpoint"):
        pipeline.run(job(tmp_path / "run", stages=("sft", "evaluate", "export"), export__checkpoint="best"))
    assert not (tmp_path / "run").exists()
