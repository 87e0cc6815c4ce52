"""Laws of stopping: what would be lost is saved, the rest is left at once, and signals arrive whatever runs."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qrpo_jax.faults.interruption import CTRL_C, TRY_LATER, Run
from tests.helpers.jobs import ROOT

# What a program does when the signal comes; each prints "ready" first. All but the first keep Python's handlers from
# running in the main thread.
BUSY = {
    "sleeps": "import time; print('ready', flush=True); time.sleep(60)",
    "waits for another process": "import os; r, w = os.pipe(); print('ready', flush=True); os.read(r, 1)",
    "is inside one long call": (
        "import hashlib; print('ready', flush=True); hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    ),
    "computes": "print('ready', flush=True)\nwhile True: pass",
}
# As from a terminal, also where the tests themselves run in the background or under nohup.
HEARD = (
    "import signal; signal.signal(signal.{0}, signal.default_int_handler if {0!r} == 'SIGINT' else signal.SIG_DFL)\n"
)
LISTEN = "from qrpo_jax.faults.interruption import RUN\nRUN.listen()\n"


def program(code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(code: str, *signals: signal.Signals) -> tuple[int, str]:
    """Status and standard error of a program that is sent signals, one after the other, when it has said something."""
    process = program(code)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    return process.returncode, errors


@pytest.mark.parametrize("what", BUSY)
def test_a_run_with_nothing_to_lose_leaves_at_once_whatever_it_does(what: str) -> None:
    status, errors = ended(LISTEN + BUSY[what], signal.SIGTERM)
    assert status == TRY_LATER, (status, errors)
    line = errors.strip()
    assert line.startswith("stopped by SIGTERM before the first stage; to go on: "), errors
    assert "\n" not in line.split("to go on: ")[0], errors


@pytest.mark.parametrize(("number", "wanted"), [("SIGTERM", TRY_LATER), ("SIGHUP", TRY_LATER), ("SIGINT", CTRL_C)])
def test_each_signal_has_its_status(number: str, wanted: int) -> None:
    status, errors = ended(HEARD.format(number) + LISTEN + BUSY["sleeps"], signal.Signals[number])
    assert (status, f"stopped by {number}" in errors) == (wanted, True), (status, errors)


def test_a_program_that_is_done_ends_well_whatever_comes() -> None:
    code = HEARD.format("SIGHUP") + LISTEN + "RUN.done()\nimport time; print('ready', flush=True); time.sleep(1)"
    assert ended(code, signal.SIGHUP, signal.SIGTERM, signal.SIGINT) == (0, "")


def test_a_second_ctrl_c_leaves_without_the_step() -> None:
    code = HEARD.format("SIGINT") + LISTEN + "RUN.reached(3)\n" + BUSY["sleeps"]
    status, errors = ended(code, signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
    assert status == CTRL_C, (status, errors)
    assert "after step 4, which it saves" in errors and "left at once" in errors, errors
    assert "stopped by" not in errors, errors


def test_a_signal_that_was_ignored_at_the_start_stays_ignored() -> None:
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    status, errors = ended(ignore + LISTEN + BUSY["sleeps"], signal.SIGHUP, signal.SIGTERM)
    assert status == TRY_LATER and "by SIGTERM" in errors and "by SIGHUP" not in errors, (status, errors)


def test_a_library_that_takes_signal_and_wake_up_file_loses_them_again() -> None:
    """As event loops take the file, and jax.distributed takes SIGTERM."""
    take = "import signal, socket; a, b = socket.socketpair(); b.setblocking(False); signal.set_wakeup_fd(b.fileno())\n"
    status, errors = ended(LISTEN + take + BUSY["sleeps"], signal.SIGTERM)
    assert status == TRY_LATER, (status, errors)
    take = "import signal; signal.signal(signal.SIGTERM, lambda *_: None); RUN.listen()\n"
    status, errors = ended(LISTEN + take + BUSY["sleeps"], signal.SIGTERM)
    assert status == TRY_LATER, (status, errors)


def test_a_forked_child_dies_of_signals_as_any_program() -> None:
    code = LISTEN + (
        "import os, signal, time\n"
        "statuses = set()\n"
        "for _ in range(50):\n"
        "    child = os.fork()\n"
        "    if child == 0: time.sleep(5); os._exit(0)\n"
        "    os.kill(child, signal.SIGTERM)\n"
        "    statuses.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "print(statuses)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == (f"{{{-signal.SIGTERM}}}\n", 0), done


class Left(Exception):
    """Stands for the end of the process."""


def a_run() -> tuple[Run, list[int]]:
    """A run whose end is an exception, and its statuses."""
    statuses: list[int] = []

    def leave(status: int) -> None:
        statuses.append(status)
        raise Left

    return Run(leave), statuses


def leaving(action: Callable[[], object]) -> None:
    with pytest.raises(Left):
        action()


def test_a_step_that_is_not_saved_defers_the_end_to_the_next_step_and_its_save(
    capfd: pytest.CaptureFixture[str],
) -> None:
    run, statuses = a_run()
    run.stage("train")
    assert not run.reached(11)
    run.request("SIGTERM")
    assert run.reached(12) and not statuses
    run.progress(12, 50, "steps")
    leaving(run.saved)
    assert statuses == [TRY_LATER]
    assert "stopped by SIGTERM in stage train, step 12 of 50 is saved; to go on: " in capfd.readouterr().err


def test_the_last_step_ends_the_training_and_then_the_run() -> None:
    run, statuses = a_run()
    assert not run.reached(50)
    run.request("SIGHUP")
    leaving(run.saved)  # the step after it is never made
    assert statuses == [TRY_LATER]


def test_saved_steps_are_nothing_to_lose(capfd: pytest.CaptureFixture[str]) -> None:
    run, statuses = a_run()
    run.reached(50)
    run.saved()
    run.stage("sample")
    leaving(lambda: run.request("SIGINT"))
    assert statuses == [CTRL_C]
    assert "SIGINT in stage sample; to go on" in capfd.readouterr().err


class Group:
    """Processes in threads that agree as `Peers` do, on a shared table."""

    first = False

    def __init__(self, runs: list[Run]) -> None:
        self._runs, self._steps, self._all = runs, list[int | None](), threading.Barrier(len(runs))

    def tell(self, name: str) -> None:
        for run in self._runs:
            threading.Thread(target=run.request, args=(name,), daemon=True).start()

    def agree(self, step: int | None) -> int | None:
        self._steps.append(step)
        self._all.wait(20)
        return None if None in self._steps else max(s for s in self._steps if s is not None) + 1

    def leave(self, status: int) -> None:
        pass


@pytest.mark.parametrize("seed", range(7))
def test_processes_stop_after_the_same_step_although_one_alone_got_the_signal(seed: int) -> None:
    runs, stopped = [Run(lambda status: None) for _ in range(3)], [0, 0, 0]
    group = Group(runs)
    step_done = threading.Barrier(3)  # a step needs all
    failed: list[int] = []

    def train(i: int) -> None:
        for step in range(1, 2000):
            try:
                step_done.wait(5)
            except threading.BrokenBarrierError:
                failed.append(step)
                return
            time.sleep(((i * 7 + step * 3 + seed) % 5) * 1e-4)
            if runs[i].reached(step):
                stopped[i] = step
                return

    for run in runs:
        run.group = group
    threads = [threading.Thread(target=train, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.02 + 0.003 * seed)
    runs[seed % 3].request("SIGTERM")
    for thread in threads:
        thread.join(20)
    assert not failed and stopped[0] > 0 and len(set(stopped)) == 1, (stopped, failed)


def test_the_command_that_goes_on_can_be_pasted(tmp_path: Path) -> None:
    script = tmp_path / "a b.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        + LISTEN
        + "import os, time; os.kill(os.getpid(), 15); time.sleep(9)"
    )
    done = subprocess.run([sys.executable, script, "--x=it's"], capture_output=True, text=True, timeout=30)
    command = done.stderr.strip().partition("to go on: ")[2]
    again = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30, env=dict(os.environ))
    assert again.stderr.strip().endswith(command) and again.returncode == TRY_LATER, (command, again)
