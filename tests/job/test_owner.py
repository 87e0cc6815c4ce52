"""Laws of ownership: one run at a time in a work directory, whatever became of earlier ones."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from qrpo_jax.errors import UserError
from qrpo_jax.job import owner
from qrpo_jax.job.owner import Owner, new_record, overlap
from qrpo_jax.job.shard import Shard
from tests.helpers.jobs import ROOT, environment

WHOLE = Shard(0, 1)
HOLD = """
import sys, time
from pathlib import Path
from qrpo_jax.job.owner import Owner
from qrpo_jax.job.shard import Shard
from qrpo_jax.errors import UserError
try:
    Owner(Path(sys.argv[1]), Shard(0, 1)).acquire()
except UserError as error:
    print(error, flush=True)
    raise SystemExit(2)
print("held", flush=True)
{then}
time.sleep(60)
"""


def holder(workdir: Path, then: str = "") -> "subprocess.Popen[str]":
    """A process that holds a work directory until it is killed."""
    code = HOLD.format(then=then)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(workdir)], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    )


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def refused(workdir: Path, shard: Shard) -> str:
    with pytest.raises(UserError) as error:
        Owner(workdir, shard).acquire()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_second_run_is_told_who_holds_the_directory_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    process = holder(tmp_path / "run")
    try:
        assert first_line(process) == "held"
        files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        message = refused(tmp_path / "run", WHOLE)
        for part in (str(tmp_path / "run"), f"process {process.pid} on {new_record().host}", "since 2"):
            assert part in message, message
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    finally:
        process.kill()
        process.wait()
    mine = Owner(tmp_path / "run", WHOLE)
    mine.acquire()
    mine.release()
    assert not list((tmp_path / "run").iterdir())


def test_a_forked_child_that_outlives_the_owner_holds_nothing(tmp_path: Path) -> None:
    process = holder(tmp_path, "import os\nif os.fork() == 0: print(os.getpid(), flush=True); time.sleep(60)")
    try:
        assert first_line(process) == "held"
        child = int(first_line(process))
    finally:
        process.kill()
        process.wait()
    try:
        mine = Owner(tmp_path, WHOLE)
        mine.acquire()
        mine.release()
    finally:
        os.kill(child, signal.SIGKILL)


def test_of_many_that_start_at_once_one_wins(tmp_path: Path) -> None:
    processes = [holder(tmp_path) for _ in range(5)]
    try:
        lines = [first_line(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert lines.count("held") == 1, lines
    assert sum("is in use by" in line for line in lines) == 4, lines


def test_shards_share_a_directory_unless_they_share_a_unit(tmp_path: Path) -> None:
    shards = [Shard(i, n) for n in (1, 2, 3) for i in range(n)]
    for held in shards:
        one = Owner(tmp_path, held)
        one.acquire()
        for wanted in shards:
            common = any(held.owns(u) and wanted.owns(u) for u in range(12))
            assert overlap(held, wanted) == common, (held, wanted)
            if common:
                refused(tmp_path, wanted)
            else:
                two = Owner(tmp_path, wanted)
                two.acquire()
                two.release()
        one.release()
    assert not list(tmp_path.iterdir()), list(tmp_path.iterdir())


def elsewhere(path: Path, beat: int) -> None:
    """Writes the record of an owner on another machine, whose lock does not reach here."""
    record = replace(new_record(), host="far", boot="another", pid=17, token="t", beat=beat)
    path.write_text(json.dumps(asdict(record)))


def test_an_owner_on_another_machine_is_alive_if_it_counts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "owner-0-of-1.json"
    beats = iter(range(2, 100))

    def sleep(seconds: float) -> None:
        elsewhere(path, next(beats))

    elsewhere(path, 1)
    monkeypatch.setattr(owner.time, "sleep", sleep)
    assert "process 17 on far" in refused(tmp_path, WHOLE)
    assert "process 17 on far" in refused(tmp_path, Shard(1, 3))


def test_an_owner_on_another_machine_that_does_not_count_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere(tmp_path / "owner-0-of-1.json", 1)
    monkeypatch.setattr(owner, "WATCH_SECONDS", 0.2)
    mine = Owner(tmp_path, WHOLE)
    mine.acquire()
    mine.release()
    assert "whether process 17 on far" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"host": 1}', b"\xff\x00"])
def test_a_damaged_record_blocks_nobody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "owner-0-of-1.json").write_bytes(content)
    mine = Owner(tmp_path, WHOLE)
    mine.acquire()
    mine.release()


def test_an_owner_that_was_taken_for_dead_leaves(tmp_path: Path) -> None:
    code = HOLD.format(then="").replace("try:", "from qrpo_jax.job import owner; owner.BEAT_SECONDS = 0.05\ntry:", 1)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert first_line(process) == "held"
        end = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < end:
            elsewhere(tmp_path / "owner-0-of-1.json", 5)  # again, because a beat may overwrite it
            time.sleep(0.02)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 1, errors
    assert "was taken over by process 17 on far" in errors, errors
