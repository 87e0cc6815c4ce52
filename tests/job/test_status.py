"""The status of a run comes from its files alone."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from qrpo_jax import main
from qrpo_jax.errors import UserError
from qrpo_jax.job import status
from qrpo_jax.job.journal import Entry, journal_path
from qrpo_jax.job.shard import Shard

STAGES = ["sample", "score", "train"]
COMMAND = ["python", "-m", "qrpo_jax", "--config=a b.py", "--workdir=run"]


def write(folder: Path, shard: tuple[int, int] = (0, 1), **facts: Any) -> None:
    now = time.time()
    given: dict[str, Any] = {
        "command": [*COMMAND, f"--shard={shard[0]}/{shard[1]}"] if shard[1] > 1 else COMMAND,
        "stages": STAGES,
        "shard": list(shard),
        "processes": 1,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": now - 100,
        "updated": now,
    }
    text = json.dumps(vars(Entry(**given | facts)))
    journal_path(folder, Shard(*shard)).write_text(text)


def make(folder: Path, stage: str, *, done: bool = False, units: tuple[int, ...] = (), of: int = 7) -> None:
    (folder / stage).mkdir()
    (folder / stage / "settings.json").write_text("{}")
    if done:
        (folder / stage / "manifest.json").write_text("{}")
    for unit in units:
        (folder / stage / f"rows-train.array_record-{unit:05d}-of-{of:05d}").write_text("")


def test_a_run_in_progress(tmp_path: Path) -> None:
    make(tmp_path, "sample", done=True, units=tuple(range(7)))
    make(tmp_path, "score", done=True, units=tuple(range(7)))
    make(tmp_path, "train")
    (tmp_path / "train" / "checkpoints" / "40").mkdir(parents=True)
    lines = [{"step": step, "loss": 0.5, "tokens_per_second": 1234.0, "other": 1} for step in (40, 50)]
    (tmp_path / "train" / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 6')
    now = time.time()
    write(
        tmp_path,
        stage="train",
        unit="steps",
        complete=40,
        total=100,
        step=60,
        stage_first=10,
        stage_started=now - 25,
        updated=now,
        peers={"process 1 (b, pid 7)": 3.0},
        processes=2,
    )
    found = status.read_status(tmp_path)
    assert (found["state"], found["missing"], found["next"]) == ("running", [], None)
    train = found["stages"]["train"]
    assert (train["state"], train["at"], train["total"], train["last_checkpoint"]) == ("running", 60, 100, 40), train
    assert train["seconds_left"] == pytest.approx(40 * 25 / 50, abs=0.2)
    assert (train["step"], train["tokens_per_second"]) == (50, 1234.0)
    text = "\n".join(status.lines(found))
    for part in ("running", "60 of 100 steps, last checkpoint 40, 1,234 tokens/s, 20 s left", "process 1 (b, pid 7)"):
        assert part in text, text


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({"state": "failed", "message": "score: no"}, "failed"),
        ({"state": "stopped", "message": "by SIGTERM"}, "stopped"),
        ({"pid": 2**22 - 3}, "died"),
        ({"host": "elsewhere", "updated": time.time() - 61}, "died"),
        ({"host": "elsewhere", "pid": 2**22 - 3}, "running"),
    ],
)
def test_how_a_run_ended_and_the_command_that_goes_on(tmp_path: Path, facts: dict[str, Any], state: str) -> None:
    make(tmp_path, "sample", units=(0, 3))
    write(tmp_path, stage="sample", **facts)
    found = status.read_status(tmp_path)
    assert (found["state"], found["message"]) == (state, facts.get("message", "")), found
    assert found["stages"]["sample"]["units"] == {"": [2, 7]} and found["stages"]["score"] == {"state": "waiting"}
    assert found["next"] == (None if state == "running" else "python -m qrpo_jax '--config=a b.py' --workdir=run")


def test_missing_shards_with_the_commands_that_make_them(tmp_path: Path) -> None:
    """Of four shards one runs, one is finished, one has failed and one was never started."""
    make(tmp_path, "sample", units=(0, 1, 4))
    write(tmp_path, (0, 4), stage="sample")
    write(tmp_path, (1, 4), stage="sample", state="incomplete")
    write(tmp_path, (2, 4), stage="sample", state="failed", message="disk full")
    found = status.read_status(tmp_path)
    assert found["state"] == "running" and found["next"] is None
    assert [(one["shard"], one["stage"], one["command"]) for one in found["missing"]] == [
        (f"{i}/4", "sample", f"python -m qrpo_jax '--config=a b.py' --workdir=run --shard={i}/4") for i in (2, 3)
    ]
    assert "shard 3/4 is missing in sample; to make it: python" in "\n".join(status.lines(found))


def test_a_finished_run_and_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no journal of a run"):
        status.read_status(tmp_path)
    for stage in STAGES:
        make(tmp_path, stage, done=True)
    write(tmp_path, state="done")
    found = status.read_status(tmp_path)
    assert (found["state"], found["next"], found["missing"]) == ("done", None, [])
    assert status.lines(found)[2:] == ["  sample  done", "  score   done", "  train   done"]


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main.run(["qrpo-jax", *words])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_the_command_line_prints_it_for_people_and_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, state="stopped", message="by SIGTERM")
    assert command(f"--workdir={tmp_path}", "--status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "stopped"
    assert command(f"--workdir={tmp_path}", "--status") == 0
    assert "stopped: by SIGTERM" in capsys.readouterr().out
    assert command("--status") == 2 and "--status needs --workdir" in capsys.readouterr().err
    assert command(f"--workdir={tmp_path}", "--json") == 2
