"""Chaos: whatever hits a job, and however often, it ends in the undisturbed result or says in one line what is wrong.

A life of a job is a series of starts in one work directory. Each start may be killed, stopped, paused or denied disk
space, or meets a second start; before the next, a file may be flipped, cut, deleted or swapped. Where a start refuses
a damaged file, the file is restored from a copy, as the message asks. `QRPO_CHAOS_MINUTES` sets how long this goes on,
`QRPO_CHAOS_SEED` what happens, and `QRPO_CHAOS_PROCESSES` the numbers of processes to try one after the other, such as
"1,2"; all are printed.
"""

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.helpers.faults import FAULTS
from tests.helpers.jobs import ROOT, SMALL, environment, hear_signals
from tests.job.test_resume import compare, outputs

MINUTES = float(os.environ.get("QRPO_CHAOS_MINUTES", "30"))
SEED = int(os.environ.get("QRPO_CHAOS_SEED", "0"))
PROCESSES = [int(count) for count in os.environ.get("QRPO_CHAOS_PROCESSES", "1,2").split(",")]
DONE, ERROR, MISTAKE, REQUEUE, CTRL_C = 0, 1, 2, 75, 130
EVENTS = ("none", "kill", "term", "interrupt", "hang up", "pause", "second", "full disk")
FILE_LIMIT = 100_000  # bytes a file may have where the disk is full: rows and parameters do not fit


class Start(NamedTuple):
    """The processes of one start, and the file that their lines go to."""

    processes: list[subprocess.Popen[bytes]]
    log: Path

    def send(self, number: int, which: int) -> None:
        self.processes[which % len(self.processes)].send_signal(number)

    def wait(self, seconds: float) -> list[int] | None:
        """Exit statuses, or None if a process still runs after that time."""
        end = time.monotonic() + seconds
        for process in self.processes:
            try:
                process.wait(max(0.01, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                return None
        return [process.returncode for process in self.processes]


class Chaos:
    """The lives of a job with a number of processes, and the events that a seed draws."""

    def __init__(self, folder: Path, processes: int, seed: int) -> None:
        self.folder, self.processes, self.rng = folder, processes, np.random.default_rng(seed)
        self.history: list[str] = []
        self.starts = 0

    def start(self, workdir: Path, *, full_disk: bool = False) -> Start:
        self.starts += 1
        log = self.folder / f"start-{self.starts}.log"
        cache = {
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        command = [sys.executable, "-m", "qrpo_jax.main", *SMALL, f"--workdir={workdir}"]
        flags = [[]] if self.processes == 1 else self._joined()
        with log.open("wb") as file:
            processes = [
                subprocess.Popen(
                    [*command, *own],
                    cwd=ROOT,
                    env=environment(**cache),
                    stdout=file,
                    stderr=file,
                    preexec_fn=limit_files if full_disk else hear_signals,
                )
                for own in flags
            ]
        return Start(processes, log)

    def _joined(self) -> list[list[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            joined = [f"--coordinator=127.0.0.1:{free.getsockname()[1]}", f"--processes={self.processes}"]
        return [[*joined, f"--process={i}"] for i in range(self.processes)]

    def undisturbed(self) -> float:
        """Seconds of a run with nothing but itself, when everything is compiled."""
        for _ in range(2):
            shutil.rmtree(self.folder / "undisturbed", ignore_errors=True)
            began = time.monotonic()
            start = self.start(self.folder / "undisturbed")
            assert start.wait(1200) == [DONE] * self.processes, start.log.read_text()[-3000:]
        return time.monotonic() - began

    def life(self, workdir: Path, seconds: float, end: float) -> bool:
        """Disturbs a job until it is done; False if time is up before."""
        fault = None
        while time.monotonic() < end:
            fault = fault or self.fault(workdir)
            event = str(self.rng.choice(EVENTS))
            self.history.append(event)
            start = self.start(workdir, full_disk=event == "full disk")
            if event not in ("none", "full disk") and start.wait(self.rng.uniform(0.1, 0.9) * seconds) is None:
                self.disturb(event, start, workdir)
            statuses = start.wait(600)
            log = start.log.read_text()
            assert statuses is not None, f"{event}: still running\n{log[-3000:]}"
            self.check(event, statuses, log)
            if statuses == [DONE] * self.processes:
                return True
            if fault is not None and event != "full disk" and {ERROR, MISTAKE} & set(statuses):
                self.history.append("restored")
                fault.undo()
                fault = None
        return False

    def disturb(self, event: str, start: Start, workdir: Path) -> None:
        which = int(self.rng.integers(self.processes))
        signals = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "interrupt": signal.SIGINT, "hang up": signal.SIGHUP}
        if event in signals:
            start.send(signals[event], which)
        elif event == "pause":
            start.send(signal.SIGSTOP, which)
            time.sleep(self.rng.uniform(0.5, 5))
            start.send(signal.SIGCONT, which)
        elif event == "second":
            other = self.start(workdir)
            statuses, log = other.wait(300), other.log.read_text()
            assert statuses is not None, log[-3000:]
            self.check(event, statuses, log)
            if start.wait(0) is None:  # else the first has ended before, and this one went on from there
                assert statuses == [MISTAKE] * self.processes, log[-2000:]

    def fault(self, workdir: Path) -> "Fault | None":
        """A fault in one file of the run, in two of three starts."""
        files = sorted(path for path in workdir.rglob("*") if path.is_file())
        if not files or self.rng.random() < 1 / 3:
            return None
        path, name = files[self.rng.integers(len(files))], str(self.rng.choice(list(FAULTS)))
        self.history.append(f"{name} {path.relative_to(workdir)}")
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(workdir, copy)
        FAULTS[name](path, self.rng)
        return Fault(workdir, copy)

    def check(self, event: str, statuses: list[int], log: str) -> None:
        """Every end is one that the documentation names, and no mistake prints a traceback."""
        allowed = {DONE, ERROR, REQUEUE, CTRL_C, MISTAKE}
        assert set(statuses) - {-signal.SIGKILL} <= allowed, (event, statuses, log[-3000:])
        assert -signal.SIGKILL not in statuses or event == "kill", (event, statuses, log[-3000:])
        assert "Traceback" not in log, (event, statuses, log[-3000:])
        if ERROR in statuses or MISTAKE in statuses:
            assert "error: " in log, (event, statuses, log[-3000:])


class Fault(NamedTuple):
    workdir: Path
    copy: Path

    def undo(self) -> None:
        shutil.rmtree(self.workdir)
        shutil.copytree(self.copy, self.workdir)


def limit_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))


@pytest.mark.slow
@pytest.mark.parametrize("processes", PROCESSES)
def test_a_job_among_faults_ends_like_an_undisturbed_one(tmp_path: Path, processes: int) -> None:
    chaos = Chaos(tmp_path, processes, SEED)
    seconds = chaos.undisturbed()
    wanted, end, lives = outputs(tmp_path / "undisturbed"), time.monotonic() + 60 * MINUTES / len(PROCESSES), 0
    print(f"seed {SEED}, {MINUTES:g} minutes, {processes} processes; undisturbed {seconds:.0f} s")
    try:
        while chaos.life(tmp_path / f"life-{lives}", seconds, end):
            compare(outputs(tmp_path / f"life-{lives}"), wanted, chaos.history)
            lives += 1
    finally:
        print(f"{lives} lives, {chaos.starts} starts: {'; '.join(chaos.history)}")
