"""Stage harness as a stage: killed, sharded, beside evaluate, on two policies, and refused before anything runs."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrpo_jax import pipeline
from qrpo_jax.data import row_files
from qrpo_jax.errors import UserError
from qrpo_jax.job import answering
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.row_lookup import row_lines
from qrpo_jax.job.shard import Shard
from qrpo_jax.job.written_rows import stages_with_rows
from qrpo_jax.report.harness_table import lines
from qrpo_jax.stages import STAGES
from tests.helpers.harness_jobs import harness_job, problems, results_of
from tests.helpers.jobs import refused
from tests.job.test_processes import start

QUESTIONS = 23


@pytest.fixture(scope="module")
def tasks(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A greedy task and a sampled one."""
    source = problems(fixtures, "gsm8k", tmp_path_factory.mktemp("data") / "questions.jsonl", most=QUESTIONS)
    return f"gsm8k source={source}", f"gsm8k source={source} completions=3 temperature=1 prompts=11 name=sampled"


@pytest.fixture(scope="module")
def whole(fixtures: Path, tasks: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Job:
    run = harness_job(tmp_path_factory.mktemp("whole") / "run", fixtures, *tasks, prompts__unit=5)
    assert pipeline.run(run)
    return run


def texts(run: Job, task: str, side: str = "policy") -> list[str]:
    return [c.text for row in row_files.read(run.folder("harness") / task / side) for c in row.completions]


def test_figures_are_those_of_the_rows_and_the_table_has_them(whole: Job) -> None:
    results = results_of(whole)
    assert len(texts(whole, "gsm8k")) == QUESTIONS and len(texts(whole, "sampled")) == 33
    for task, record in results.items():
        rows = list(row_files.read(whole.folder("harness") / task / "policy"))
        expected = np.mean([np.mean([c.reward == 1 for c in row.completions]) for row in rows])
        assert record["policy"]["figures"]["pass_at_1"]["value"] == pytest.approx(expected), task
        finished = np.mean([c.finished for row in rows for c in row.completions])
        assert record["policy"]["figures"]["share_finished"]["value"] == pytest.approx(finished), task
        assert record["settings"]["max_new_tokens"] == 7 and record["kind"] == "gsm8k"
    assert results["sampled"]["prompts_sha256"] != results["gsm8k"]["prompts_sha256"]
    head, *shown = lines(results)
    assert head.split() == ["benchmark", "figure", "policy", "prompts"]
    assert [re.split(r"\s{2,}", line)[:2] for line in shown if "pass" in line] == [
        ["gsm8k", "pass@1"],
        ["sampled", "pass@1"],
        ["sampled", "pass@2"],
    ], shown


def test_a_row_of_a_task_can_be_printed(whole: Job) -> None:
    assert stages_with_rows(whole.workdir) == ["harness/gsm8k/policy", "harness/sampled/policy"]
    text = "\n".join(row_lines(whole.workdir, "harness/sampled/policy:0", 80))
    assert "Janet" in text and "Think step by step." in text, text


def test_a_killed_harness_samples_only_what_it_lacks_and_ends_alike(
    whole: Job, fixtures: Path, tasks: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = harness_job(tmp_path / "run", fixtures, *tasks, prompts__unit=5)
    real, calls = answering.score_rows, list[int]()

    def dies(*arguments: Any, **options: Any) -> Any:
        calls.append(len(arguments[1]))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(answering, "score_rows", dies)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(run)
    assert not (run.workdir / "results.json").exists()
    assert pipeline.run(harness_job(tmp_path / "run", fixtures, *tasks, prompts__unit=5))
    assert calls[:3] == [5, 5, 5] and sum(calls[3:]) == 5 + (QUESTIONS - 15) + 11, calls
    assert results_of(run) == results_of(whole)
    assert [texts(run, task) for task in ("gsm8k", "sampled")] == [texts(whole, t) for t in ("gsm8k", "sampled")]
    assert pipeline.run(harness_job(tmp_path / "run", fixtures, *tasks, prompts__unit=5)) and len(calls) == 9, calls


def test_shards_make_the_rows_of_one_process(
    whole: Job, fixtures: Path, tasks: tuple[str, ...], tmp_path: Path
) -> None:
    for index, complete in ((0, False), (1, True)):
        one = harness_job(tmp_path / "run", fixtures, *tasks, prompts__unit=5)
        run = Job(one.config, one.workdir, Shard(index, 2), STAGES)
        assert pipeline.run(run) is complete
    assert results_of(run) == results_of(whole)


def test_a_model_against_itself_gains_nothing_and_both_sides_are_in_the_table(
    whole: Job, fixtures: Path, tasks: tuple[str, ...], tmp_path: Path
) -> None:
    run = harness_job(tmp_path / "run", fixtures, tasks[0], evaluate__against=str(fixtures / "stories260K-hf"))
    assert pipeline.run(run)
    record = results_of(run)["gsm8k"]
    assert texts(run, "gsm8k", "reference") == texts(run, "gsm8k") == texts(whole, "gsm8k")
    assert record["gain"]["pass_at_1"] == {"value": 0.0, "ci95": [0.0, 0.0]}
    assert record["reference"]["figures"] == record["policy"]["figures"]
    assert lines({"gsm8k": record})[0].split() == ["benchmark", "figure", "reference", "policy", "gain", "prompts"]


def test_results_json_has_both_stages_and_is_made_again_where_it_is_damaged(
    whole: Job, fixtures: Path, tasks: tuple[str, ...], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"One day, {name}"}) + "\n" for name in "ABCDEFGH"))
    of_data = {"prompts__source": f"jsonl:{prompts}", "prompts__held_out": 5, "evaluate__completions": 2}
    of_data |= {
        "reward__name": "length(1, 9)",
        "evaluate__max_new_tokens": 7,
        "stages": ("evaluate", "harness", "report"),
    }

    def start(*stages: str) -> Job:
        chosen = of_data | ({"stages": stages} if stages else {})
        run = harness_job(tmp_path / "run", fixtures, tasks[0], **chosen)
        assert pipeline.run(run)
        return run

    start("evaluate")
    path = tmp_path / "run" / "results.json"
    alone = json.loads(path.read_text())
    run = start()
    both = json.loads(path.read_text())
    assert both["harnesses"]["gsm8k"]["policy"]["figures"]["pass_at_1"]["value"] == 0.0
    assert {key: value for key, value in both.items() if key != "harnesses"} == alone
    assert '<h2 id="benchmarks">Benchmarks</h2>' in (run.folder("report") / "report.html").read_text()
    content = path.read_bytes()
    path.write_bytes(b"{}")
    start()
    assert path.read_bytes() == content
    start("evaluate")  # without the stage its entry stays
    assert path.read_bytes() == content
    manifest = read_manifest(run.folder("evaluate"))
    assert manifest is not None and manifest["files"]["../results.json"][0] == len(content)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("gsm8k completions=4", r"harness task 'gsm8k': completions=4 at temperature 0 are all alike"),
        ("gsm8k source=jsonl:/none.jsonl", r"harness task 'gsm8k': .*none.jsonl.*\(config.harness.tasks\)"),
        ("mbpp source={questions}", r"harness task 'mbpp': .*'prompt'"),
        ("gsm8k source={questions} max_new_tokens=900", r"harness.max_prompt_tokens \+ harness.max_new_tokens is 1300"),
        ("gsm8k source={questions} shots=8", r"harness.max_prompt_tokens is 400; all prompts are longer, the shortest"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    task: str, message: str, fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    questions = problems(fixtures, "gsm8k", tmp_path / "questions.jsonl", most=3)
    of_job = dict(harness_job(tmp_path, fixtures, task.format(questions=questions)).config.harness)
    refused(
        tmp_path,
        message,
        stages=("harness",),
        model__path=str(fixtures / "stories260K-hf"),
        model__template="plain",
        reward__require_isolation="limits",
        **{f"harness__{key}": value for key, value in of_job.items()},
    )


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_a_missing_lm_eval_is_one_line(fixtures: Path, tmp_path: Path) -> None:
    keys = {"harness__max_prompt_tokens": 300, "harness__max_new_tokens": 100, "harness__tasks": ("lm_eval(arc_easy)",)}
    keys |= {"model__path": str(fixtures / "stories260K-hf"), "model__template": "plain", "stages": ("harness",)}
    refused(tmp_path, r"lm_eval is not installed: pip install -e '.\[eval\]'", **keys)


def test_records_that_are_no_problems_are_counted_and_said(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = problems(fixtures, "gsm8k", tmp_path / "questions.jsonl", most=5)
    with (tmp_path / "questions.jsonl").open("a") as file:
        file.write(json.dumps({"question": "How many?", "ground_truth": ""}) + "\n")
    run = harness_job(tmp_path / "run", fixtures, f"gsm8k source={source}")
    assert pipeline.run(run)
    assert "harness gsm8k: WARNING: 1 " in capsys.readouterr().err
    record = results_of(run)["gsm8k"]
    assert record["policy"]["prompts"] == 5 and list(record["counts"].values()) == [1], record["counts"]


@pytest.mark.slow
def test_two_processes_make_the_results_of_one(
    whole: Job, fixtures: Path, tasks: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = ["--config.stages=harness", "--config.model.template=plain", "--config.prompts.unit=5"]
    overrides += [f"--config.model.path={fixtures / 'stories260K-hf'}", f"--config.harness.tasks={','.join(tasks)}"]
    overrides += ["--config.harness.max_prompt_tokens=400", "--config.harness.max_new_tokens=7"]
    for process in (started := start(tmp_path / "run", 2, *overrides)):
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said
    assert len(started) == 2
    results = json.loads((tmp_path / "run" / "results.json").read_text())["harnesses"]
    expected = results_of(whole)
    assert {name: one["policy"] for name, one in results.items()} == {n: one["policy"] for n, one in expected.items()}


def test_other_data_at_the_same_place_is_another_run(fixtures: Path, tmp_path: Path) -> None:
    source = problems(fixtures, "gsm8k", tmp_path / "questions.jsonl", most=3)
    assert pipeline.run(harness_job(tmp_path / "run", fixtures, f"gsm8k source={source}"))
    problems(fixtures, "gsm8k", tmp_path / "questions.jsonl", step=2, most=3)
    with pytest.raises(UserError, match="made with other settings .*harness.tasks gsm8k content"):
        pipeline.run(harness_job(tmp_path / "run", fixtures, f"gsm8k source={source}"))
