"""Stage `score` with nothing before it: rewards for the completions of a data set, and counts of what is dropped."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from configs import default
from qrpo_jax import pipeline
from qrpo_jax.data import row_files
from qrpo_jax.errors import UserError
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.scoring import PAIRS_DROPPED, ROWS_DROPPED
from qrpo_jax.rewards import models
from qrpo_jax.rewards.models import open_reward_model
from qrpo_jax.rewards.scores import TOO_LONG
from qrpo_jax.stages import STAGES
from tests.helpers import reward_folders as folders
from tests.helpers.jobs import override

SHORT, LONG, QUOTED = "It is blue.", "blue " * 40, '"blue" it is, "blue"'


def pair(number: int, chosen: str, rejected: str, **more: object) -> dict[str, Any]:
    """A record as Magpie has it: messages, and no rewards."""
    question = {"role": "user", "content": f"What is the color of {number}?"}
    sides = {"chosen": chosen, "rejected": rejected}
    return {side: [question, {"role": "assistant", "content": text}] for side, text in sides.items()} | more


@pytest.fixture(scope="module")
def policy(tmp_path_factory: Any) -> Path:
    """A policy's folder with config and tokenizer, and no weights."""
    folder = tmp_path_factory.mktemp("policy")
    folders.write(folder, folders.CLASSIFIER)
    causal = folders.CLASSIFIER | {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(causal))
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def made(tmp_path: Path, policy: Path) -> Callable[..., Job]:
    """A job that scores records."""

    def make(records: list[dict[str, Any]], **overrides: object) -> Job:
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(map(json.dumps, records)))
        config = default.get_config()
        config.stages = ("score",)
        config.model.path = str(policy)
        config.prompts.update({"source": f"jsonl:{path}", "count": 0, "held_out": 0, "unit": 3, "max_tokens": 64})
        config.pack.max_tokens = 128
        override(config, overrides)
        return Job(FrozenConfigDict(config), tmp_path / "run", Shard(0, 1), STAGES)

    return make


def rewards(run: Job) -> dict[str, list[float]]:
    return {row.id: [c.reward for c in row.completions] for row in row_files.read(run.folder("score"))}


def test_a_rule_scores_pairs_that_have_only_an_order(made):
    run = made([pair(i, QUOTED, SHORT) for i in range(7)], reward__name="dialogue_share")
    assert pipeline.run(run), "no weights of the policy are needed"
    assert rewards(run) == {f"row-{i}": [0.5, 0.0] for i in range(1, 8)}
    assert read_manifest(run.folder("score"))["counts"]["completions: ok"] == 14


def test_a_reward_model_drops_pairs_with_a_long_side_and_counts_them(made, tmp_path):
    folders.write(tmp_path / "reward", folders.ARMO)
    records = [
        pair(0, SHORT, QUOTED),
        pair(1, SHORT, LONG),
        pair(2, LONG, QUOTED),
        pair(3, LONG, LONG + "red"),
        pair(4, QUOTED, SHORT),
    ]
    run = made(records, reward__name="model", reward__path=str(tmp_path / "reward"), reward__max_tokens=80)
    assert pipeline.run(run)
    scored = rewards(run)
    assert sorted(scored) == ["row-1", "row-5"] and np.isfinite(list(scored.values())).all(), scored
    counts = read_manifest(run.folder("score"))["counts"]
    names = ("completions: ok", f"completions: {TOO_LONG}", ROWS_DROPPED, PAIRS_DROPPED)
    assert [counts[name] for name in names] == [6, 4, 1, 2], counts
    model = open_reward_model(tmp_path / "reward")
    row = next(iter(row_files.read(run.folder("score"))))
    assert len(models.conversation(model, row.messages, LONG, "here").tokens) > 80


def test_of_more_than_a_pair_only_what_is_too_long_is_dropped(made, tmp_path):
    folders.write(tmp_path / "reward", folders.ARMO)
    records = [{"prompt": "color?", "completions": [SHORT, LONG, QUOTED]}]
    run = made(records, reward__name="model", reward__path=str(tmp_path / "reward"), reward__max_tokens=80)
    assert pipeline.run(run)
    (row,) = row_files.read(run.folder("score"))
    assert [c.text for c in row.completions] == [SHORT, QUOTED]


def test_rewards_of_the_data_set_stay_unless_they_are_replaced(made, capsys):
    graded = [pair(i, QUOTED, SHORT, score_chosen=8.5, score_rejected=3.0) for i in range(3)]
    run = made(graded, reward__name="dialogue_share")
    assert pipeline.run(run) and set(map(tuple, rewards(run).values())) == {(8.5, 3.0)}
    assert "score: 3 of 3 rows bring all their rewards, which stay" in capsys.readouterr().err
    shutil.rmtree(run.workdir)
    run = made(graded, reward__name="dialogue_share", reward__replace=True)
    assert pipeline.run(run) and set(map(tuple, rewards(run).values())) == {(0.5, 0.0)}
    published = [pair(0, QUOTED, SHORT, chosen_rewards=0.5, rejected_rewards=0.25, ref_rewards=[0.1, 0.2])]
    with pytest.raises(UserError, match="1 of 1 rows have rewards of references without their text"):
        pipeline.check(made(published, reward__name="dialogue_share", reward__replace=True))


def test_a_stage_that_loads_the_policy_still_needs_its_weights(made):
    with pytest.raises(UserError, match="no weights in .*policy"):
        pipeline.check(made([pair(0, QUOTED, SHORT)], stages=("score", "reference"), reward__name="dialogue_share"))
