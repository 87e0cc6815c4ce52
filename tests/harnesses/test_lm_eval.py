"""lm_eval on the run's policy: local tasks of each kind of request, killed, sharded, and against its own backend.

They skip where lm_eval is not installed (extra `eval`); the last one is a parity test, which has torch.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrpo_jax import pipeline
from qrpo_jax.data import row_files
from qrpo_jax.errors import DamagedError
from qrpo_jax.harnesses import requests
from qrpo_jax.job.job import Job
from qrpo_jax.job.shard import Shard
from qrpo_jax.stages import STAGES
from tests.helpers.harness_jobs import harness_job, results_of
from tests.helpers.jobs import refused

NAMES = ["Lily", "Tim", "Sue", "Anna", "Ben", "Mia", "Tom", "Max", "Zoe", "Sam", "Ella"]
YAML = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
{more}
metadata: {{version: 2}}
"""
FOLDERS = {"choice": "loglikelihood", "perplexity": "loglikelihood_rolling"}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three local tasks, which need no network."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -e '.[eval]'")
    folder = tmp_path_factory.mktemp("tasks")
    docs = [
        {"q": f"Once upon a time, there was a child named {n}. The child liked to", "good": " play", "bad": " zzz qqq"}
        for n in NAMES
    ]
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    mean = "aggregation: mean, higher_is_better: true"
    choice = 'doc_to_choice: "{{[good, bad]}}"\ndoc_to_target: 0\ntarget_delimiter: ""\n'
    choice += f"metric_list: [{{metric: acc, {mean}}}]"
    generate = 'doc_to_target: "play"\ngeneration_kwargs: {until: ["."], max_gen_toks: 7, do_sample: false}\n'
    generate += f"metric_list: [{{metric: exact_match, {mean}}}]"
    rolling = 'doc_to_target: "{{q}}{{good}}"\nmetric_list: [{metric: word_perplexity}]'
    for name, kind, text, more in (
        ("choice", "multiple_choice", "{{q}}", choice),
        ("generate", "generate_until", "{{q}}", generate),
        ("perplexity", "loglikelihood_rolling", "", rolling),
    ):
        content = YAML.format(name=f"local_{name}", data=folder / "docs.jsonl", kind=kind, text=text, more=more)
        (folder / f"{name}.yaml").write_text(content)
    return f"lm_eval(local_choice, local_generate, local_perplexity) include={folder}"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def whole(fixtures: Path, task: str, tmp_path_factory: pytest.TempPathFactory) -> Job:
    run = harness_job(tmp_path_factory.mktemp("whole") / "run", fixtures, task, prompts__unit=5)
    assert pipeline.run(run)
    return run


def rows(run: Job, kind: str) -> list[Any]:
    (folder,) = (run.folder("harness") / "lm_eval" / "policy").glob(kind)
    return list(row_files.read(folder))


def test_figures_have_intervals_over_documents_and_versions(whole: Job) -> None:
    record = results_of(whole)["lm_eval"]
    figures, scored = record["policy"]["figures"], rows(whole, "loglikelihood")
    assert len(scored) == 2 * len(NAMES)
    pairs = [
        (a.completions[0].log_prob, b.completions[0].log_prob) for a, b in zip(scored[::2], scored[1::2], strict=True)
    ]
    accuracy = np.mean([good > bad for good, bad in pairs])
    assert figures["local_choice acc"]["value"] == pytest.approx(accuracy) and accuracy == 1.0, pairs
    total = sum(row.completions[0].log_prob for row in rows(whole, "loglikelihood_rolling"))
    words = sum(len(f"Once upon a time, there was a child named {n}. The child liked to play".split()) for n in NAMES)
    perplexity = figures["local_perplexity word_perplexity"]
    assert perplexity["value"] == pytest.approx(np.exp(-total / words), rel=1e-6)
    assert perplexity["ci95"][0] < perplexity["value"] < perplexity["ci95"][1], perplexity
    assert figures["local_generate exact_match"]["ci95"] == [0.0, 0.0]
    assert record["policy"]["prompts_of"]["local_choice acc"] == len(NAMES) and record["policy"]["contexts_cut"] == 0
    assert record["versions"]["task local_choice"] == 2 and re.match(r"0\.\d", record["versions"]["lm_eval"])


def test_generated_texts_end_before_their_stop_strings(whole: Job) -> None:
    found = rows(whole, "generate_until-*")
    assert [row.messages[0].content for row in found][0].endswith("liked to") and len(found) == len(NAMES)
    assert all("." not in row.completions[0].text and len(row.completions[0].tokens) <= 7 for row in found)


def test_a_killed_and_a_sharded_harness_answer_as_one(
    whole: Job, fixtures: Path, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = []
    for index in (0, 1, 0, 1):  # a shard begins the next kind of requests when no unit of the last one is missing
        one = harness_job(tmp_path / "shards", fixtures, task, prompts__unit=5)
        run = Job(one.config, one.workdir, Shard(index, 2), STAGES)
        complete.append(pipeline.run(run))
    assert complete == [False, False, False, True], complete
    assert results_of(run) == results_of(whole)

    calls, run_units = list[int](), requests.run_units

    def dies(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run_units(*arguments, **options)

    monkeypatch.setattr(requests, "run_units", dies)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(harness_job(tmp_path / "killed", fixtures, task, prompts__unit=5))
    killed = harness_job(tmp_path / "killed", fixtures, task, prompts__unit=5)
    kinds = [path.name for path in (killed.folder("harness") / "lm_eval" / "policy").iterdir()]
    assert {"loglikelihood", "loglikelihood_rolling"} < set(kinds) and pipeline.run(killed), kinds
    assert results_of(killed) == results_of(whole)


def test_rows_of_other_requests_are_refused(fixtures: Path, task: str, tmp_path: Path, whole: Job) -> None:
    run = harness_job(tmp_path / "run", fixtures, task)
    assert requests.fingerprint([1]) != requests.fingerprint([2])

    def compute(indices: Any, ids: Any) -> Any:
        return [rows(whole, "loglikelihood")[0].__class__(name, ()) for name in ids], {}

    requests.answers(run, tmp_path / "rows", [[1], [2]], compute, "test")
    with pytest.raises(DamagedError, match="it answers other requests"):
        requests.answers(run, tmp_path / "rows", [[1], [3]], compute, "test")


def test_unknown_tasks_and_options_are_refused(fixtures: Path, task: str, tmp_path: Path) -> None:
    keys = {"model__path": str(fixtures / "stories260K-hf"), "model__template": "plain", "stages": ("harness",)}
    keys |= {"harness__max_prompt_tokens": 300, "harness__max_new_tokens": 100}
    refused(tmp_path, "lm_eval knows no task 'local_chess'", harness__tasks=("lm_eval(local_chess)",), **keys)
    include = Path(task.partition("include=")[2])
    content = (include / "generate.yaml").read_text()
    unsafe = tmp_path / "unsafe"
    unsafe.mkdir()
    (unsafe / "code.yaml").write_text(content.replace("local_generate", "local_code") + "unsafe_code: true\n")
    (unsafe / "lost.yaml").write_text(
        content.replace("local_generate", "local_lost").replace("docs.jsonl", "none.jsonl")
    )
    for name, message in (("code", "runs code that a model wrote"), ("lost", "lm_eval cannot load local_lost: .*none")):
        refused(tmp_path, message, harness__tasks=(f"lm_eval(local_{name}) include={unsafe}",), **keys)
    chat = f"{task} template=chat"
    refused(tmp_path, "template=chat, and the tokenizer has no chat template", harness__tasks=(chat,), **keys)


@pytest.mark.parity
def test_scores_and_texts_are_those_of_its_own_backend_on_the_same_folder(
    whole: Job, fixtures: Path, task: str
) -> None:
    pytest.importorskip("torch")
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=str(fixtures / "stories260K-hf"), device="cpu", dtype="float32", max_length=512)
    names = ["local_choice", "local_generate", "local_perplexity"]
    known = TaskManager(include_path=task.partition("include=")[2])
    expected = lm_eval.simple_evaluate(model=model, tasks=names, task_manager=known, bootstrap_iters=0)
    samples = expected["samples"]
    choices = [score for one in samples["local_choice"] for ((score, _),) in one["resps"]]
    ours = [row.completions[0].log_prob for row in rows(whole, "loglikelihood")]
    np.testing.assert_allclose(ours, choices, rtol=2e-5)
    greedy = [is_greedy for one in samples["local_choice"] for ((_, is_greedy),) in one["resps"]]
    assert [row.completions[0].finished for row in rows(whole, "loglikelihood")] == greedy
    texts = [one["resps"][0][0] for one in samples["local_generate"]]
    assert [row.completions[0].text.strip() for row in rows(whole, "generate_until-*")] == [t.strip() for t in texts]
    figures = results_of(whole)["lm_eval"]["policy"]["figures"]
    perplexity = expected["results"]["local_perplexity"]["word_perplexity,none"]
    assert figures["local_perplexity word_perplexity"]["value"] == pytest.approx(perplexity, rel=1e-5)
