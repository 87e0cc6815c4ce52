"""Stage `sample` on a real server: `transformers serve` with a small trained model, started by the test.

Needs torch and the extra `serving` of transformers (fastapi, uvicorn, openai).
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ml_collections import FrozenConfigDict

from configs import stories
from qrpo_jax import pipeline
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.served_completions import ALIKE, MADE_HERE, OTHER_PROMPT, SPACE_LOST, UNSEEN_PROMPT
from qrpo_jax.stages import STAGES
from tests.helpers.jobs import override
from tests.helpers.served_jobs import rows_of

pytestmark = pytest.mark.slow
NEEDED = ("torch", "fastapi", "uvicorn", "openai")
PROMPTS, COMPLETIONS = 7, 3


@pytest.fixture(scope="module")
def live(tmp_path_factory: Any, fixtures: Path) -> Iterator[tuple[str, Path]]:
    """The address of a server, and its model, which is set to sample."""
    if absent := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        pytest.skip(f"transformers serve needs {', '.join(absent)}")
    folder = tmp_path_factory.mktemp("live")
    model = folder / "model"
    shutil.copytree(fixtures / "stories260K-hf", model, copy_function=shutil.copyfile)
    model.chmod(0o755)
    settings = model / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"do_sample": True}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--device", "cpu"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdout=log,
            stderr=log,
        )
    try:
        for _ in range(240):
            assert server.poll() is None, (folder / "log").read_text()[-2000:]
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        server.terminate()
        server.wait(30)


def job(workdir: Path, live: tuple[str, Path], **overrides: Any) -> Job:
    address, model = live
    prompts = workdir.parent / "prompts.jsonl"
    names = ("Lily", "Tom", "Ben", "Anna", "Max", "Sue", "Tim")
    prompts.write_text("".join(json.dumps({"prompt": f"One day, {name} had a red"}) + "\n" for name in names))
    config = stories.get_config()
    config.stages = ("sample", "score")
    config.model.path = str(model)
    given = {
        "prompts__source": f"jsonl:{prompts}",
        "prompts__count": 0,
        "prompts__held_out": 0,
        "sample__completions": COMPLETIONS,
        "sample__max_new_tokens": 24,
        "sample__backend": "openai",
        "openai__servers": (address,),
        "openai__model": str(model),
        "openai__prompts": "text",
        "openai__completions": 1,
        "openai__extra_fields": False,
        "openai__log_probs": False,
        "openai__concurrency": 3,
    }
    override(config, given | overrides)
    return Job(FrozenConfigDict(config), workdir, Shard(0, 1), STAGES)


def test_a_real_server_completes_each_prompt(tmp_path, live):
    assert pipeline.run(job(tmp_path / "run", live))
    rows, manifest = rows_of(tmp_path / "run", "score"), read_manifest(tmp_path / "run" / "sample")
    assert manifest is not None
    texts = [completion.text for row in rows for completion in row.completions]
    assert len(texts) == manifest["counts"][MADE_HERE] == PROMPTS * COMPLETIONS
    assert len(set(texts)) > PROMPTS, texts
    # It says how many tokens a prompt has, and they are as many as those of our layout.
    assert not {OTHER_PROMPT, SPACE_LOST, UNSEEN_PROMPT, ALIKE} & set(manifest["counts"]), manifest["counts"]


def test_greedy_completions_of_a_real_server_are_those_sampled_here(tmp_path, live, capsys):
    greedy = {"sample__temperature": 0.0, "sample__completions": 1, "stages": ("sample",)}
    assert pipeline.run(job(tmp_path / "served", live, **greedy))
    assert pipeline.run(job(tmp_path / "local", live, sample__backend="local", **greedy))
    served, local = (
        [(row.completions[0].text, row.completions[0].finished) for row in rows_of(tmp_path / name)]
        for name in ("served", "local")
    )
    assert served == [(text.removeprefix(" "), finished) for text, finished in local]
    # This server gives no token ids, and its text lacks the space with which a completion begins.
    assert SPACE_LOST in capsys.readouterr().err
