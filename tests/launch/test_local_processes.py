"""`launch/local_processes.sh`: real processes of this machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import stand_in
from tests.helpers.jobs import ROOT, SMALL, environment, hear_signals

SCRIPT = str(ROOT / "launch" / "local_processes.sh")
PROGRAM = ("--config=quickstart", "--workdir=runs/two")


def start(tmp_path: Path, program: str, *flags: str) -> subprocess.Popen[str]:
    """Starts two processes of a shell script that plays the program."""
    python = tmp_path / "python"
    played = f"for process; do :; done\nfor f; do case $f in --process=*) process=${{f#*=}} ;; esac; done\n{program}\n"
    holder = f'if [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\n'  # which finds a port
    python.write_text(f"#!/bin/bash\n{holder}{played}")
    python.chmod(0o755)
    command = ["bash", SCRIPT, f"--python={python}", *PROGRAM, *flags]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_signals,
    )


def test_each_line_has_its_process_and_flags_are_passed(tmp_path: Path) -> None:
    process = start(tmp_path, 'printf "%s\\n" "$@"; echo bad >&2', "--count=3", "--config.note=a b")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    lines = output.splitlines()
    for i in range(3):
        assert {f"[{i}] --process={i}", f"[{i}] --processes=3", f"[{i}] --config.note=a b"} <= set(lines), lines
        assert f"[{i}] bad" in errors
    (coordinator,) = {line.partition("] ")[2] for line in lines if "--coordinator" in line}
    assert coordinator.startswith("--coordinator=127.0.0.1:")


@pytest.mark.parametrize("status", [2, 75, 1])
def test_the_status_is_that_of_the_process_that_failed(tmp_path: Path, status: int) -> None:
    process = start(tmp_path, f"((process == 0)) || exit {status}")
    process.communicate(timeout=60)
    assert process.returncode == status


@pytest.mark.parametrize(
    "number, status", [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_signals_reach_every_process_and_are_waited_for(tmp_path: Path, number: int, status: int) -> None:
    save = f"trap 'sleep 0.5; touch {tmp_path}/saved-$process; exit 75' TERM; touch {tmp_path}/up-$process; "
    process = start(tmp_path, save + "for ((i = 0; i < 300; i++)); do sleep 0.1; done")
    while len(list(tmp_path.glob("up-*"))) < 2:
        time.sleep(0.05)
    os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)  # as a terminal does
    process.communicate(timeout=60)
    assert process.returncode == status
    assert len(list(tmp_path.glob("saved-*"))) == 2


def test_a_port_that_another_program_took_is_replaced(tmp_path: Path) -> None:
    """Process 0 says it; the others, which would wait for it, are ended."""
    taken = f"""
for word; do case $word in --coordinator=*) echo "$word" >> {tmp_path}/ports-$process ;; esac; done
[[ $(wc -l < {tmp_path}/ports-$process) == 1 ]] || exit 0
((process == 0)) || exec sleep 300
until [[ -e {tmp_path}/ports-1 ]]; do sleep 0.1; done
echo "error: process 0 cannot listen at port 1 of --coordinator: Address already in use" >&2
exit 2
"""
    process = start(tmp_path, taken)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    first, second = (tmp_path / "ports-0").read_text().splitlines()
    assert first != second
    assert (tmp_path / "ports-1").read_text().splitlines() == [first, second]


def test_the_program_says_what_the_script_looks_for() -> None:
    text = (ROOT / "qrpo_jax" / "devices" / "roll_call.py").read_text()
    assert "process 0 cannot listen at port" in text


def test_a_dry_run_prints_the_processes(tmp_path: Path) -> None:
    done = stand_in.launch(tmp_path, "local_processes.sh", *PROGRAM, "--dry-run")
    assert done.returncode == 0 and done.stdout.count("+ python3 -m qrpo_jax.main --distributed") == 2, done.stderr


@pytest.mark.slow
def test_two_processes_of_a_tiny_job_run_and_resume(tmp_path: Path) -> None:
    workdir, stages = tmp_path / "run", "--config.stages=sft,sample,score"
    flags = [word for word in SMALL if not word.startswith("--config=")]
    command = [
        "bash",
        SCRIPT,
        f"--python={sys.executable}",
        "--config=quickstart",
        f"--workdir={workdir}",
        stages,
        *flags,
    ]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    while not (workdir / "sft" / "metrics.jsonl").exists():  # it trains
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads((workdir / "score" / "manifest.json").read_text())
    shutil.rmtree(workdir)
