"""Stage evaluate: a curve over kept steps, several seeds, and the best step, from the rows that it leaves."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qrpo_jax import pipeline
from qrpo_jax.data import row_files
from qrpo_jax.errors import UserError
from qrpo_jax.evaluation.halves import half_of
from qrpo_jax.evaluation.ranks import mid_rank_quantile
from qrpo_jax.job.job import Job
from qrpo_jax.job.log_probs import make_log_probs
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.training.saved_parameters import load_parameters
from qrpo_jax.training.state import parameter_layout
from tests.helpers.jobs import job, refused

STAGES = ("sft", "sample", "score", "reference", "train", "evaluate", "export")
SMALL: dict[str, Any] = {
    "stages": STAGES,
    "prompts__count": 29,
    "prompts__held_out": 23,
    "sft__examples": 101,
    "sft__batch_size": 31,
    "sample__completions": 4,
    "sample__max_new_tokens": 13,
    "reward__name": "tests.helpers.text_rewards:digits",
    "train__batch_size": 17,
    "train__epochs": 2,
    "train__learning_rate": 0.03,
    "train__keep_every": 5,
    "evaluate__completions": 3,
    "evaluate__max_new_tokens": 13,
    "evaluate__checkpoints": ("all",),
    "evaluate__seeds": (0, 3),
    "export__checkpoint": "best",
    "log__tensorboard": False,
    "mesh__cpu_devices": 1,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, dict[str, Any]]:
    run = job(tmp_path_factory.mktemp("run") / "run", **SMALL)
    assert pipeline.run(run)
    return run, json.loads((run.workdir / "results.json").read_text())


def rewards(run: Job, name: str) -> dict[str, np.ndarray]:
    """Rewards of a policy by prompt, of both seeds, from the rows on disk."""
    folders = [run.folder("evaluate") / folder for folder in (name, f"{name}-seed-3")]
    found: dict[str, list[float]] = {}
    for folder in folders:
        for row in row_files.read(folder):
            found.setdefault(row.id, []).extend(c.reward for c in row.completions)
    return {row_id: np.asarray(values) for row_id, values in found.items()}


def test_the_card_of_the_best_step_has_its_figures_on_the_half_that_did_not_choose_it(
    finished: tuple[Job, dict[str, Any]],
) -> None:
    run, results = finished
    text = (run.folder("export") / "model" / "README.md").read_text()
    best = results["best"]["reporting"]
    low, high = best["ci95"]
    assert f"| policy, mean reward | {best['mean_reward']:.3f} ({low:.3f} to {high:.3f}) |" in text, text
    assert "of the half that did not choose this checkpoint" in text


def test_the_curve_has_every_kept_step_and_the_figures_of_its_rows(finished: tuple[Job, dict[str, Any]]) -> None:
    run, results = finished
    manifest = read_manifest(run.folder("train"))
    assert manifest is not None
    steps = [0, *range(5, manifest["steps"], 5), manifest["steps"]]
    assert [point["step"] for point in results["curve"]] == steps and len(steps) >= 4, steps
    names = ["reference", *(f"step-{step}" for step in steps[1:-1]), "policy"]
    of_reference = rewards(run, "reference")
    assert all(len(values) == 6 for values in of_reference.values()) and len(of_reference) == 23
    for name, point in zip(names, results["curve"], strict=True):
        found = rewards(run, name)
        assert point["mean_reward"] == pytest.approx(np.mean([v.mean() for v in found.values()])), name
        quantile = np.mean([mid_rank_quantile(found[row_id], of_reference[row_id]).mean() for row_id in found])
        assert point["mean_quantile"] == pytest.approx(quantile), name
        for half, of_half in point["halves"].items():
            means = [values.mean() for row_id, values in found.items() if half_of(row_id) == half]
            assert of_half["mean_reward"] == pytest.approx(np.mean(means)), (name, half)
    kl = [point["kl_to_reference_k3_per_token"] for point in results["curve"]]
    assert kl[0] == 0 and kl[-1] > kl[1] > 0, kl


def test_the_exported_model_is_the_step_that_is_best_on_the_selection_half(
    finished: tuple[Job, dict[str, Any]],
) -> None:
    from safetensors.numpy import load_file

    run, results = finished
    best = max(results["curve"], key=lambda point: point["halves"]["selection"]["mean_reward"])
    assert results["best"]["step"] == best["step"] > 0
    assert results["best"]["reporting"]["mean_reward"] == best["halves"]["reporting"]["mean_reward"]
    layout = parameter_layout(run.mesh, run.shape.settings)
    last = best is results["curve"][-1]
    folder = run.folder("train") / ("parameters" if last else f"kept/{best['step']}")
    saved = [np.asarray(leaf) for leaf in jax.tree.leaves(load_parameters(folder, layout))]
    exported = load_file(run.folder("export") / "model" / "model.safetensors")
    total = sum(float(np.square(leaf, dtype=float).sum()) for leaf in saved)
    assert sum(float(np.square(x, dtype=float).sum()) for x in exported.values()) == pytest.approx(total, rel=1e-6)


def test_the_kl_is_that_of_log_probs_computed_side_by_side(finished: tuple[Job, dict[str, Any]]) -> None:
    run, results = finished
    reference = run.reference_parameters(run.unit_mesh)
    parameters = {"reference": reference, "policy": run.policy_parameters(run.unit_mesh, reference)}
    for own, other in (("policy", "reference"), ("reference", "policy")):
        ratios, tokens = [], 0
        for folder in (own, f"{own}-seed-3"):
            rows = list(row_files.read(run.folder("evaluate") / folder))
            of = {side: np.concatenate(make_log_probs(run, side)(parameters[side], rows)[0]) for side in parameters}
            ratios += list(of[other] - of[own])
            tokens += sum(len(c.tokens) for row in rows for c in row.completions)
        r = np.asarray(ratios)
        figures = results[own]
        assert figures[f"kl_to_{other}_k1"] == pytest.approx(-r.mean(), abs=2e-5)
        assert figures[f"kl_to_{other}_k3"] == pytest.approx((np.expm1(r) - r).mean(), rel=1e-3, abs=2e-5)
        assert figures[f"kl_to_{other}_k1_per_token"] == pytest.approx(-r.sum() / tokens, abs=2e-5)


def test_each_seed_has_other_completions_and_the_first_those_of_a_run_with_one_seed(
    finished: tuple[Job, dict[str, Any]], tmp_path: Path
) -> None:
    run, results = finished
    texts = {
        folder: [[c.text for c in row.completions] for row in row_files.read(run.folder("evaluate") / folder)]
        for folder in ("policy", "policy-seed-3")
    }
    assert texts["policy"] != texts["policy-seed-3"]
    assert set(results["seeds"]) == {"0", "3"}
    means = [results["seeds"][seed]["policy"]["mean_reward"] for seed in ("0", "3")]
    assert results["policy"]["mean_reward"] == pytest.approx(np.mean(means)) and means[0] != means[1]
    plain = SMALL | {"evaluate__seeds": (0,), "evaluate__checkpoints": ("last",), "export__checkpoint": "last"}
    alone = job(tmp_path / "alone", **plain | {"stages": STAGES[:-1]})
    assert pipeline.run(alone, fork_from=run.workdir)
    of_alone = json.loads((alone.workdir / "results.json").read_text())
    assert of_alone["policy"]["mean_reward"] == means[0] and "curve" not in of_alone and "seeds" not in of_alone


def test_what_was_asked_for_stands_beside_what_was_achieved(finished: tuple[Job, dict[str, Any]]) -> None:
    _, results = finished
    found = results["achieved"]
    assert found["asked"] == {"kl": results["optimum"]["kl"], "quantile": results["optimum"]["expected_quantile"]}
    policy = results["policy"]
    assert found["reached"] == {"kl": policy["kl_to_reference_k1"], "quantile": policy["mean_quantile"]}


def test_steps_that_are_not_kept_are_refused_before_training(tmp_path: Path) -> None:
    asked = {"evaluate__checkpoints": (0, 7), "train__keep_every": 5}
    refused(tmp_path, r"evaluate.checkpoints has step 7; 0, multiples of 5, and the last step are kept", **asked)
    none_kept = asked | {"train__keep_every": 0}
    refused(tmp_path, r"has step 7; 0 and the last step are kept \(.*config.train.keep_every\)", **none_kept)
    refused(tmp_path, r"all, 5; all stands alone", evaluate__checkpoints=("all", 5), train__keep_every=5)
    refused(tmp_path, r"export.checkpoint is best; stage 'evaluate' finds that", export__checkpoint="best")
    refused(tmp_path, r"export.checkpoint has step 9; the last step alone is kept", export__checkpoint=9)


def test_steps_that_are_not_kept_are_refused_after_training(finished: tuple[Job, dict[str, Any]]) -> None:
    run, results = finished
    steps = results["curve"][-1]["step"]
    changed = SMALL | {"evaluate__checkpoints": (5, steps + 5)}
    with pytest.raises(UserError, match=f"has step {steps + 5}; 0, 5, .* are kept") as error:
        pipeline.run(job(run.workdir, **changed))
    assert "config.evaluate.checkpoints" in str(error.value)


def folder_job(finished: tuple[Job, dict[str, Any]], workdir: Path, **overrides: Any) -> Job:
    """Evaluates the exported model as a folder, on the prompts of the run that made it."""
    run, _ = finished
    folder = str(run.folder("export") / "model")
    keys = {name: SMALL[name] for name in SMALL if name.startswith(("prompts__", "evaluate__", "log__", "mesh__"))}
    keys |= {"stages": ("evaluate", "report"), "model__path": folder, "reward__name": SMALL["reward__name"]}
    keys |= {"evaluate__checkpoints": ("last",), "evaluate__seeds": (0,)}
    return job(workdir, **keys | overrides)


def test_a_model_folder_alone_has_the_figures_that_its_run_found(
    finished: tuple[Job, dict[str, Any]], tmp_path: Path
) -> None:
    run, of_run = finished
    alone = folder_job(finished, tmp_path / "alone")
    assert pipeline.run(alone)
    results = json.loads((alone.workdir / "results.json").read_text())
    step = of_run["best"]["step"]
    folder = "policy" if step == of_run["curve"][-1]["step"] else f"step-{step}"
    rows = {row.id: row for row in row_files.read(run.folder("evaluate") / folder)}
    for row in row_files.read(alone.folder("evaluate") / "policy"):
        assert [c.text for c in row.completions] == [c.text for c in rows[row.id].completions], row.id
    mean = np.mean([np.mean([c.reward for c in row.completions]) for row in rows.values()])
    assert results["policy"]["mean_reward"] == pytest.approx(mean)
    assert "reference" not in results and "gain" not in results and results["achieved"] == {}
    assert "evaluate, policy" in (alone.folder("report") / "report.html").read_text()


def test_a_model_against_itself_has_no_kl_and_against_one_of_other_tokens_none_is_known(
    finished: tuple[Job, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    same = folder_job(finished, tmp_path / "same", evaluate__against=str(run.folder("export") / "model"))
    assert pipeline.run(same)
    results = json.loads((same.workdir / "results.json").read_text())
    for side, other in (("policy", "reference"), ("reference", "policy")):
        assert all(results[side][f"kl_to_{other}_{name}"] == 0 for name in ("k1", "k3", "k3_per_token"))
    assert 0.3 < results["policy"]["win_rate"] < 0.7, results["policy"]["win_rate"]
    other = tmp_path / "other"
    shutil.copytree(run.folder("export") / "model", other)
    text = (other / "tokenizer.json").read_text()
    assert '"a": 248' in text and '"b": 249' in text
    swapped = text.replace('"a": 248', '"b": 248').replace('"b": 249', '"a": 249')
    (other / "tokenizer.json").write_text(swapped)
    assert pipeline.run(folder_job(finished, tmp_path / "differ", evaluate__against=str(other)))
    assert "no KL between the two models, because their tokens differ" in capsys.readouterr().err
    results = json.loads((tmp_path / "differ" / "results.json").read_text())
    assert "win_rate" in results["policy"] and not [name for name in results["policy"] if name.startswith("kl_")]


def test_another_model_to_compare_with_changes_the_settings(
    finished: tuple[Job, dict[str, Any]], tmp_path: Path
) -> None:
    run, _ = finished
    other = tmp_path / "other"
    shutil.copytree(run.folder("export") / "model", other)
    before = pipeline.settings(folder_job(finished, tmp_path / "run", evaluate__against=str(other)), "evaluate")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"bos_token_id": None}))
    after = pipeline.settings(folder_job(finished, tmp_path / "run", evaluate__against=str(other)), "evaluate")
    assert [key for key in before if before[key] != after[key]] == ["evaluate.against config sha256"]


def test_model_folders_that_cannot_be_compared_are_refused(
    finished: tuple[Job, dict[str, Any]], tmp_path: Path
) -> None:
    refused(tmp_path, "evaluate.against is for model folders", evaluate__against="models/other")
    keys = {"stages": ("evaluate",), "model__path": str(finished[0].folder("export") / "model")}
    keys |= {"reward__name": SMALL["reward__name"]}
    refused(tmp_path, r"models/other.*\(config.evaluate.against\)", evaluate__against="models/other", **keys)
    refused(tmp_path, "all, and no stage 'train' keeps steps", evaluate__checkpoints=("all",), **keys)
    refused(tmp_path, "no model to start from: set config.model.path", stages=("evaluate",))
