"""A user's mistake ends with one clear line and exit status 2, and leaves all files unchanged."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qrpo_jax import pipeline
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.job import manifest
from tests.helpers.jobs import ROOT, environment, job, refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train__transform": "cube"}, "transform is 'cube'; allowed: identity, log"),
        ({"train__objective": "ipo"}, "objective is 'ipo'; allowed: qrpo"),
        (
            {"train__objective": "ppo"},
            "'ppo' learns only from what the policy itself has just sampled: set config",
        ),
        (
            {"train__objective": "grpo", "train__data": "on_policy", "train__evaluate_every": 5},
            "evaluate_every is 5; on-policy there are no rows to hold out",
        ),
        ({"train__clip_low": 1.5}, "train.clip_low is 1.5; it must be finite, above 0, at most 1"),
        ({"train__loss": "huber"}, "loss is 'huber'; allowed: mse, mae"),
        ({"train__beta": 0.0}, r"beta is 0.0; it must be above 0 \(config.train.beta\)"),
        ({"train__beta": -0.1}, "beta is -0.1; it must be finite, at least 0"),
        ({"train__beta": float("nan")}, "beta is nan; it must be finite"),
        (
            {"train__transform": "normal-icdf", "select__reference_count": 1, "select__exclude_own": False},
            "n = 1 reference",
        ),
        ({"train__transform": "normal-icdf", "sample__completions": 2}, "n = 1 reference"),
        ({"sample__completions": 1}, "n = 0 reference"),
        ({"sample__completions": 0}, "bring no completions"),
        ({"train__objective": "dpo"}, "compares two completions"),
        ({"select__units": "best_worst", "pack__row_tokens": 64}, "row_tokens is 64; pairs"),
        ({"stages": ()}, "stages is empty"),
        ({"stages": ("sft", "train")}, "'train' needs 'sample' before it"),
        ({"stages": ("sample", "score", "reference", "train")}, "no model to start from"),
        ({"stages": ("sft", "sample", "score", "train")}, "needs log π_ref"),
        ({"reward__name": "beauty"}, "reward is 'beauty'; allowed: tests"),
        ({"reward__name": "no.such.module:score"}, "cannot be imported"),
        ({"model__path": "no/such/folder"}, "model folder no/such/folder does not exist"),
        ({"model__heads": 3, "model__kv_heads": 2}, "heads must be a multiple"),
        ({"mesh__data": 3}, "mesh replica=1, data=3"),
        ({"sft__learning_rate": 0.0}, "learning_rate is 0.0; it must be finite, above 0"),
        ({"train__schedule": "steps"}, "schedule is 'steps'; allowed: cosine"),
        ({"train__epochs": 0}, "train.epochs is 0; it must be at least 1"),
        ({"select__ties": "lower"}, "select.ties is 'lower'; allowed: upper"),
        ({"prompts__source": "jsonl:none.jsonl"}, "no file none.jsonl|knows only the words"),
        ({"seed": -1}, "seed is -1"),
        ({"stages": ("sft", "sample", "reference", "train")}, "put 'score' before 'train'"),
        ({"train__b2": 1.0}, "train.b2 is 1.0; it must be finite, at least 0, below 1"),
        ({"train__learning_rate": float("inf")}, "train.learning_rate is inf"),
        ({"sft__weight_decay": float("nan")}, "sft.weight_decay is nan"),
        ({"reward__memory_mb": 16}, "reward.memory_mb is 16; it must be at least 64"),
        ({"reward__cpu_seconds": 0.0}, "reward.cpu_seconds is 0.0"),
        ({"sample__max_new_tokens": 500}, "sample.max_new_tokens is 548, the model was made for 512"),
        ({"select__units": "best_worst", "pack__row_tokens": 128, "select__first": 1}, "select.first is 1"),
        ({"train__transform": "cubic"}, r"transform is 'cubic'; allowed: identity, .*power\(p\)"),
        ({"train__transform": "power(-1)"}, r"power is -1; it must be positive.*\(config.train.transform\)$"),
        (
            {"train__transform": "logit", "train__length_normalised": True, "train__beta": 5.0, "train__beta_cap": 0.9},
            r"'logit' has no finite partition function at beta = 0.9: beta must be above 1",
        ),
        ({"train__transform": "no.such:f"}, "'no.such:f'; that function cannot be imported"),
        ({"train__transform": "logit"}, "'logit' has no finite partition function at beta = 0.3: beta must be above 1"),
        ({"train__partition": "exact"}, "train.partition is 'exact'; allowed: population, finite_sample, empirical"),
        ({"train__beta_cap": -1.0}, "train.beta_cap is -1"),
        (
            {"train__objective": "simpo", "train__length_normalised": True, "select__units": "best_worst"},
            "'simpo' has no use for length_normalised",
        ),
        (
            {
                "train__objective": "simpo",
                "select__units": "best_worst",
                "pack__row_tokens": 128,
                "train__gamma_beta_ratio": float("nan"),
            },
            r"gamma_beta_ratio is nan; it must be finite \(config.train.gamma_beta_ratio\)",
        ),
        (
            {"model__attention": "telepathy"},
            r"attention is 'telepathy'; allowed: auto, plain.*\(config.model.attention\)",
        ),
        ({"select__estimator": "median"}, "select.estimator is 'median'; allowed: ecdf, midpoint"),
        ({"pack__max_tokens": 1000, "pack__row_tokens": 1000}, "the model was made for 512 positions"),
    ],
)
def test_a_config_that_cannot_run_is_refused_before_anything_is_written(tmp_path, overrides, message) -> None:
    refused(tmp_path, message, **overrides)


def test_a_workdir_of_other_settings_is_refused_with_the_difference_and_unchanged(tmp_path: Path) -> None:
    first = job(tmp_path)
    manifest.begin(tmp_path / "sft", pipeline.settings(first, "sft"), alone=True)
    manifest.complete(tmp_path / "sft", {"steps": 7})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"sft\.learning_rate: 0\.003 -> 0\.5.*choose another --workdir"):
        pipeline.run(job(tmp_path, sft__learning_rate=0.5))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_of_another_program_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="was not made by this program"):
        pipeline.run(job(tmp_path))


@pytest.mark.parametrize("fault", ["no weights", "missing tensor", "extra tensor", "misshapen tensor"])
def test_a_model_folder_with_a_fault_is_refused_by_name(tmp_path: Path, fixtures: Path, fault: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(fixtures / "stories260K-hf", folder)
    for path in [folder, *folder.iterdir()]:
        path.chmod(0o755)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.3.mlp.up_proj.weight"
    messages = {
        "no weights": "no weights|safetensors",
        "missing tensor": f"lack tensor {name}",
        "extra tensor": "has tensor model.layers.9.extra",
        "misshapen tensor": f"tensor {name} .* has shape",
    }
    if fault == "no weights":
        (folder / "model.safetensors").unlink()
    else:
        if fault == "missing tensor":
            del tensors[name]
        elif fault == "extra tensor":
            tensors["model.layers.9.extra"] = np.zeros(3, np.float32)
        else:
            tensors[name] = np.ascontiguousarray(tensors[name].T)
        save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=messages[fault]) as error:
        model_folder.check_folder(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "a", "completions": ["b"], "rewards": [float("nan")]}, "must be a finite number"),
        ({"prompt": "a", "completions": []}, "has no completion"),
        ({"prompt": "a", "answer": "b"}, "unknown key 'answer'"),
        ({"prompt": "a", "completions": ["b"], "rewards": [1]}, "row 'row-3': a prompt has n = 0 reference"),
    ],
)
def test_a_faulty_row_is_refused_by_line_before_anything_is_compiled(tmp_path, fixtures, line, message) -> None:
    data = tmp_path / "data.jsonl"
    good = {"prompt": "Once", "completions": ["upon a time"], "rewards": [0.5], "reference_rewards": [0.1, 0.9]}
    rows = [good, {"prompt": "Twice", **{k: v for k, v in good.items() if k != "prompt"}}, line, good | {"id": "last"}]
    data.write_text("\n".join(map(json.dumps, rows)))
    refused(
        tmp_path,
        message,
        stages=("sample", "score", "reference", "train"),
        model__path=str(fixtures / "stories260K-hf"),
        model__template="plain",
        prompts__source=f"jsonl:{data}",
        prompts__held_out=1,
        sample__completions=0,
        reward__name="dialogue_share",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.train.bta=0.3"], "error: no config key train.bta; did you mean train.beta?"),
        (["--config.train.beta=much"], "much"),
        (["--no_such_flag"], "no_such_flag"),
        (["--shard=4/4"], "shard is '4/4'; allowed: i/n"),
        (["--config=configs/none.py"], "no config file configs/none.py"),
        (["surprise"], "unknown argument 'surprise'"),
        (["--config.train.beta=-1"], "beta is -1.0; it must be finite, at least 0 (config.train.beta)"),
    ],
)
def test_the_command_line_prints_one_line_and_exits_with_status_2(tmp_path: Path, arguments, message) -> None:
    command = [sys.executable, "-m", "qrpo_jax.main", "--config=configs/quickstart.py", f"--workdir={tmp_path}/run"]
    done = subprocess.run([*command, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], done.stderr
    assert not (tmp_path / "run").exists()


def test_a_kill_while_settings_are_written_does_not_lock_the_workdir(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / ".tmp-settings.json-of-a-killed-run").write_text("{")
    settings = pipeline.settings(job(tmp_path), "sft")
    manifest.check_settings(tmp_path / "sft", settings)
    manifest.begin(tmp_path / "sft", settings, alone=True)
    assert [path.name for path in (tmp_path / "sft").iterdir()] == [manifest.SETTINGS]


def test_a_stage_records_settings_that_change_its_output_and_not_those_of_the_machine(tmp_path: Path) -> None:
    def of(stage: str, **overrides: object) -> dict:
        return pipeline.settings(job(tmp_path, **overrides), stage)

    assert of("reference") != of("reference", log_probs__temperature=0.7)
    assert of("train") != of("train", train__beta=0.7) and of("sample") == of("sample", train__beta=0.7)
    assert of("evaluate") != of("evaluate", reward__memory_mb=512)
    for machine in (
        {"mesh__fsdp": 2},
        {"reward__workers": 7},
        {"train__checkpoint_every": 3},
        {"checkpoints__local_directory": "disk", "checkpoints__local_every": 3},
        {"log__tensorboard": False},
    ):
        assert of("export") == of("export", **machine), machine


@pytest.mark.parametrize(
    "body, message",
    [
        ("    return {}['x']\n", "line 2: KeyError: x"),
        ("    import no_such_module\n", "line 2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("    return (\n", "line 2: SyntaxError: '(' was never closed"),
    ],
)
def test_a_bug_in_a_config_file_is_reported_with_its_line(tmp_path: Path, body: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n" + body)
    command = [sys.executable, "-m", "qrpo_jax.main", f"--config={path}", f"--workdir={tmp_path}/run"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2, (done.returncode, done.stderr)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {path}, {message}"), line


def test_a_workdir_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for workdir, reason in ((Path("/proc/run"), "cannot be written to: /proc: "), (tmp_path / "file", "is a file")):
        with pytest.raises(UserError, match=f"--workdir={workdir} {reason}"):
            pipeline.check_workdir(workdir)
    pipeline.check_workdir(tmp_path / "new" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
