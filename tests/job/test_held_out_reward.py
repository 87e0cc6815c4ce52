"""Reward of held-out prompts during training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrpo_jax import pipeline
from qrpo_jax.errors import UserError
from qrpo_jax.evaluation.halves import SELECTION, half_of
from qrpo_jax.job import held_out_reward
from qrpo_jax.job.completions import make_completer
from qrpo_jax.job.job import Job
from qrpo_jax.job.prompts import open_sources
from tests.helpers.jobs import DIGITS, job
from tests.helpers.text_rewards import digits

SMALL: dict[str, Any] = DIGITS | {
    "stages": ("sft", "sample", "score", "reference", "train"),
    "train__batch_size": 17,
    "train__learning_rate": 0.03,
    "watch__every": 2,
    "watch__prompts": 7,
    "watch__completions": 3,
    "watch__max_new_tokens": 11,
}
NAMES = ("held_out_reward", "held_out_without_reward", "held_out_tokens", "held_out_share_finished")


def lines_of(run: Job) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.folder("train") / "metrics.jsonl").read_text().splitlines()]


def drawn_again(run: Job) -> dict[str, float]:
    """The figures of the finished policy, from completions that are drawn anew on the mesh of units of work."""
    source = open_sources(run)["eval"]
    pairs = [(i, row) for i, row in enumerate(source.rows(range(19))) if half_of(row.id) == SELECTION][:7]
    indices, rows = [i for i, _ in pairs], [row for _, row in pairs]
    parameters = run.unit_policy(run.unit_reference())
    draw = make_completer(run, run.config.watch, parameters, side="policy", purpose="watch", most=7)
    completed, _ = draw(rows, indices)
    assert len(completed) == 7 and all(len(row.completions) == 3 for row in completed)
    of = [c for row in completed for c in row.completions]
    rewards = [[digits((), c.text, row.payload) for c in row.completions] for row in completed]
    values = np.mean(rewards), 0, np.mean([len(c.tokens) for c in of]), np.mean([c.finished for c in of])
    return dict(zip(NAMES, map(float, values), strict=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Job:
    run = job(tmp_path_factory.mktemp("run") / "run", **SMALL)
    assert pipeline.run(run)
    return run


def test_the_first_step_every_second_and_the_last_have_them(finished: Job) -> None:
    lines = lines_of(finished)
    steps = max(line["step"] for line in lines)
    watched = [line["step"] for line in lines if "held_out_reward" in line]
    assert watched == sorted({1, *range(2, steps + 1, 2), steps}), (steps, watched)
    assert len({line["held_out_reward"] for line in lines if "held_out_reward" in line}) > 1


def test_the_last_figures_are_those_of_the_policy_drawn_again(finished: Job) -> None:
    last = lines_of(finished)[-1]
    assert {name: last[name] for name in NAMES} == pytest.approx(drawn_again(finished), rel=1e-6)


def test_watching_changes_no_step(finished: Job, tmp_path: Path) -> None:
    other = job(tmp_path / "other", **SMALL | {"watch__every": 0})
    assert pipeline.run(other, fork_from=finished.workdir)
    names = ("loss", "gradient_norm", "log_ratio_high", "reward")
    ends = [[line[name] for name in names] for run in (finished, other) for line in lines_of(run)[-1:]]
    assert ends[0] == ends[1], ends
    assert not any(name in line for line in lines_of(other) for name in NAMES)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"lora__rank": 3, "lora__alpha": 6.0}, marks=pytest.mark.slow),
        {"mesh__cpu_devices": 8, "mesh__fsdp": 2, "mesh__context": 2},
    ],
    ids=["adapters", "mesh"],
)
def test_adapters_and_meshes_are_sampled_as_they_train(finished: Job, tmp_path: Path, options: dict[str, Any]) -> None:
    other = job(tmp_path / "other", **SMALL | options)
    assert pipeline.run(other, fork_from=finished.workdir)
    last = lines_of(other)[-1]
    assert {name: last[name] for name in NAMES} == pytest.approx(drawn_again(other), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompts__held_out": 0}, "prompts.held_out"),
        ({"watch__max_new_tokens": 5000}, "watch.max_new_tokens"),
        ({"reward__name": "nobody"}, "reward.name"),
    ],
    ids=str,
)
def test_what_cannot_be_watched_is_refused_before_a_run(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        pipeline.run(job(tmp_path / "run", **SMALL | options))


def test_a_selection_half_without_prompts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out_reward, "half_of", lambda row_id: "reporting")
    with pytest.raises(UserError, match="prompts.held_out is 19, none in the selection half"):
        held_out_reward.selected(job(tmp_path / "run", **SMALL), 7)


def test_another_reward_is_another_setting_of_a_stage_that_watches(tmp_path: Path) -> None:
    """Rows may bring their rewards, so that no stage before it has this one."""

    def differ(**options: Any) -> set[str]:
        alone = SMALL | {"stages": ("train",)} | options
        runs = [job(tmp_path / "run", **alone | {"reward__name": name}) for name in ("length(1, 9)", "length(1, 7)")]
        one, other = (pipeline.settings(run, "train") for run in runs)
        return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}

    assert differ() == {"reward.name"} and differ(watch__every=0) == set()
    slower, faster = (pipeline.settings(job(tmp_path / "run", **SMALL, reward__workers=n), "train") for n in (1, 2))
    assert slower == faster
