"""Jobs of stage `harness` on the story model, and a sampler that writes what a test says."""

import dataclasses
import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrpo_jax.data.rows import Completion, Row
from qrpo_jax.job import answering
from qrpo_jax.job.job import Job
from tests.helpers.jobs import job

FILES = {
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "mbpp": "mbpp/mbpp_release_v1.jsonl",
    "leetcode": "leetcode/LeetCodeDataset-v0.3.1-test.jsonl.gz",
    "gsm8k": "gsm8k/example_model_solutions.jsonl",
}
SMALL: dict[str, Any] = {
    "stages": ("harness",),
    "model__template": "plain",
    "mesh__cpu_devices": 1,
    "reward__require_isolation": "limits",
    "harness__max_prompt_tokens": 400,
    "harness__max_new_tokens": 7,
}


def harness_job(workdir: Path, fixtures: Path, *tasks: str, **overrides: object) -> Job:
    """A job of the story model with these tasks."""
    of_model = {"model__path": str(fixtures / "stories260K-hf"), "harness__tasks": tasks}
    return job(workdir, **SMALL | of_model | overrides)


def long_model(fixtures: Path, target: Path) -> Path:
    """The story model with more positions than it was made for, for jobs in which it writes nothing itself."""
    shutil.copytree(fixtures / "stories260K-hf", target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    return target


def problems(fixtures: Path, name: str, target: Path, step: int = 1, most: int | None = None) -> str:
    """The source of every `step`-th record of a published set, as JSON lines in a file."""
    path = fixtures / FILES[name]
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    target.write_text("".join(text.splitlines(keepends=True)[::step][:most]))
    return f"jsonl:{target}"


def results_of(run: Job) -> dict[str, Any]:
    """The benchmarks in results.json."""
    return json.loads((run.workdir / "results.json").read_text())["harnesses"]


def writes(monkeypatch: pytest.MonkeyPatch, texts: Callable[[Row], Sequence[str]]) -> None:
    """Puts a function from a row to the completions of its prompt in the place of the sampler."""

    def make(job: Job, section: Any, parameters: Any, *, side: str, **options: Any) -> Any:
        def complete(rows: list[Row], indices: Sequence[int]) -> tuple[list[Row], dict[str, int]]:
            written = [
                tuple(Completion(text, np.zeros(3, np.int32), True, side) for text in texts(row)) for row in rows
            ]
            counts = {"prompts": len(rows), "completions": sum(map(len, written))}
            return [dataclasses.replace(row, completions=c) for row, c in zip(rows, written, strict=True)], counts

        return complete

    monkeypatch.setattr(answering, "make_completer", make)
