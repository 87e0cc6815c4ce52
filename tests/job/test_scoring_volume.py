"""A hundred thousand completions scored with tests in the sandbox, by two shards: each has its own reward."""

import json
import time
from pathlib import Path

import pytest
from ml_collections import FrozenConfigDict

from configs import default
from qrpo_jax import pipeline
from qrpo_jax.data import row_files
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.pace import SCORED
from qrpo_jax.job.units import pace_of
from qrpo_jax.stages import STAGES
from tests.helpers import reward_folders as folders
from tests.helpers.problem_sets import fenced

PROMPTS, COMPLETIONS, TESTS = 1009, 100, 3


def code(prompt: int, completion: int) -> str:
    """Passes as many tests as `passes` says; no two are equal."""
    if completion % 25 == 24:
        return f"def f(a):\n    raise ValueError({prompt * COMPLETIONS + completion})"
    return f"def f(a):\n    return a + {prompt} if a < {completion % (TESTS + 1)} else 'no {completion}'"


def passes(completion: int) -> int:
    return 0 if completion % 25 == 24 else completion % (TESTS + 1)


def record(prompt: int) -> dict:
    tests = [[[a], {}, a + prompt] for a in range(TESTS)]
    texts = [fenced(code(prompt, completion)) for completion in range(COMPLETIONS)]
    return {"prompt": f"Add {prompt}.", "completions": texts, "payload": {"tests": tests, "entry_point": "f"}}


def scoring(folder: Path, shard: Shard) -> Job:
    config = default.get_config()
    config.stages = ("score",)
    config.model.path = str(folder / "policy")
    config.prompts.update({"source": f"jsonl:{folder}/data.jsonl", "count": 0, "held_out": 0, "max_tokens": 64})
    config.pack.max_tokens = 128
    config.reward.name = "tests"
    return Job(FrozenConfigDict(config), folder / "run", shard, STAGES)


@pytest.mark.slow
def test_a_hundred_thousand_completions_are_scored_and_none_is_lost_or_doubled(tmp_path: Path) -> None:
    folders.write(tmp_path / "policy", folders.CLASSIFIER)
    causal = folders.CLASSIFIER | {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    (tmp_path / "policy" / "config.json").write_text(json.dumps(causal))
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(record(prompt)) for prompt in range(PROMPTS)))
    began = time.monotonic()
    assert [pipeline.run(scoring(tmp_path, Shard(index, 2))) for index in (1, 0)] == [False, True]
    seconds, folder = time.monotonic() - began, tmp_path / "run" / "score"

    rows, seen = row_files.read(folder), set()
    for row in rows:
        prompt = int(row.messages[0].content.removeprefix("Add ").removesuffix("."))
        seen.add(prompt)
        found = [(c.text, round(c.reward * TESTS)) for c in row.completions]
        assert found == [(fenced(code(prompt, c)), passes(c)) for c in range(COMPLETIONS)], prompt
    assert len(rows) == PROMPTS and seen == set(range(PROMPTS))

    manifest, total = read_manifest(folder), PROMPTS * COMPLETIONS
    assert manifest is not None and manifest["row_flow"] == {"in": PROMPTS, "out": PROMPTS}
    numbers = {label: PROMPTS * sum(passes(c) == label for c in range(COMPLETIONS)) for label in range(TESTS + 1)}
    assert [count for *_, count in manifest["rewards"]["bins"]] == list(numbers.values()), manifest["rewards"]
    verdicts = {name: count for name, count in manifest["counts"].items() if name.startswith("completions: ")}
    errors = PROMPTS * len(range(24, COMPLETIONS, 25))
    expected = {"passed": numbers[TESTS], "wrong": total - errors - numbers[TESTS], "error": errors}
    assert verdicts == {f"completions: {name}": count for name, count in expected.items()}
    pace = pace_of(folder, manifest["units"], SCORED)
    assert pace.amount == total
    print(f"{total:,} completions of {TESTS} tests in {seconds:.0f} s: {pace.per_second:.0f} a second in the sandbox")
