"""Jobs of a size that no test has to wait for."""

from pathlib import Path

import pytest
from ml_collections import FrozenConfigDict

from configs import quickstart
from qrpo_jax import pipeline
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


def job(workdir: Path, **overrides: object) -> Job:
    """A quickstart job with keys such as train__beta overridden; small enough that no test needs to wait."""
    config = quickstart.get_config()
    config.model.update({"d_model": 8, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 8, "d_ff": 11})
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        if name:
            config[section][name] = value
        else:
            config[section] = value
    return Job(FrozenConfigDict(config), workdir, Shard(0, 1), STAGES)


def refused(tmp_path: Path, message: str, **overrides: object) -> None:
    workdir = tmp_path / "run"
    with pytest.raises(ValueError, match=message) as error:
        pipeline.run(job(workdir, **overrides))
    assert "\n" not in str(error.value), error.value
    assert not workdir.exists(), "a refused config must not leave anything behind"
