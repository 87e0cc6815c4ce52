"""Small on-policy jobs that start from one reference policy with scored completions."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from qrpo_jax import pipeline
from qrpo_jax.job.job import Job
from qrpo_jax.training.metrics import MACHINE, read_metrics
from tests.helpers.jobs import DIGITS, job

SMALL: dict[str, Any] = DIGITS | {"stages": ("sft", "sample", "score")}
ON_POLICY: dict[str, Any] = SMALL | {
    "stages": ("sft", "sample", "score", "train"),
    "train__data": "on_policy",
    "train__batch_size": 13,
    "train__epochs": 2,
    "train__learning_rate": 0.03,
    "train__checkpoint_every": 3,
    "rollout__iterations": 3,
    "rollout__prompts": 7,
    "rollout__completions": 3,
    "rollout__max_new_tokens": 11,
}
STEPS = 3 * 2 * 2  # iterations, passes, and steps of a pass over 21 completions


def on_policy(workdir: Path, base: Path, **options: Any) -> Job:
    """A finished on-policy run that starts from the stages of `base`."""
    run = job(workdir, **ON_POLICY | options)
    assert pipeline.run(run, fork_from=base)
    return run


def outcome(run: Job) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """What must not depend on how a run came to its end: its metrics, and the parameters."""
    lines = [
        {name: value for name, value in line.items() if name not in MACHINE}
        for line in read_metrics(run.folder("train") / "metrics.jsonl")
    ]
    parameters = jax.device_get(run.trained_parameters("train", run.mesh))
    flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(parameters)}
    return lines, flat


def assert_same(run: Job, other: Job) -> None:
    """Both have the same bits."""
    (lines, parameters), (other_lines, other_parameters) = outcome(run), outcome(other)
    assert len(lines) == len(other_lines), (len(lines), len(other_lines))
    for line, wanted in zip(lines, other_lines, strict=True):
        differing = {n: (line.get(n), wanted.get(n)) for n in line.keys() | wanted.keys() if _differ(line, wanted, n)}
        assert not differing, (wanted["step"], differing)
    for name, leaf in parameters.items():
        assert np.array_equal(leaf, other_parameters[name]), (name, np.abs(leaf - other_parameters[name]).max())


def _differ(line: dict[str, float], other: dict[str, float], name: str) -> bool:
    return not np.array_equal(line.get(name, -1.0), other.get(name, -1.0), equal_nan=True)
