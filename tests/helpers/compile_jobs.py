"""Jobs that compile a tiny model for chips that are not there."""

import json
from pathlib import Path

import pytest
from ml_collections import FrozenConfigDict

from configs import at_scale
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.stages import STAGES
from tests.helpers.jobs import override

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def compiling(tmp_path: Path, **overrides: object) -> Job:
    """A job that compiles a tiny model, of which there is only a config.json, for four absent chips."""
    pytest.importorskip("libtpu")
    folder = tmp_path / "shape"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPE))
    config = at_scale.get_config("unused", "v5e:2x2")
    config.stages = ("compile",)
    config.model.update({"path": str(folder), "attention": "plain"})
    config.pack.update({"max_tokens": 256, "row_tokens": 256, "slots": 4})
    config.prompts.update({"unit": 5, "max_tokens": 32})
    config.sample.update({"completions": 2, "max_new_tokens": 32})
    override(config, overrides)
    return Job(FrozenConfigDict(config), tmp_path / "run", Shard(0, 1), STAGES)


def check_program(program):
    """What holds for every program that fits."""
    assert program["fits"], program
    assert 0 < program["memory_gb"]["total"] < program["memory_gb"]["hbm"], program
    low, high = program["mfu_range"]
    assert 0 < low <= program["mfu"] * 1.001 and program["mfu"] <= high * 1.001 < 1, program
