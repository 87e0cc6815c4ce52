"""The configs of docs/findings.md, and the columns of its tables."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from configs import finding_length, finding_references, findings
from qrpo_jax import pipeline
from qrpo_jax.config import files
from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Completion, Message, Row
from qrpo_jax.data.sources import kind_of
from qrpo_jax.evaluation.best_of import best_of
from qrpo_jax.job.job import Job
from qrpo_jax.job.prompts import source_options
from qrpo_jax.job.shard import Shard
from qrpo_jax.stages import STAGES
from qrpo_jax.sweep.points import points_of

SETTINGS = {"finding_beta": 5, "finding_ties": 3, "finding_length": 4}


def write_rows(folder: Path, side: str) -> list[Row]:
    """Seven prompts with five completions each."""
    rng = np.random.default_rng(3)
    rows = [
        Row(
            f"eval-{i}",
            (Message("user", f"question {i}"),),
            completions=tuple(
                Completion(f"answer {c}", np.arange(3, dtype=np.int32), c != 2, side, reward=float(rng.uniform()))
                for c in range(5)
            ),
        )
        for i in range(7)
    ]
    row_files.write_unit(folder, 0, 1, rows)
    row_files.finish(folder, 1)
    return list(row_files.read(folder))


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_of_a_finding_has_three_seeds_and_passes_the_checks(name: str, tmp_path: Path) -> None:
    points = points_of(files.read(name))
    assert len(points) == 3 * SETTINGS[name] and {point.config.seed for point in points} == {0, 1, 2}
    for point in points[::3]:
        pipeline.check(Job(FrozenConfigDict(point.config), tmp_path / point.name, Shard(0, 1), STAGES))


def test_data_of_another_policy_are_read_as_completions_to_train_on(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QRPO_FIXTURES", str(fixtures))
    for side in finding_references.SIDES:
        write_rows(tmp_path / "evaluate" / side, side)
        finding_references.write_data(tmp_path, side)
    lines = [json.loads(line) for line in (tmp_path / "policy.jsonl").read_text().splitlines()]
    assert len(lines) == 7 and lines[0]["finished"] == [True, True, False, True, True]
    monkeypatch.setattr(finding_references, "DATA", f"jsonl:{tmp_path}/{{}}.jsonl")
    config = finding_references.get_config()
    config.prompts.held_out = 2
    points = points_of(config)
    assert len(points) == 24
    one = Job(FrozenConfigDict(points[0].config), tmp_path / "run", Shard(0, 1), STAGES)
    pipeline.check(one)


def test_data_of_another_policy_keep_their_tests_and_lose_empty_completions(tmp_path: Path, capsys) -> None:
    answers = [
        Completion(text, np.arange(3, dtype=np.int32), True, "policy", reward=0.5) for text in ("a + b", "", "a")
    ]
    row = Row("eval-0", (Message("user", "add"),), payload='{"tests": [1]}', completions=tuple(answers))
    row_files.write_unit(tmp_path / "evaluate" / "policy", 0, 1, [row])
    row_files.finish(tmp_path / "evaluate" / "policy", 1)
    finding_references.write_data(tmp_path, "policy")
    assert "1 empty completions left out" in capsys.readouterr().out
    config = files.read("finding_quickstart_references")
    config.prompts.source, config.prompts.held_out = f"jsonl:{tmp_path}/policy.jsonl", 0
    (read,) = kind_of(config.prompts.source).open(source_options(config))["train"].rows([0])
    assert read.payload == row.payload and [c.text for c in read.completions] == ["a + b", "a"], read
    assert {c.source for c in read.completions} == {"dataset"}, read


@pytest.mark.parametrize("name", [*SETTINGS, "finding_references", "finding_quickstart_references"])
def test_no_two_settings_share_a_line_of_the_table(name: str) -> None:
    points = points_of(files.read(name))
    lines = findings.settings([{"settings": point.settings, "folder": point.name} for point in points])
    settings = {str({key: value for key, value in point.settings.items() if key != "seed"}) for point in points}
    assert len(lines) == len(settings) and {len(of) for of in lines.values()} == {3}, list(lines)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_policy_as_good_as_best_of_n_has_this_n(tmp_path: Path, n: int) -> None:
    rewards = [np.asarray([c.reward for c in row.completions]) for row in write_rows(tmp_path, "reference")]
    reward = float(np.mean([best_of(one, n) for one in rewards]))
    assert findings.effective_n(tmp_path, reward) == pytest.approx(n)
    assert math.isnan(findings.effective_n(tmp_path, 0.0)) and math.isinf(findings.effective_n(tmp_path, 1.0))


@pytest.mark.parametrize(
    ("text", "share"),
    [("max ( a , b )", 0.5), ("b + b * b", 1.0), ("abs ( a ) - 2", 0.0), ("3", 0.5), ("a*b-b", 2 / 3)],
)
def test_the_reward_without_length_counts_letters(text: str, share: float) -> None:
    assert finding_length.share_of_b((), text, None) == share
