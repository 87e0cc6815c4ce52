"""Jobs whose completions come from a fake server, for a policy without weights."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from configs import default
from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Row
from qrpo_jax.hugging_face.tokenizer import open_text
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.job.units import row_units
from qrpo_jax.stages import STAGES
from tests.helpers import chats, reward_folders
from tests.helpers.fake_openai import FakeOpenAI
from tests.helpers.jobs import override

ALONE = Shard(0, 1)
PROMPTS, COMPLETIONS, UNIT = 29, 5, 7
CONFIG = reward_folders.LLAMA | {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}


def write_policy(folder: Path) -> Path:
    """A policy's config and tokenizer, and no weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    chats.tokenizer("llama-3").save_pretrained(folder)
    return folder


def write_prompts(path: Path, count: int = PROMPTS) -> Path:
    path.write_text("".join(json.dumps({"prompt": f"What is {i} + {i * i}?"}) + "\n" for i in range(count)))
    return path


@contextlib.contextmanager
def server(policy: Path, **options: Any) -> Iterator[FakeOpenAI]:
    """A fake server with the policy's tokenizer; options as in `FakeOpenAI`."""
    text = open_text(policy, "chat", "template")
    with FakeOpenAI(text.encode, text.end_tokens[0], **options) as fake:
        yield fake


def flags(policy: Path, prompts: Path, *servers: FakeOpenAI) -> dict[str, Any]:
    """Overrides of `configs/default.py`, as `jobs.override` takes them."""
    return {
        "stages": ("sample", "score"),
        "model__path": str(policy),
        "prompts__source": f"jsonl:{prompts}",
        "prompts__count": 0,
        "prompts__held_out": 0,
        "prompts__unit": UNIT,
        "prompts__max_tokens": 64,
        "sample__backend": "openai",
        "sample__completions": COMPLETIONS,
        "sample__max_new_tokens": 24,
        "openai__servers": tuple(one.address for one in servers),
        "pack__max_tokens": 96,
        "openai__model": "policy",
        "openai__concurrency": 6,
        "openai__completions": 2,
        "reward__name": "dialogue_share",
    }


def job(workdir: Path, policy: Path, *servers: FakeOpenAI, shard: Shard = ALONE, **overrides: Any) -> Job:
    config = default.get_config()
    override(config, flags(policy, write_prompts(policy.parent / "prompts.jsonl"), *servers) | overrides)
    return Job(FrozenConfigDict(config), workdir, shard, STAGES)


def rows_of(workdir: Path, stage: str = "sample") -> list[Row]:
    """The rows of a finished stage."""
    folder = workdir / stage
    units = row_units(folder)
    return [row for unit in range(units) for row in row_files.read_unit(folder, unit, units)]
