"""Loss and log-ratios of held-out rows during training."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrpo_jax import pipeline
from qrpo_jax.data import row_files
from qrpo_jax.errors import UserError
from qrpo_jax.job.job import Job
from qrpo_jax.job.log_probs import make_log_probs
from qrpo_jax.job.manifest import read_manifest
from tests.helpers.jobs import DIGITS, job

SMALL: dict[str, Any] = DIGITS | {
    "stages": ("sft", "sample", "score", "reference", "train"),
    "prompts__count": 29,
    "prompts__held_out": 0,
    "train__batch_size": 17,
    "train__learning_rate": 0.03,
    "train__evaluate_every": 2,
    "train__held_out": 5,
}


def lines_of(run: Job) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.folder("train") / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Job:
    run = job(tmp_path_factory.mktemp("run") / "run", **SMALL)
    assert pipeline.run(run)
    return run


def test_every_second_step_and_the_last_have_the_held_out_figures(finished: Job) -> None:
    manifest = read_manifest(finished.folder("train"))
    assert manifest is not None and manifest["counts"]["rows held out"] == 5
    assert manifest["counts"]["completions"] == 24 * 4, manifest["counts"]
    lines = [line for line in lines_of(finished) if "held_out_loss" in line]
    steps = manifest["steps"]
    assert [line["step"] for line in lines] == sorted({*range(2, steps + 1, 2), steps}), (steps, lines)
    first, last = lines[0], lines[-1]
    assert first["held_out_predicted_log_ratio_high"] == last["held_out_predicted_log_ratio_high"] > 0
    assert last["held_out_loss"] != first["held_out_loss"]
    assert not any(name.startswith("held_out") for name in lines_of(finished)[0])


def test_the_figures_are_those_of_the_last_policy_on_rows_that_no_step_saw(finished: Job) -> None:
    """Recomputed for the rows that the hash holds out, from their rewards and log-probs, by the formulas of QRPO."""
    import hashlib

    rows = list(row_files.read(finished.folder("reference")))
    salt = "qrpo-jax held out of training 1: "
    rows.sort(key=lambda row: hashlib.sha256((salt + row.id).encode()).digest())
    held = rows[:5]
    reference = finished.reference_parameters(finished.unit_mesh)
    policy = finished.policy_parameters(finished.unit_mesh, reference)
    log_probs = make_log_probs(finished, "policy")(policy, held)[0]
    config, losses, ratios, predicted = finished.config, [], [], []
    beta = config.train.beta
    log_z = math.log(beta * (math.exp(1 / beta) - 1))  # of the identity
    for row, log_prob_S in zip(held, log_probs, strict=True):
        rewards = np.asarray([c.reward for c in row.completions], np.float32)
        for i, completion in enumerate(row.completions):
            others = np.delete(rewards, i)
            quantile = (others < rewards[i]).mean() + (others == rewards[i]).mean() / 2  # ties 'mid'
            ratio = log_prob_S[i] - completion.reference_log_prob
            losses.append((quantile - beta * log_z - beta * ratio) ** 2)
            ratios.append((quantile > 0.5, ratio))
            predicted.append((quantile > 0.5, quantile / beta - log_z))
    assert config.train.transform == "identity" and config.select.ties == "mid" and config.select.exclude_own
    last = lines_of(finished)[-1]
    assert last["held_out_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    for name, pairs in (("log_ratio", ratios), ("predicted_log_ratio", predicted)):
        for side, high in (("high", True), ("low", False)):
            expected = np.mean([value for is_high, value in pairs if is_high == high])
            assert last[f"held_out_{name}_{side}"] == pytest.approx(expected, rel=1e-4, abs=1e-4), (name, side)


def test_looking_at_held_out_rows_changes_no_step(finished: Job, tmp_path: Path) -> None:
    """A run that looks less often ends in the same parameters, and its other figures are the same."""
    other = job(tmp_path / "other", **SMALL | {"train__evaluate_every": 5, "stages": SMALL["stages"]})
    assert pipeline.run(other, fork_from=finished.workdir)
    names = ("loss", "gradient_norm", "log_ratio_high", "reward")
    ends = [[line[name] for name in names] for run in (finished, other) for line in lines_of(run)[-1:]]
    assert ends[0] == ends[1], ends


def test_all_rows_held_out_are_refused(finished: Job, tmp_path: Path) -> None:
    everything = job(tmp_path / "none", **SMALL | {"train__held_out": 29})
    with pytest.raises(UserError, match="train.held_out is 29, all of the rows"):
        pipeline.run(everything, fork_from=finished.workdir)
