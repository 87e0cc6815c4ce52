"""Small jobs, and the environment of their processes."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from configs import quickstart
from qrpo_jax import pipeline
from qrpo_jax.errors import UserError
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--config=configs/quickstart.py",
    "--config.model.d_model=32",
    "--config.model.layers=2",
    "--config.model.heads=2",
    "--config.model.kv_heads=1",
    "--config.model.head_dim=16",
    "--config.model.d_ff=61",
    "--config.prompts.count=59",
    "--config.prompts.held_out=23",
    "--config.prompts.unit=13",
    "--config.sample.completions=3",
    "--config.evaluate.completions=3",
    "--config.sft.examples=797",
    "--config.sft.batch_size=31",
    "--config.sft.checkpoint_every=7",
    "--config.train.batch_size=17",
    "--config.train.epochs=3",
    "--config.train.checkpoint_every=5",
]

# Overrides of `job`: a policy that is rewarded for digits, which it learns in a few steps.
DIGITS = {
    "prompts__count": 23,
    "prompts__held_out": 19,
    "sft__examples": 101,
    "sft__batch_size": 31,
    "sample__completions": 4,
    "sample__max_new_tokens": 9,
    "reward__name": "tests.helpers.text_rewards:digits",
    "log__tensorboard": False,
    "mesh__cpu_devices": 1,
}


def job(workdir: Path, **overrides: object) -> Job:
    """A quickstart job with a tiny model; `section__key` overrides a key."""
    config = quickstart.get_config()
    config.model.update({"d_model": 8, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 8, "d_ff": 11})
    override(config, overrides)
    return Job(FrozenConfigDict(config), workdir, Shard(0, 1), STAGES)


def override(config: ConfigDict, overrides: Mapping[str, object]) -> None:
    """Sets keys of a config by names such as train__beta."""
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        if name:
            config[section][name] = value
        else:
            config[section] = value


def environment(**variables: str) -> dict[str, str]:
    """The environment of a process that runs a job on one CPU device."""
    inherited = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return inherited | {"JAX_PLATFORMS": "cpu"} | variables


def hear_signals() -> None:
    """For a child before it starts: signals mean what they mean in a terminal, also where the tests run without one."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def refused(tmp_path: Path, message: str, **overrides: object) -> None:
    """Asserts that a job is refused in one line that matches `message` and names a config key; nothing is written."""
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match=message) as error:
        pipeline.run(job(workdir, **overrides))
    assert "\n" not in str(error.value), error.value
    assert "config." in str(error.value), error.value
    assert not workdir.exists(), "a refused config must not leave anything behind"
