"""No process of the sandbox outlives the program that opened it."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.jobs import ROOT

# Output bytes, by which a test finds its own interpreters among all processes.
PROGRAM = """
import sys
from qrpo_jax.rewards.sandbox.pool import Limits, Sandbox, Task
with Sandbox(Limits(cpu_seconds=60, memory_mb=128, output_bytes=int(sys.argv[1])), workers=6) as sandbox:
    print("open", flush=True)
    spin = "def f(a):\\n    while True: pass"
    block = "import _thread\\ndef f(a):\\n    lock = _thread.allocate_lock()\\n    lock.acquire(); lock.acquire()"
    # An interpreter takes two tasks, and runs one.
    sandbox.run([Task((spin, block)[i % 4 // 2], "f", ((i,),)) for i in range(12)])
"""


def interpreters(mark: int) -> list[int]:
    """Processes whose command line ends with `mark`."""
    found = []
    if not Path("/proc/self/cmdline").exists():
        table = subprocess.run(["ps", "-axo", "pid=,command="], capture_output=True, text=True, check=True).stdout
        return [int(line.split()[0]) for line in table.splitlines() if line.endswith(f" {mark}")]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[-2:-1] == [str(mark).encode()]:
            found.append(int(path.parent.name))
    return found


def none_left(mark: int, seconds: float) -> list[int]:
    """Waits until no interpreter is left; those that are after all."""
    end = time.monotonic() + seconds
    while (left := interpreters(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    return left


@contextmanager
def begun(mark: int) -> Iterator["subprocess.Popen[bytes]"]:
    """The program, which is killed at the end of the block at the latest."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(mark)], cwd=ROOT, stdout=subprocess.PIPE) as program:
        try:
            yield program
        finally:
            program.kill()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_program_leaves_no_interpreter_behind_that_runs_code(end: signal.Signals) -> None:
    mark = 50_000 + int(end)
    with begun(mark) as program:
        assert program.stdout is not None and program.stdout.readline() == b"open\n"
        # Six interpreters, and in time a child of each that spins or blocks.
        deadline = time.monotonic() + 20
        while len(interpreters(mark)) < 13 and time.monotonic() < deadline:
            time.sleep(0.02)
        seen = len(interpreters(mark))
        assert seen == 13, f"{seen} processes: the program, six interpreters, six children"
        program.send_signal(end)
        program.wait()
        left = none_left(mark, 10)
    assert not left, left


@pytest.mark.slow
def test_a_program_killed_while_interpreters_start_leaves_none_behind() -> None:
    generator, most = random.Random(17), 0
    for attempt in range(40):
        mark = 51_000 + attempt
        with begun(mark) as program:
            end = time.monotonic() + 20
            while len(interpreters(mark)) < 2 and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(generator.uniform(0, 0.6))
            most = max(most, len(interpreters(mark)))
            program.kill()
            program.wait()
            left = none_left(mark, 10)
            assert not left, f"attempt {attempt}: {left} of {most}"
    print(f"up to {most} processes when killed")
    assert most > 6, most
