"""Models of the hub in a job: pinned to the commit that a run started with, and given way to by local folders."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ml_collections import FrozenConfigDict
from safetensors.numpy import load_file, save_file

from configs import default
from qrpo_jax import pipeline
from qrpo_jax.errors import UserError
from qrpo_jax.faults.records import read_record
from qrpo_jax.job import model_folders
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.job.manifest import SETTINGS
from qrpo_jax.main import cpu_devices
from qrpo_jax.stages import STAGES
from tests.helpers import reward_folders as folders
from tests.helpers.fake_hub import Files, Model, files_of
from tests.helpers.jobs import ROOT, environment, override
from tests.helpers.together import run_together

POLICY, REWARD = "org/policy", "org/reward"


@pytest.fixture(scope="module")
def published(tmp_path_factory: Any) -> dict[str, Files]:
    """The files of a policy and of a reward model."""
    home = tmp_path_factory.mktemp("published")
    policy, reward = home / "policy", home / "reward"
    folders.write(reward, folders.ARMO)
    folders.write(policy, folders.CLASSIFIER)
    causal = folders.CLASSIFIER | {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    (policy / "config.json").write_text(json.dumps(causal))
    tensors = load_file(policy / "model.safetensors")
    save_file({name: x for name, x in tensors.items() if name != "score.weight"}, policy / "model.safetensors")
    return {POLICY: files_of(policy), REWARD: files_of(reward) | {"modeling_custom.py": b"raise SystemExit"}}


def as_if_anew() -> None:
    """A job in a new process looks commits up again."""
    model_folders.commit_of.cache_clear()


@pytest.fixture
def made(tmp_path: Path, hub: Any, published: dict[str, Files]) -> Callable[..., Job]:
    """A job that scores rows by a rule, with a policy of the hub."""
    for name, files in published.items():
        hub.models[name] = Model()
        hub.models[name].push(files)
    path = tmp_path / "data.jsonl"
    records = [{"prompt": f"What is {i}?", "completions": ['It "is"', "two"]} for i in range(5)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))

    def make(name: str = "run", fork: Path | None = None, **overrides: object) -> Job:
        as_if_anew()
        config = default.get_config()
        config.stages = ("score",)
        config.model.path, config.reward.name = POLICY, "dialogue_share"
        config.prompts.update({"source": f"jsonl:{path}", "count": 0, "held_out": 0, "unit": 3, "max_tokens": 64})
        config.pack.max_tokens = 128
        override(config, overrides)
        return Job(FrozenConfigDict(config), tmp_path / name, Shard(0, 1), STAGES, fork)

    return make


def recorded(run: Job, section: str = "model") -> str:
    return read_record(run.folder("score") / SETTINGS)[f"{section}.path commit"]


def test_a_run_keeps_its_commit_when_the_branch_moves_and_a_new_run_takes_the_new_one(made, hub, published, capsys):
    first = hub.models[POLICY].branches["main"]
    run = made()
    assert pipeline.run(run) and recorded(run) == first
    assert f"model: {POLICY} of the hub at commit {first}" in capsys.readouterr().err
    assert not any("safetensors" in file for file in hub.fetched), "score needs no weights of the policy"
    second = hub.models[POLICY].push(published[POLICY] | {"README.md": b"new"})
    again = made()
    assert pipeline.run(again), "the settings did not change"
    assert again.model_folder.commit == first
    assert made("other").model_folder.commit == second
    forked = made("forked", fork=run.workdir)
    assert forked.model_folder.commit == first
    assert pipeline.run(forked, run.workdir)
    assert recorded(forked) == first
    with pytest.raises(UserError, match=f"model.path: '{POLICY}' -> '{POLICY}@main'; model.path commit: '{first}' -> "):
        pipeline.run(made(model__path=f"{POLICY}@main"))


def test_a_resumed_run_needs_no_hub(made, hub):
    assert pipeline.run(made())
    hub.stop()
    assert pipeline.run(made())
    with pytest.raises(UserError, match="hub cannot be reached.*config.model.path"):
        pipeline.check(made("other", model__path="org/another"))


def test_a_reward_model_comes_from_the_hub_without_its_code(made, hub):
    run = made(reward__name="model", reward__path=f"{REWARD}@main")
    assert pipeline.run(run)
    assert recorded(run, "reward") == hub.models[REWARD].branches["main"]
    assert hub.fetched[f"{REWARD}/model.safetensors"] == 1 and not hub.fetched[f"{REWARD}/modeling_custom.py"]


def test_stages_that_train_get_the_weights(made, hub):
    run = made(stages=("score", "reference"))
    pipeline.check(run)
    assert hub.fetched[f"{POLICY}/model.safetensors"] == 1
    assert (run.model_folder.folder / "model.safetensors").is_file()


def test_a_local_folder_of_that_name_wins_and_is_said(made, hub, tmp_path, published, monkeypatch):
    for name, data in published[POLICY].items():
        path = tmp_path / POLICY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    run = made()
    pipeline.check(run)
    assert f"model: {POLICY} is a folder here, and the hub is not asked for it" in run.notes, run.notes
    assert run.model_folder.folder == Path(POLICY) and not run.model_folder.commit and hub.calls == 0
    assert "model.path weight bytes" in pipeline.settings(run, "score")


def test_the_number_of_devices_is_that_of_the_commit_of_the_run(made, hub, published):
    run = made()
    assert pipeline.run(run)
    first = recorded(run)
    hub.models[POLICY].push(published[POLICY] | {"README.md": b"new"})
    as_if_anew()
    config = made(stages=("score", "reference")).config
    assert cpu_devices(config, False, (run.workdir,)) >= 1
    assert model_folders.commit_of("model", POLICY, (run.workdir,)) == first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("offline", "message"), [("0", "the hub has no model of that name"), ("1", "the hub cannot be reached")]
)
def test_the_command_says_in_one_line_that_there_is_no_such_model(hub, tmp_path, offline, message):
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": offline}
    command = [sys.executable, "-m", "qrpo_jax.main", "--config=default", f"--workdir={tmp_path}/run"]
    command += ["--config.model.path=org/none", "--config.prompts.source=jsonl:none.jsonl"]
    done = subprocess.run(command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and message in lines[0], done.stderr
    assert "(config.model.path)" in lines[0] and not (tmp_path / "run").exists(), done.stderr


TOGETHER = """
from pathlib import Path
from qrpo_jax.errors import UserError
from qrpo_jax.job.model_folders import find

found = [find("model", arguments[0], (Path(arguments[1]),), weights=True).commit]
try:
    find("model", "org/none", (), weights=True)
except UserError as error:
    found.append(str(error))
answer(found)
"""


@pytest.mark.slow
def test_processes_of_a_job_take_the_commit_that_the_first_one_found(hub, published, tmp_path, monkeypatch):
    for name, value in {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)
    model = hub.models[POLICY] = Model()
    commit = model.push(published[POLICY])
    first, second = run_together(tmp_path, TOGETHER, POLICY, tmp_path / "run")
    assert first == second and first[0] == commit and "the hub has no model of that name" in first[1], (first, second)
    assert set(hub.fetched.values()) == {1}, "each file once for both"
    assert hub.asked[f"{POLICY}"] == 1, "the second process did not ask what the branch is"
