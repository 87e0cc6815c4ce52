"""A run on a server that signals end in the middle, again and again, has the rows of an undisturbed run."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qrpo_jax.data.rows import encode
from tests.helpers.fake_openai import KEY, FakeOpenAI
from tests.helpers.faults import content, outcome
from tests.helpers.jobs import ROOT, environment, hear_signals
from tests.helpers.served_jobs import flags, rows_of, server, write_policy, write_prompts

STATUS = {signal.SIGTERM: 75, signal.SIGINT: 130, signal.SIGKILL: -9}
PROMPTS, UNITS = 71, 11  # units of 7


@pytest.fixture(scope="module")
def policy(tmp_path_factory: Any) -> Path:
    return write_policy(tmp_path_factory.mktemp("served") / "policy")


def start(workdir: Path, policy: Path, fake: FakeOpenAI) -> "subprocess.Popen[str]":
    prompts = write_prompts(policy.parent / "prompts.jsonl", PROMPTS)
    given = flags(policy, prompts, fake) | {"openai__key_variable": "A_KEY"}
    written = [
        f"--config.{key.replace('__', '.')}={','.join(value) if isinstance(value, tuple) else value}"
        for key, value in given.items()
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "qrpo_jax.main", "--config=default", f"--workdir={workdir}", *written],
        cwd=ROOT,
        env=environment(A_KEY=KEY),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_signals,
    )


@pytest.mark.slow
def test_killed_runs_end_in_the_rows_of_an_undisturbed_one(tmp_path, policy):
    with server(policy, seconds=0.02, key=KEY) as fake:
        program = start(tmp_path / "undisturbed", policy, fake)
        _, log = program.communicate(timeout=120)
        assert program.returncode == 0, log[-2000:]
        asked = len(fake.answered)
    workdir, whole = tmp_path / "run", 0
    with server(policy, seconds=0.02, key=KEY) as fake:
        for number, status in STATUS.items():
            before = len(fake.requests)
            program = start(workdir, policy, fake)
            while len(fake.requests) < before + 60 and program.poll() is None:
                time.sleep(0.005)
            program.send_signal(number)
            sent = time.monotonic()
            _, log = program.communicate(timeout=60)
            seconds = time.monotonic() - sent
            assert program.returncode == status, log[-2000:]
            assert seconds < 10, f"{number.name}: {seconds:.1f} s"
            if number != signal.SIGKILL:
                assert re.search(rf"stopped by {number.name} in stage sample, \d+ of {UNITS} units", log), log[-2000:]
            written = len(list((workdir / "sample" / "counts").glob("*.json")))
            assert whole < written < UNITS, f"{number.name}: {whole} units, then {written} of {UNITS}"
            whole = written
        program = start(workdir, policy, fake)
        _, log = program.communicate(timeout=120)
        assert program.returncode == 0, log[-2000:]
        assert len(fake.answered) == asked, "the same requests in all"
    for stage in ("sample", "score"):
        left, right = (rows_of(folder, stage) for folder in (workdir, tmp_path / "undisturbed"))
        assert len(left) == PROMPTS and len({row.id for row in left}) == PROMPTS
        assert [encode(row) for row in left] == [encode(row) for row in right], stage
    files = (outcome(folder / "score") for folder in (workdir, tmp_path / "undisturbed"))
    assert next(files) == next(files)
    assert not [name for name, data in content(workdir).items() if KEY.encode() in data]
