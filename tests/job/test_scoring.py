"""Stage `score` with sums, functions that fail and a judge: shards, restarts, and what stops a run."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from ml_collections import FrozenConfigDict

from configs import default
from qrpo_jax import main, pipeline
from qrpo_jax.data import row_files
from qrpo_jax.data.rows import encode
from qrpo_jax.errors import FailuresError, UserError
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.rewards.judge import NO_GRADE
from qrpo_jax.stages import STAGES
from tests.helpers.fake_judge import FakeJudge
from tests.helpers.jobs import override
from tests.helpers.served_jobs import ALONE, write_policy

UNITS, UNIT = 7, 3
PARTS = (
    "user_rewards:plain weight=0.5",
    "length mean=5 std=2 clip=-2:2 weight=-0.25",
    "length(2, 3, words) name=words",
    "format(.*[0-9])",
)
FUNCTIONS = """
    import asyncio
    import math
    import os
    import time


    def plain(prompt, completion, payload):
        number = int(completion.split()[-1])
        broken = os.environ.get("BROKEN", "")
        if broken and number >= int(broken):
            raise ValueError("broken")
        if number == 13:
            return math.nan
        if number == 29:
            time.sleep(60)
        return number / 3 + len(prompt)


    async def later(prompt, completion, payload):
        if completion.endswith(" 29"):
            await asyncio.sleep(60)
        return plain(prompt, completion, payload)


    def several(prompts, completions, payloads):
        return [plain(*one) for one in zip(prompts, completions, payloads)]
"""


@pytest.fixture
def scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a job that scores two completions of each prompt of a file."""
    policy = write_policy(tmp_path / "policy")
    (tmp_path / "user_rewards.py").write_text(textwrap.dedent(FUNCTIONS))
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "data.jsonl"
    records = [
        {"prompt": f"{i} + 1?", "completions": [f"It is {2 * i}", f"{2 * i + 1}"]} for i in range(UNITS * UNIT - 1)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))

    def make(workdir: str = "run", shard: Shard = ALONE, **overrides: Any) -> Job:
        config = default.get_config()
        override(config, flags(policy, path) | overrides)
        return Job(FrozenConfigDict(config), tmp_path / workdir, shard, STAGES)

    return make


def flags(policy: Path, data: Path) -> dict[str, Any]:
    return {
        "stages": ("score",),
        "model__path": str(policy),
        "prompts__source": f"jsonl:{data}",
        "prompts__count": 0,
        "prompts__held_out": 0,
        "prompts__unit": UNIT,
        "prompts__max_tokens": 64,
        "pack__max_tokens": 128,
        "reward__seconds": 0.3,
        "reward__failures": 0.5,
    }


def encoded(run: Job) -> list[bytes]:
    return [encode(row) for row in row_files.read(run.folder("score"))]


def test_the_reward_that_training_sees_is_the_sum_and_the_rows_hold_its_parts(scoring):
    run = scoring(reward__name="sum", reward__parts=PARTS)
    assert pipeline.run(run)
    rows = list(row_files.read(run.folder("score")))
    for row in rows:
        for completion in row.completions:
            plain, tokens, words, ends = (number for _, number in completion.components)
            total = 0.5 * plain - 0.25 * min(max((tokens - 5) / 2, -2), 2) + words + ends
            assert completion.reward == pytest.approx(total, rel=1e-6), completion
            assert ends == 1 and words == (len(completion.text.split()) in (2, 3)) and tokens > 0
    left_out = [row.id for row in rows if len(row.completions) < 2]
    counts = read_manifest(run.folder("score"))["counts"]
    # The completions 13 and 29 have no reward; their rows have two of a data set, and are dropped.
    assert len(rows) == UNITS * UNIT - 3 and not left_out, (len(rows), counts)
    assert counts["completions: failed: not a number"] == counts["completions: failed: time"] == 1, counts
    assert counts["rows dropped: one of a pair has no reward"] == 2, counts


@pytest.mark.parametrize("name", ["user_rewards:later", "user_rewards:several"])
def test_sync_async_and_batched_functions_give_the_same_rows(scoring, name):
    alike = scoring("one", reward__name="user_rewards:plain")
    other = scoring("other", reward__name=name, reward__batch_rows=4, reward__concurrency=5)
    assert pipeline.run(alike) and pipeline.run(other)
    assert encoded(alike) == encoded(other) and len(encoded(alike)) == UNITS * UNIT - 3


def test_shards_and_restarts_give_the_rows_of_an_undisturbed_run(scoring):
    options = {"reward__name": "sum", "reward__parts": PARTS}
    whole = scoring("whole", **options)
    assert pipeline.run(whole)
    parts = [scoring("parts", Shard(i, 3), **options) for i in (2, 0, 1)]
    assert [pipeline.run(part) for part in parts] == [False, False, True]
    assert encoded(parts[-1]) == encoded(whole)
    (whole.folder("score") / "manifest.json").unlink()
    before, lost = encoded(whole), row_files.unit_path(whole.folder("score"), 4, UNITS)
    lost.unlink()
    assert pipeline.run(whole) and encoded(whole) == before


def test_a_run_with_too_many_failures_stops_and_goes_on_once_the_function_is_corrected(scoring, monkeypatch):
    undisturbed = scoring("undisturbed", reward__name="user_rewards:plain")
    assert pipeline.run(undisturbed)
    run = scoring("run", reward__name="user_rewards:plain", reward__failures=0.1)
    monkeypatch.setenv("BROKEN", "16")
    with pytest.raises(FailuresError) as caught:
        pipeline.run(run)
    line = str(caught.value)
    # Two of the 18 completions of the first three units, 13 and 16, are more than a tenth; the third is not written.
    assert "2 of 18 completions so far have no reward, a larger share than config.reward.failures=0.1" in line, line
    assert "failed: ValueError 1, failed: not a number 1" in line and "row 'row-7', completion 1" in line, line
    done = [unit for unit in range(UNITS) if row_files.unit_done(run.folder("score"), unit, UNITS)]
    assert done == [0, 1], done
    monkeypatch.delenv("BROKEN")
    assert pipeline.run(run)
    assert encoded(run) == encoded(undisturbed)


def test_main_says_it_in_one_line_with_status_1_and_0_failures_is_a_mistake_of_the_user(scoring, monkeypatch, capsys):
    monkeypatch.setenv("BROKEN", "3")
    run = scoring()
    config = flags(Path(run.config.model.path), Path(run.config.prompts.source.removeprefix("jsonl:")))
    given = [
        f"--config.{key.replace('__', '.')}={','.join(value) if isinstance(value, tuple) else value}"
        for key, value in (config | {"reward__name": "user_rewards:plain", "reward__failures": 0.01}).items()
    ]
    for share, status, words in (
        (0.01, 1, "1 of 6 completions so far"),
        (0, 2, "failed for row 'row-2', completion 1"),
    ):
        workdir = f"--workdir={run.workdir}-{status}"
        with pytest.raises(SystemExit) as caught:
            main.run(["qrpo-jax", "--config=default", workdir, *given, f"--config.reward.failures={share}"])
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert caught.value.code == status and words in line, (caught.value.code, line)
        assert "ValueError: broken in " in line and "user_rewards.py, line" in line, line


def test_a_judge_grades_and_where_it_says_garbage_the_run_goes_on(scoring, capsys):
    with FakeJudge(lambda asked, grade: "lovely" if "It is 8" in asked else str(grade)) as judge:
        options = {"judge__servers": (judge.address,), "judge__model": "judge", "judge__attempts": 2}
        run = scoring(reward__name="sum", reward__parts=("judge weight=2", "length weight=0.01"), **options)
        assert pipeline.run(run)
        again = scoring("again", reward__name="judge", judge__prompt="grade.txt", **options)
        with pytest.raises(UserError, match=r"is no file that can be read.*\(config.judge.prompt\)"):
            pipeline.check(again)
        lacking = scoring("lacking", reward__name="judge", judge__prompt="{completion} {payload.truth}", **options)
        with pytest.raises(UserError, match=r"line 1: its payload is ''.*{payload.truth} \(config.judge.prompt\)"):
            pipeline.check(lacking)
    counts = read_manifest(run.folder("score"))["counts"]
    assert counts[f"completions: {NO_GRADE}"] == 1 and counts["completions: ok"] == 39, counts
    for row in row_files.read(run.folder("score")):
        for completion in row.completions:
            (_, grade), (_, tokens) = completion.components
            assert 0 <= grade <= 1 and completion.reward == pytest.approx(2 * grade + 0.01 * tokens, rel=1e-6)
    said = capsys.readouterr().err
    assert "by the judge 'judge' on 1 servers" in said and f"{NO_GRADE} 1" in said, said


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({}, r"config.judge.servers"),
        ({"judge__servers": ("http://127.0.0.1:9/v1",)}, r"judge.model is ''.*config.judge.model"),
        ({"judge__servers": ("http://key@host/v1",), "judge__model": "j"}, "use config.judge.key_variable"),
        (
            {"judge__servers": ("http://127.0.0.1:9/v1",), "judge__model": "j", "judge__attempts": 1},
            "broke off: ConnectError.*config.judge.servers",
        ),
        (
            {"judge__servers": ("http://127.0.0.1:9/v1",), "judge__model": "j", "judge__low": 10.0},
            "grades are from 10 to 10.*config.judge.low, config.judge.high",
        ),
        (
            {"judge__servers": ("http://127.0.0.1:9/v1",), "judge__model": "j", "judge__grade": "("},
            "must be 'number', 'json:KEY' or a regular expression.*config.judge.grade",
        ),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_before_the_run(scoring, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        pipeline.run(scoring(reward__name="judge", **overrides))
    assert "\n" not in str(caught.value) and not scoring().folder("score").exists()


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"reward__name": "sum"}, "without parts.*config.reward.parts"),
        ({"reward__name": "sum", "reward__parts": ("tests", "no_such")}, "needs prompts with tests|no_such"),
        (
            {"reward__name": "sum", "reward__parts": ("length", "no_such")},
            "reward is 'no_such'; allowed.*config.reward.parts",
        ),
        ({"reward__name": "sum", "reward__parts": ("length", "model")}, "config.reward.path"),
        ({"reward__name": "length", "reward__parts": ("length",)}, "is one alone.*config.reward.parts"),
        (
            {"reward__name": "sum", "reward__parts": ("length", "user_rewards:none")},
            "cannot be imported.*config.reward.parts",
        ),
        ({"reward__name": "sum", "reward__parts": ("length",), "reward__path": "x"}, "reads no folder"),
    ],
)
def test_mistakes_in_a_sum_are_one_line_with_the_key(scoring, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        pipeline.run(scoring(**overrides))
    assert "\n" not in str(caught.value)
