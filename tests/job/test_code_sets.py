"""MBPP and LeetCode: the records of configs/ walk the whole road, and published solutions earn their rewards."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from configs import leetcode, mbpp
from qrpo_jax import pipeline
from qrpo_jax.data import row_files
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.stages import STAGES
from tests.helpers.tables import write_json_lines

FILES = {"mbpp": "mbpp/mbpp_release_v1.jsonl", "leetcode": "leetcode/LeetCodeDataset-v0.3.1-test.jsonl.gz"}
CONFIGS = {"mbpp": mbpp, "leetcode": leetcode}
LENGTH = 400  # characters of a prompt that the story model can read


def records(fixtures: Path, name: str, count: int) -> list[dict[str, Any]]:
    """The first problems with short prompts; LeetCode's are cut, because all are too long for the story model."""
    path = fixtures / FILES[name]
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        problems = [json.loads(line) for line in lines]
    if name == "leetcode":
        problems = [problem | {"query": problem["query"][-LENGTH:]} for problem in problems]
    return [problem for problem in problems if len(problem["prompt"]) < LENGTH or name == "leetcode"][:count]


def job(workdir: Path, name: str, fixtures: Path, data: list[dict[str, Any]], held_out: int) -> Job:
    """The job of a record, on the story model and a few problems."""
    config: ConfigDict = CONFIGS[name].get_config()
    config.model.path, config.model.template = str(fixtures / "stories260K-hf"), "plain"
    config.model.compute_dtype = "float32"
    config.prompts.source = f"jsonl:{write_json_lines(workdir.parent / f'{name}.jsonl', data)}"
    config.prompts.update({"split": "", "held_out": held_out, "max_tokens": 400})
    for section in (config.sample, config.evaluate):
        section.update({"completions": 3, "max_new_tokens": 23})
    config.pack.max_tokens = 512
    config.train.batch_size = 8
    config.reward.require_isolation = "limits"
    return Job(FrozenConfigDict(config), workdir, Shard(0, 1), STAGES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mbpp", "leetcode"])
def test_a_record_walks_the_whole_road_on_the_story_model(
    name: str, fixtures: Path, tmp_path: Path, capsys: Any
) -> None:
    run = job(tmp_path / "run", name, fixtures, records(fixtures, name, 11), held_out=4)
    assert pipeline.run(run)
    for stage in run.config.stages:
        assert read_manifest(run.folder(stage)) is not None, stage
    rows = list(row_files.read(run.folder("score")))
    sampled = [c.reward for row in rows for c in row.completions if c.source == "reference"]
    published = [c.reward for row in rows for c in row.completions if c.source == "dataset"]
    assert len(sampled) == 3 * len(rows) > 9 and not any(sampled), sampled
    assert len(published) == len(rows), (published, len(rows))
    counts = read_manifest(run.folder("score"))["counts"]
    assert counts["completions: no code"] == len(sampled), counts
    said = capsys.readouterr().err
    assert re.search(r"score: \d+ completions: passed \d+ %, .*no code \d+ %", said), said
    page = (run.folder("report") / "report.html").read_text(encoding="utf-8")
    level = read_manifest(run.folder("score"))["isolation"]
    assert "<h3>Verdicts on completions</h3>" in page and f"Level of isolation: <b>{level}</b>" in page, level


@pytest.mark.parametrize("name", FILES)
def test_published_solutions_earn_their_rewards_and_other_programs_do_not(
    name: str, fixtures: Path, tmp_path: Path
) -> None:
    data = records(fixtures, name, 13)
    run = job(tmp_path / "run", name, fixtures, data, held_out=0)
    config = ConfigDict(run.config.to_dict())
    config.stages = ("score",)
    run = Job(FrozenConfigDict(config), run.workdir, Shard(0, 1), STAGES)
    assert pipeline.run(run)
    rows = list(row_files.read(run.folder("score")))
    rewards = {row.id: row.completions[0].reward for row in rows}
    assert len(rows) > 8 and sum(reward == 1 for reward in rewards.values()) > 0.8 * len(rows), rewards

    # Five places on, because neighbours may be two versions of one problem, with methods of the same name.
    key = {"mbpp": "canonical_solution", "leetcode": "completion"}[name]
    swapped = [one | {key: other[key]} for one, other in zip(data, data[5:] + data[:5], strict=True)]
    run = Job(FrozenConfigDict(config), tmp_path / "swapped", Shard(0, 1), STAGES)
    write_json_lines(tmp_path / f"{name}.jsonl", swapped)
    assert pipeline.run(run)
    wrong = [row.completions[0].reward for row in row_files.read(run.folder("score"))]
    assert max(wrong) < 1 and sum(wrong) < 0.2 * len(wrong), wrong
    manifest = read_manifest(run.folder("score"))
    assert manifest["first_lines"], manifest
