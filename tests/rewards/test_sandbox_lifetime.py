"""No process of the sandbox outlives the program that opened it."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qrpo_jax.rewards.sandbox import launch
from tests.helpers.jobs import ROOT, hear_signals

# Output bytes, by which a test finds its own interpreters among all processes. Each interpreter takes two tasks, and
# runs one that spins, or waits where it can; each tries first that its parent's end does not end it.
PROGRAM = """
import sys
from qrpo_jax.rewards.sandbox.pool import Call, Limits, Sandbox, Task
limits = Limits(cpu_seconds=60, memory_mb=128, output_bytes=int(sys.argv[1]))
with Sandbox(limits, workers=3, isolation=sys.argv[2]) as sandbox:
    print("open", flush=True)
    head = "import ctypes, os, time\\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\\n"
    spin = head + "def f(a):\\n    while True: pass"
    wait = head + "def f(a):\\n    while True:\\n        try: time.sleep(99)\\n        except OSError: pass"
    away = head + "def f(a):\\n    try: os.fork() or os.setsid()\\n    except OSError: pass\\n    while True: pass"
    sandbox.run([Task((spin, wait, away)[i % 3], "f", (Call((i,)),)) for i in range(6)])
"""
LEVELS = ["limits", "kernel", *(["bubblewrap"] if launch.bubblewrap() else [])]
INTERPRETERS = 3


def interpreters(mark: int) -> list[int]:
    """Processes whose settings have `mark` as their output bytes."""
    found = []
    if not Path("/proc/self/cmdline").exists():
        table = subprocess.run(["ps", "-axo", "pid=,command="], capture_output=True, text=True, check=True).stdout
        return [int(line.split()[0]) for line in table.splitlines() if f", {mark}, " in line]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            settings = json.loads(path.read_bytes().split(b"\0")[-2])
        except (OSError, ValueError, IndexError):
            continue
        if isinstance(settings, list) and len(settings) > 2 and settings[2] == mark:
            found.append(int(path.parent.name))
    return found


def none_left(mark: int, seconds: float) -> list[int]:
    """Waits until no interpreter is left; those that are after all."""
    end = time.monotonic() + seconds
    while (left := interpreters(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    return left


@contextmanager
def begun(mark: int, level: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The program, which is killed at the end of the block at the latest."""
    command = [sys.executable, "-c", PROGRAM, str(mark), level]
    streams: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=hear_signals, **streams) as program:
        try:
            yield program
        finally:
            program.kill()


def running(program: "subprocess.Popen[bytes]", mark: int, level: str) -> list[int]:
    """Waits until every interpreter has a child: with bubblewrap, it has two processes of its own above each."""
    assert program.stdout is not None and program.stdout.readline() == b"open\n"
    least = INTERPRETERS * (4 if level == "bubblewrap" else 2)
    deadline = time.monotonic() + 20
    while len(found := interpreters(mark)) < least and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(found) >= least, f"{len(found)} processes of {least}"
    time.sleep(0.3)  # the children have tried what they try
    return found


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_program_that_ends_leaves_no_process_behind(end: signal.Signals, level: str) -> None:
    mark = 50_000 + 100 * LEVELS.index(level) + int(end)
    with begun(mark, level) as program:
        running(program, mark, level)
        program.send_signal(end)
        program.wait()
        left = none_left(mark, 10)
    assert not left, left


@pytest.mark.parametrize("level", [level for level in LEVELS if level != "limits"])
def test_an_interpreter_that_is_killed_takes_its_child_with_it(level: str) -> None:
    mark = 50_900 + LEVELS.index(level)
    with begun(mark, level) as program:
        before = running(program, mark, level)
        # Those that are killed are replaced by new ones. A child may have gone with its parent, killed just before it.
        for process in before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        end = time.monotonic() + 10
        while (left := set(before) & set(interpreters(mark))) and time.monotonic() < end:
            time.sleep(0.05)
        assert not left, left
        program.kill()
        program.wait()
        assert not none_left(mark, 10)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_a_program_killed_while_interpreters_start_leaves_none_behind(level: str) -> None:
    generator, most = random.Random(17), 0
    for attempt in range(40):
        mark = 51_000 + 1000 * LEVELS.index(level) + attempt
        with begun(mark, level) as program:
            end = time.monotonic() + 20
            while len(interpreters(mark)) < 1 and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(generator.uniform(0, 0.4))
            most = max(most, len(interpreters(mark)))
            program.send_signal(signal.SIGINT if attempt % 4 == 3 else signal.SIGKILL)
            program.wait()
            left = none_left(mark, 10)
            assert not left, f"attempt {attempt}: {left} of {most}"
    print(f"up to {most} processes when killed")
    assert most > INTERPRETERS, most
