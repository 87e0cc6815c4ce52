"""AlpacaEval: answers in its format, its command where it can run, its figures, and what happens where it cannot."""

import json
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qrpo_jax import pipeline
from qrpo_jax.errors import ServerError, UserError
from qrpo_jax.harnesses import alpaca_eval
from qrpo_jax.job import answering
from qrpo_jax.job.job import Job
from tests.helpers.harness_jobs import harness_job, results_of

SETS = ("helpful_base", "koala", "selfinstruct")
# What the command does in a test: it reads the file of answers, and writes a leaderboard beside another model.
FAKE = """#!{python}
import csv, json, os, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
answers = json.load(open(given["--model_outputs"]))
if os.environ.get("FAKE_FAULT"):
    sys.exit("RateLimitError: no quota")
assert all(set(one) == {{"dataset", "instruction", "output", "generator"}} for one in answers), answers[0]
(name,) = {{one["generator"] for one in answers}}
folder = pathlib.Path(given["--output_path"]) / given["--annotators_config"]
folder.mkdir(parents=True)
with (folder / "leaderboard.csv").open("w") as file:
    lines = csv.writer(file)
    lines.writerow("|win_rate|standard_error|n_total|avg_length|length_controlled_winrate|lc_standard_error".split("|"))
    lines.writerow(["gpt4", 50, 0, 805, 2049, 50, 0])
    lines.writerow([name, 12.5, 1.25, len(answers), 99, 17.5, 0.5])
"""


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in alpaca_eval.KEYS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def command(tmp_path: Path) -> str:
    path = tmp_path / "bin" / "alpaca_eval"
    path.parent.mkdir()
    path.write_text(FAKE.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def run_of(tmp_path: Path, fixtures: Path, **overrides: Any) -> Job:
    """Instructions as the data set has them: one list of objects, with the answers of another model."""
    records = [
        {"instruction": f"Tell a story of {n}.", "output": "Once.", "generator": "davinci", "dataset": SETS[i % 3]}
        for i, n in enumerate("ABCDEFG")
    ]
    data = tmp_path / "alpaca_eval.json"
    data.write_text(json.dumps(records))
    return harness_job(tmp_path / "run", fixtures, f"alpaca_eval source=jsonl:{data}", **overrides)


def answers_of(run: Job) -> list[dict[str, str]]:
    return json.loads((run.folder("harness") / "alpaca_eval" / "policy_outputs.json").read_text())


def test_without_a_key_the_answers_are_written_and_the_exact_command_is_said(
    fixtures: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, fixtures, harness__alpaca_eval=command)
    assert pipeline.run(run)
    answers = answers_of(run)
    assert [one["instruction"] for one in answers] == [f"Tell a story of {n}." for n in "ABCDEFG"]
    assert [one["dataset"] for one in answers] == [SETS[i % 3] for i in range(7)]
    assert {one["generator"] for one in answers} == {"stories260K-hf-policy"} and all(one["output"] for one in answers)
    said = capsys.readouterr().err
    assert "not judged: none of OPENAI_API_KEY, OPENAI_API_KEYS, OPENAI_CLIENT_CONFIG_PATH is set" in said
    record = results_of(run)["alpaca_eval"]
    assert record["policy"]["judged"].startswith("not judged") and set(record["policy"]["figures"]) == {
        "mean_tokens",
        "share_finished",
    }
    (line,) = [line for line in said.splitlines() if "run: " in line]
    words = shlex.split(line.partition("run: ")[2])
    subprocess.run(words, check=True)
    judged = run.folder("harness") / "alpaca_eval" / "policy_judged" / run.config.harness.annotator / "leaderboard.csv"
    found = alpaca_eval.read_leaderboard(judged, "stories260K-hf-policy")
    assert found["win_rate"] == (0.125, [0.1005, 0.1495]), found
    (run.folder("harness") / "manifest.json").unlink()
    assert pipeline.run(run_of(tmp_path, fixtures, harness__alpaca_eval="elsewhere/alpaca_eval"))
    assert results_of(run)["alpaca_eval"]["policy"]["figures"]["win_rate"]["value"] == 0.125


def test_with_a_key_its_figures_are_read_back_with_intervals(
    fixtures: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    run = run_of(tmp_path, fixtures, harness__alpaca_eval=command)
    assert pipeline.run(run)
    record = results_of(run)["alpaca_eval"]["policy"]
    assert record["figures"]["win_rate"] == {"value": 0.125, "ci95": [0.1005, 0.1495]}
    assert record["figures"]["length_controlled_win_rate"] == {"value": 0.175, "ci95": [0.1652, 0.1848]}
    assert record["judged"] == "judged by weighted_alpaca_eval_gpt4_turbo" and record["prompts"] == 7
    everything = b"".join(path.read_bytes() for path in run.workdir.rglob("*") if path.is_file())
    assert b"secret" not in everything


def test_a_judge_that_fails_is_one_line_and_the_next_start_samples_nothing(
    fixtures: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("FAKE_FAULT", "1")
    with pytest.raises(
        ServerError, match=r"ended with status 1: RateLimitError: no quota \(all of it: .*log\)"
    ) as error:
        pipeline.run(run_of(tmp_path, fixtures, harness__alpaca_eval=command))
    assert "\n" not in str(error.value)
    monkeypatch.delenv("FAKE_FAULT")
    monkeypatch.setattr(answering, "score_rows", lambda *arguments, **options: pytest.fail("it samples again"))
    run = run_of(tmp_path, fixtures, harness__alpaca_eval=command)
    assert pipeline.run(run)
    assert results_of(run)["alpaca_eval"]["policy"]["figures"]["win_rate"]["value"] == 0.125


@pytest.mark.parametrize("line", ["gpt4,50,1", "mine,fifty,1", "mine,50", "mine,50,\xff"])
def test_a_leaderboard_without_figures_of_the_model_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "leaderboard.csv"
    path.write_bytes(f",win_rate,standard_error\n{line}\n".encode("latin-1"))
    with pytest.raises(UserError, match="has no win_rate and standard_error of 'mine'"):
        alpaca_eval.read_leaderboard(path, "mine")
