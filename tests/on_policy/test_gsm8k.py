"""GSM8K: the record of configs/ walks the whole road on the story model."""

import json
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from configs import gsm8k_grpo
from qrpo_jax import pipeline
from qrpo_jax.data import row_files
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.stages import STAGES
from qrpo_jax.training.metrics import read_metrics
from tests.helpers.tables import write_json_lines

FILE = "gsm8k/example_model_solutions.jsonl"


def problems(fixtures: Path, count: int) -> list[dict[str, str]]:
    """The first short problems, in the form of the published data."""
    with (fixtures / FILE).open() as lines:
        records = [json.loads(line) for line in lines]
    short = [one for one in records if len(one["question"]) < 200][:count]
    return [{"question": one["question"], "answer": one["ground_truth"].replace("\nA: ", "\n#### ")} for one in short]


def on_stories(workdir: Path, fixtures: Path, **data: Any) -> Job:
    """The job of the record, on the story model and a few problems."""
    config: ConfigDict = gsm8k_grpo.get_config()
    config.model.path, config.model.template = str(fixtures / "stories260K-hf"), "plain"
    config.model.update({"compute_dtype": "float32", "remat": "none"})
    config.mesh.cpu_devices = 1
    source = write_json_lines(workdir.parent / "gsm8k.jsonl", problems(fixtures, 11))
    config.prompts.update({"source": f"jsonl:{source}", "split": "", "held_out": 4, "max_tokens": 400, "unit": 0})
    config.rollout.update({"iterations": 2, "prompts": 3, "completions": 2, "max_new_tokens": 13, "refill": 1})
    config.train.update({"batch_size": 4, "mask_cut": False})
    config.watch.update({"every": 2, "prompts": 2, "max_new_tokens": 13})
    config.evaluate.update({"completions": 2, "max_new_tokens": 13})
    config.pack.update({"max_tokens": 512, "row_tokens": 0, "slots": 0})
    config.log.tensorboard = False
    return Job(FrozenConfigDict(config), workdir, Shard(0, 1), STAGES)


def test_the_record_on_the_story_model_passes_all_checks(fixtures: Path, tmp_path: Path) -> None:
    pipeline.check(on_stories(tmp_path / "run", fixtures))


def test_the_record_compiles_for_the_slice_that_it_names(tmp_path: Path) -> None:
    pytest.importorskip("libtpu")
    config = gsm8k_grpo.get_config()
    config.stages = ("compile",)
    pipeline.check(Job(FrozenConfigDict(config), tmp_path, Shard(0, 1), STAGES))
    assert config.compile.topology in str(gsm8k_grpo.__doc__)
    rollout = config.rollout
    assert f"Each of {rollout.iterations} iterations (3 rounds)" in str(gsm8k_grpo.__doc__)
    assert rollout.iterations * rollout.prompts == pytest.approx(3 * 7473, rel=0.01)
    assert rollout.prompts * rollout.completions == 4 * config.train.batch_size


@pytest.mark.slow
def test_the_record_walks_the_whole_road_on_the_story_model(fixtures: Path, tmp_path: Path) -> None:
    run = on_stories(tmp_path / "run", fixtures)
    assert pipeline.run(run)
    for stage in run.config.stages:
        assert read_manifest(run.folder(stage)) is not None, stage
    rows = list(row_files.read(run.folder("train") / "rollouts"))
    assert len(rows) == 6 and all(len(row.completions) == 2 for row in rows)
    assert not any(c.reward for row in rows for c in row.completions), "a model of stories solves no problem"
    lines = read_metrics(run.folder("train") / "metrics.jsonl")
    assert len(lines) == 4 and sum("rollout_reward" in line for line in lines) == 2
    assert any("held_out_reward" in line for line in lines)
