"""A job that signals stop, again and again, saves, says how it goes on, and ends like an undisturbed one."""

import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.jobs import ROOT, SMALL, environment, hear_signals
from tests.job.test_resume import compare, outputs

SECONDS = 10.0  # from the signal to the end, on a machine that does little else
STATUS = {signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGINT: 130}
# What happens before a signal is sent, and seconds from then on: signals are heard, a file is there, or the terminal
# shows something. So it comes in a step of training, in units of other stages, in compilations and in the start. A bar
# always shows its beginning. It may miss any later share where the machine is fast; where it is slow, the first step is
# still compiled for seconds.
MOMENTS = (
    ("start", 0.3),
    (r"sft: .* steps on", 0.0),
    (r"\bsft: +\d+%", 0.0),
    ("file sft/checkpoints/[0-9]*", 0.0),
    (r"\bsample: +\d+%", 0.1),
    (r"\btrain: .* steps on", 0.0),
    ("file train/checkpoints/[0-9]*", 0.0),
    (r"evaluate reference: +\d+%", 0.0),
    (r"evaluate policy: +\d+%", 0.0),
)


class Starts:
    """Starts of one job in several processes; each has a log."""

    def __init__(self, folder: Path, processes: int) -> None:
        self._folder, self._count, self._number = folder, processes, 0

    def start(self, workdir: Path) -> list[subprocess.Popen[bytes]]:
        self._number += 1
        cache = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(self._folder / "cache")}
        variables = environment(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", **cache)
        command = [sys.executable, "-m", "qrpo_jax.main", *SMALL, f"--workdir={workdir}"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            joined = [f"--coordinator=127.0.0.1:{free.getsockname()[1]}", f"--processes={self._count}"]
        started = []
        for i in range(self._count):
            flags = [*joined, f"--process={i}"] if self._count > 1 else []
            with self._log(i).open("wb") as log:
                program = subprocess.Popen(
                    [*command, *flags], cwd=ROOT, env=variables, stdout=log, stderr=log, preexec_fn=hear_signals
                )
                started.append(program)
        return started

    def text(self, process: int = 0) -> str:
        return self._log(process).read_text(errors="replace").replace("\r", "\n")

    def _log(self, process: int) -> Path:
        return self._folder / f"start-{self._number}-{process}.log"


def has_come(moment: str, starts: Starts, workdir: Path, started: list["subprocess.Popen[bytes]"]) -> bool:
    kind, _, pattern = moment.partition(" ")
    if kind == "start":
        return all(catches(process.pid, signal.SIGTERM) for process in started)
    return any(workdir.glob(pattern)) if kind == "file" else re.search(moment, starts.text()) is not None


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; Python itself has none for SIGTERM."""
    try:
        caught = re.search(r"^SigCgt:\t([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return False
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_signals_stop_goes_on_to_the_undisturbed_result(tmp_path: Path, processes: int) -> None:
    generator, starts, figures, saved = random.Random(23), Starts(tmp_path, processes), [], []
    workdir = tmp_path / "disturbed"
    for moment, later in MOMENTS:
        started = starts.start(workdir)
        while not has_come(moment, starts, workdir, started) and all(process.poll() is None for process in started):
            time.sleep(0.01)
        number = generator.choice(list(STATUS))
        # A scheduler may tell all processes or one. Before they have joined, one that is not told waits for the others.
        told = started if moment == "start" else generator.choice([[process] for process in started] + [started])
        time.sleep(later)
        began = time.monotonic()
        for process in told:
            process.send_signal(number)
        statuses = [process.wait(timeout=120) for process in started]
        figures.append(f"{moment!r} {number.name} to {len(told)}: {time.monotonic() - began:.2f} s")
        text = starts.text()
        assert set(statuses) == {STATUS[number]}, (moment, number, statuses, text[-3000:])
        lines = [line for line in text.splitlines() if line.startswith("stopped by")]
        assert len(lines) == 1, (moment, text[-3000:])
        assert f"stopped by {number.name}" in lines[0] and f"--workdir={workdir}" in lines[0], lines
        saved += re.findall(r"step (\d+) of \d+ is saved", lines[0])
        assert "Traceback" not in text, text[-3000:]
    print("\n".join(figures))
    finished = starts.start(workdir)
    assert [process.wait(timeout=900) for process in finished] == [0] * processes, starts.text()[-3000:]
    undisturbed = starts.start(tmp_path / "undisturbed")
    assert [process.wait(timeout=900) for process in undisturbed] == [0] * processes, starts.text()[-3000:]
    compare(outputs(workdir), outputs(tmp_path / "undisturbed"), [moment for moment, _ in MOMENTS])
    assert any(int(step) % 7 and int(step) % 5 for step in saved), f"no checkpoint that was not due: {saved}"
    assert not list(workdir.glob("owner-*")), "the owner of a finished run"


@pytest.mark.slow
def test_a_second_run_changes_nothing_and_the_first_goes_on(tmp_path: Path) -> None:
    starts, workdir = Starts(tmp_path, 1), tmp_path / "run"
    (first,) = starts.start(workdir)
    while not re.search(r"\bsft: +[1-9]\d?%", starts.text()) and first.poll() is None:
        time.sleep(0.01)
    (second,) = starts.start(workdir)
    assert second.wait(timeout=120) == 2, starts.text()
    lines = [line for line in starts.text().splitlines() if line.strip()]
    assert len(lines) == 1 and f"in use by process {first.pid} on" in lines[0], lines
    assert first.wait(timeout=900) == 0
    starts.start(tmp_path / "undisturbed")[0].wait(timeout=900)
    compare(outputs(workdir), outputs(tmp_path / "undisturbed"), ["a second run"])


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_peer_killed_in_training_is_named_and_the_next_start_goes_on(tmp_path: Path, victim: int) -> None:
    starts, workdir = Starts(tmp_path, 2), tmp_path / "run"
    started = starts.start(workdir)
    while not re.search(r"\bsft: +[3-9]\d%", starts.text()) and started[0].poll() is None:
        time.sleep(0.01)
    began = time.monotonic()
    started[victim].kill()
    status, text = started[1 - victim].wait(timeout=120), starts.text(1 - victim)
    seconds = time.monotonic() - began
    print(f"process {victim} was missed after {seconds:.1f} s")
    assert status == 1 and seconds < 60, (status, seconds, text[-3000:])
    lines = [line for line in text.splitlines() if "error" in line]
    assert len(lines) == 1 and f"error: process {victim} (" in lines[0] and "Traceback" not in text, text[-3000:]
    assert [process.wait(timeout=900) for process in starts.start(workdir)] == [0, 0], starts.text()[-3000:]
    assert [process.wait(timeout=900) for process in starts.start(tmp_path / "undisturbed")] == [0, 0]
    compare(outputs(workdir), outputs(tmp_path / "undisturbed"), [f"process {victim} killed"])
