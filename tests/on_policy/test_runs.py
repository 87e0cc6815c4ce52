"""On-policy runs: what they write, and that neither kills nor devices change it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrpo_jax import pipeline
from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row
from qrpo_jax.errors import DamagedError
from qrpo_jax.evaluation.intervals import mean_with_interval
from qrpo_jax.job import status
from qrpo_jax.job.job import Job
from qrpo_jax.job.log_probs import make_log_probs
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.row_export import export_rows
from qrpo_jax.on_policy import circle, roller, rollouts
from qrpo_jax.on_policy.rollout import read_rollout
from qrpo_jax.training.metrics import read_metrics
from tests.helpers.jobs import job
from tests.helpers.on_policy_jobs import ON_POLICY, SMALL, STEPS, assert_same, on_policy, outcome
from tests.helpers.runs import Killed
from tests.job.test_processes import run as run_processes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = job(tmp_path_factory.mktemp("base") / "run", **SMALL)
    assert pipeline.run(run)
    return run.workdir


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return on_policy(tmp_path_factory.mktemp("run") / "run", base)


@pytest.fixture(scope="module")
def ahead(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return on_policy(tmp_path_factory.mktemp("ahead") / "run", base, rollout__ahead=True)


def rows_of(run: Job) -> list[Row]:
    return list(row_files.read(run.folder("train") / "rollouts"))


def test_all_completions_of_a_run_are_rows_with_rewards_and_log_probs(finished: Job, base: Path) -> None:
    rows = rows_of(finished)
    assert len(rows) == 3 * 7 and all(len(row.completions) == 3 for row in rows)
    completions = [c for row in rows for c in row.completions]
    assert all(c.source == "policy" and np.isfinite([c.reward, c.log_prob]).all() for c in completions)
    stored = {row.id: sorted(c.reward for c in row.completions) for row in row_files.read(base / "score")}
    for row in rows:  # of the second and later rounds over the prompts, too
        assert sorted(row.reference_rewards.tolist()) == stored[row.id.partition("@")[0]], row.id
    assert len({row.id for row in rows}) == len(rows)


def test_log_probs_are_those_of_the_stages_and_of_the_sampler(finished: Job) -> None:
    reference, rows = finished.unit_reference(), rows_of(finished)
    values, _ = make_log_probs(finished)(reference, rows)
    for row, of_row in zip(rows, values, strict=True):
        own = [c.reference_log_prob for c in row.completions]
        assert own == pytest.approx(of_row.tolist(), abs=2e-5), row.id
    first = read_rollout(finished.folder("train") / "rollouts", 0, 3)
    gaps = {name: np.abs(first.tokens["old"] - first.tokens[name]).max() for name in ("sampler", "reference")}
    assert gaps["sampler"] < 1e-4 and gaps["reference"] == 0.0, gaps  # the policy starts as its reference


def test_metrics_tell_of_each_rollout_at_its_first_step(finished: Job) -> None:
    lines, _ = outcome(finished)
    with_rollout = [line for line in lines if "rollout_reward" in line]
    assert len(lines) == STEPS and [line["step"] for line in with_rollout] == [1, 5, 9]
    assert [line["rollout_samples"] for line in with_rollout] == [21, 42, 63]
    assert {line["rollout_staleness"] for line in with_rollout} == {0}
    for line, part in zip(with_rollout, np.split(np.asarray(rows_of(finished), object), 3), strict=True):
        mean = np.mean([c.reward for row in part for c in row.completions])
        assert line["rollout_reward"] == pytest.approx(mean, rel=1e-6)
    first = lines[0]
    assert first["rollout_kl_to_reference"] == 0
    assert [first["log_ratio_high"], first["log_ratio_low"]] == pytest.approx([0, 0], abs=1e-5)  # packed otherwise
    # That rewards rise is for longer runs to show: with 21 completions a rollout it depends on the draw.
    assert with_rollout[-1]["rollout_kl_to_reference_k3"] > with_rollout[0]["rollout_kl_to_reference_k3"] == 0


def test_ahead_a_policy_is_one_iteration_old(ahead: Job) -> None:
    lines, _ = outcome(ahead)
    assert [line["rollout_staleness"] for line in lines if "rollout_staleness" in line] == [0, 4, 4]
    second = read_rollout(ahead.folder("train") / "rollouts", 1, 3)
    assert np.array_equal(second.tokens["old"], second.tokens["reference"])  # drawn before any step
    assert len(rows_of(ahead)) == 21 and not (ahead.folder("train") / "rollouts" / rollouts.DRAWN).exists()


MOMENTS: dict[str, tuple[Any, str]] = {
    "in a batch": (circle.Circle, "__next__"),
    "before sampling": (roller.Roller, "draw"),
    "between sampling and scores": (roller.Roller, "score_here"),
    "between scores and log-probs": (roller.Roller, "with_log_probs"),
    "before the files": (rollouts, "write_rollout"),
}


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """The call of that number ends the run."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(owner, name, counted)


FAST = (("before the files", True),)


@pytest.mark.parametrize(
    ("moment", "early"),
    [
        pytest.param(moment, early, id=f"{moment}, {way}", marks=[] if (moment, early) in FAST else pytest.mark.slow)
        for moment in MOMENTS
        for early, way in ((False, "in turn"), (True, "ahead"))
    ],
)
def test_a_run_that_is_killed_ends_like_an_undisturbed_one(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    moment: str,
    early: bool,
) -> None:
    undisturbed = request.getfixturevalue("ahead" if early else "finished")
    run = job(tmp_path / "run", **ON_POLICY | {"rollout__ahead": early})
    owner, name = MOMENTS[moment]
    lives = 0
    for call in (2, 3, 5) if moment == "in a batch" else (2, 2):
        with monkeypatch.context() as patch:
            kill_at(patch, owner, name, call)
            try:
                assert pipeline.run(run, fork_from=base if not lives else None)
                break
            except Killed:
                lives += 1
    assert lives >= 1 and pipeline.run(run)
    assert_same(run, undisturbed)


def test_what_was_scored_is_not_scored_again(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge may say something else the second time."""
    run = job(tmp_path / "run", **ON_POLICY)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, circle.Circle, "__next__", 2)
        pipeline.run(run, fork_from=base)
    rewards = [c.reward for row in read_rollout(run.folder("train") / "rollouts", 0, 3).rows for c in row.completions]
    monkeypatch.setattr("tests.helpers.text_rewards.DIGITS", frozenset("ab"))
    assert pipeline.run(run)
    kept = [c.reward for row in rows_of(run)[:7] for c in row.completions]
    assert kept == rewards


@pytest.mark.parametrize(
    "options",
    [
        {"mesh__cpu_devices": 8, "mesh__fsdp": 2, "mesh__context": 2},
        pytest.param({"mesh__cpu_devices": 8, "train__microbatches": 2}, marks=pytest.mark.slow),
    ],
    ids=["axes", "rows"],
)
def test_eight_devices_are_one(finished: Job, base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    other = on_policy(tmp_path / "run", base, **options)
    (lines, _), (other_lines, _) = outcome(finished), outcome(other)
    for line, wanted in zip(other_lines, lines, strict=True):
        for name in ("loss", "gradient_norm", "log_ratio_high", "reward", "rollout_reward", "rollout_kl_to_reference"):
            if name in wanted:
                assert line[name] == pytest.approx(wanted[name], rel=2e-3, abs=2e-4), (wanted["step"], name)
    texts = [[c.text for row in rows_of(run) for c in row.completions] for run in (finished, other)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_adapters_sample_and_learn(base: Path, tmp_path: Path) -> None:
    run = on_policy(tmp_path / "run", base, lora__rank=3, lora__alpha=6.0)
    lines, _ = outcome(run)
    with_rollout = [line for line in lines if "rollout_reward" in line]
    assert with_rollout[0]["rollout_kl_to_reference"] == 0
    assert with_rollout[-1]["rollout_kl_to_reference_k3"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"train__objective": "dpo", "select__units": "best_worst", "train__batch_size": 3},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                {"train__objective": "rebel", "select__units": "random_pairs", "train__batch_size": 3},
                {"train__objective": "simpo", "select__units": "all_pairs"},
                {"train__objective": "sft"},
            )
        ),
    ],
    ids=lambda options: str(options["train__objective"]),
)
def test_other_objectives_need_no_stored_completions(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Online DPO and its relatives; the stages are those of `base` without its samples."""
    run = on_policy(tmp_path / "run", base, stages=("sft", "train"), **options)
    lines, _ = outcome(run)
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert len({line["loss"] for line in lines}) > 1


def test_iterations_are_on_record_with_intervals_over_their_prompts(finished: Job) -> None:
    several = json.loads((finished.folder("train") / "iterations.json").read_text())
    assert [one["step"] for one in several] == [1, 5, 9] and [one["samples"] for one in several] == [21, 42, 63]
    for one, rows in zip(several, np.split(np.asarray(rows_of(finished), object), 3), strict=True):
        log_ratios = [[c.log_prob - c.reference_log_prob for c in row.completions] for row in rows]
        of_prompts = {
            "reward": [np.mean([c.reward for c in row.completions]) for row in rows],
            "tokens": [np.mean([len(c.tokens) for c in row.completions]) for row in rows],
            "kl_to_reference": [np.mean(of_row) for of_row in log_ratios],
        }
        for name, means in of_prompts.items():  # groups are of one size
            mean, ends = mean_with_interval(np.asarray(means))
            assert one["figures"][name] == pytest.approx(mean, abs=2e-4), (name, one["figures"][name], mean)
            assert one["intervals"][name] == pytest.approx(ends, abs=2e-4), (name, one["intervals"][name], ends)


def test_the_optimum_is_forecast_where_rewards_are_ranked_among_stored_ones(finished: Job) -> None:
    manifest = read_manifest(finished.folder("train")) or {}
    assert manifest["stored_references"] and manifest["forecast"]["beta"] == pytest.approx([0.3] * 3)
    assert manifest["forecast"]["references"] == [4, 4, 4] and manifest["forecast"]["kl"] > 0


def test_another_run_takes_over_what_was_drawn_and_exports_it(finished: Job, tmp_path: Path) -> None:
    fork = job(tmp_path / "run", **ON_POLICY)
    assert pipeline.run(fork, fork_from=finished.workdir)
    ids = [row.id for row in rows_of(finished)]
    assert [row.id for row in rows_of(fork)] == ids
    assert export_rows(fork.workdir, "train/rollouts").rows == len(ids)
    assert "iterations drawn" in status.about({"state": "begun", "units": status.unit_counts(fork.folder("train"))})


@pytest.mark.parametrize("name", ["rollouts/tokens/00001.npz", "rollouts/rows-train.array_record-00002-of-00003"])
def test_a_changed_byte_in_what_was_drawn_is_noticed(finished: Job, tmp_path: Path, name: str) -> None:
    fork = job(shutil.copytree(finished.workdir, tmp_path / "run"), **ON_POLICY)
    path = fork.folder("train") / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=path.name):
        pipeline.run(fork)


TOKENWISE: dict[str, dict[str, Any]] = {
    "grpo": {"train__clip_high": 0.28, "train__token_average": "token"},
    "rloo": {},
    "reinforce_pp": {},
    "ppo": {"train__kl_target": 0.1},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "ppo" else pytest.mark.slow) for name in TOKENWISE]
)
def test_objectives_of_tokens_train_and_are_killed_without_a_trace(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """PPO's value head, and its KL strength, which adapts, go on where they were."""
    options = TOKENWISE[name] | {"stages": ("sft", "train"), "train__objective": name, "train__beta": 0.05}
    whole = on_policy(tmp_path / "whole", base, **options)
    lines, _ = outcome(whole)
    assert len({line["loss"] for line in lines}) > 1 and all(np.isfinite(line["loss"]) for line in lines)
    betas = [line["rollout_beta"] for line in lines if "rollout_beta" in line]
    assert len(set(betas)) == (3 if "train__kl_target" in options else 1), betas
    assert lines[0]["ratio_mean"] == pytest.approx(1, abs=1e-5) and max(line["kl_to_old"] for line in lines) > 1e-5
    run = job(tmp_path / "run", **ON_POLICY | options)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, circle.Circle, "__next__", 6)  # within the second iteration, three steps after a checkpoint
        pipeline.run(run, fork_from=base)
    assert pipeline.run(run)
    assert_same(run, whole)
    assert not (set(run.trained_parameters("train", run.mesh)) & {"value_head"})


def test_groups_without_signal_make_room_for_others(base: Path, tmp_path: Path) -> None:
    """A reward of two values leaves many groups without one."""
    options = {
        "stages": ("sft", "train"),
        "train__objective": "grpo",
        "reward__name": "tests.helpers.text_rewards:any_digit",
    }
    shares, drawn = [], []
    for refill in (0, 2):
        run = on_policy(tmp_path / f"run-{refill}", base, **options, rollout__refill=refill)
        first = outcome(run)[0][0]
        rows = read_rollout(run.folder("train") / "rollouts", 0, 3).rows
        differing = np.mean([len({c.reward for c in row.completions}) > 1 for row in rows])
        assert len(rows) == 7 and first["rollout_groups_with_signal"] == pytest.approx(differing)
        shares.append(differing)
        drawn.append(first["rollout_drawn"])
    assert shares[0] < shares[1] and drawn[0] == 21 < drawn[1], (shares, drawn)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    options = [
        "--config.stages=sft,train",
        "--config.train.data=on_policy",
        "--config.train.objective=ppo",
        "--config.rollout.iterations=3",
        "--config.rollout.prompts=6",
        "--config.rollout.completions=4",
        "--config.rollout.max_new_tokens=12",
        "--config.rollout.ahead=True",
    ]
    for processes in (1, 2):
        run_processes(tmp_path / str(processes), processes, *options)
    lines = [read_metrics(tmp_path / str(n) / "train" / "metrics.jsonl") for n in (1, 2)]
    assert len(lines[0]) == len(lines[1]) > 3
    for one, two in zip(*lines, strict=True):
        for name in ("loss", "ratio_mean", "kl_to_reference", "rollout_reward", "rollout_kl_to_reference"):
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=2e-3, abs=2e-4), (one["step"], name)
    texts = [
        [c.text for row in row_files.read(tmp_path / str(n) / "train" / "rollouts") for c in row.completions]
        for n in (1, 2)
    ]
    assert len(texts[0]) == 72 and texts[0] == texts[1]
