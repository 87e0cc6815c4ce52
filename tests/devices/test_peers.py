"""Laws of processes that watch each other: agreement on the last step, deaths that are named, and the relay."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qrpo_jax.devices import peers
from qrpo_jax.devices.peers import Peers, Relay
from tests.helpers.jobs import ROOT, environment


class Store:
    """JAX's key-value store, in memory."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._changed = threading.Condition()

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        with self._changed:
            assert allow_overwrite or key not in self._values
            self._values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        with self._changed:
            assert self._changed.wait_for(lambda: key in self._values, timeout_in_ms / 1e3)
            return self._values[key]

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        with self._changed:
            return [(name, value) for name, value in self._values.items() if name.startswith(key)]


@pytest.mark.parametrize(
    ("steps", "wanted"), [((7, 7, 7), 8), ((7, 8, 7), 9), ((None, 1, 1), None), ((None, None, None), None)]
)
def test_processes_agree_on_the_step_after_the_furthest(steps: tuple[int | None, ...], wanted: int | None) -> None:
    store, agreed = Store(), list[int | None]()
    group = [Peers(store, i, len(steps), None) for i in range(len(steps))]
    threads = [
        threading.Thread(target=lambda p=p, s=s: agreed.append(p.agree(s))) for p, s in zip(group, steps, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert agreed == [wanted] * len(steps)


class Left(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(status: int) -> None:
        raise Left(status)

    monkeypatch.setattr(peers, "leave", leave)
    monkeypatch.setattr(peers, "BEAT_SECONDS", 0.0)
    monkeypatch.setattr(peers, "SILENCE", 40.0)


def test_a_process_that_stops_counting_is_named_to_all(
    leaves: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(peers.time, "monotonic", lambda: clock[0])
    store = Store()
    first, other = Peers(store, 0, 3, None), Peers(store, 2, 3, None)
    first._names[1] = "process 1 (host, pid 17)"
    for second in range(39):
        clock[0] += 1
        first._look({"0": str(second), "1": "5", "2": str(second)})
    clock[0] += 3
    with pytest.raises(Left, match="1"):
        first._look({"0": "99", "1": "5", "2": "99"})
    with pytest.raises(Left, match="1"):
        other._act(other._read("news"))
    lines = re.findall(
        r"error: process 1 \(host, pid 17\) died or cannot be reached, and process (\d)", capfd.readouterr().err
    )
    assert lines == ["0", "2"]


def test_an_error_of_one_process_ends_the_others_with_its_status(
    leaves: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers.time, "sleep", lambda seconds: None)
    store = Store()
    with pytest.raises(Left, match="2"):
        Peers(store, 1, 2, None).fail(2)
    other = Peers(store, 0, 2, None)
    with pytest.raises(Left, match="2"):
        other._act(other._read("news"))
    assert "error: process 1 left with status 2" in capfd.readouterr().err


def served(answer: Callable[[socket.socket], None]) -> tuple[str, socket.socket]:
    """A server whose first connection goes to `answer`; its address and its listener."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        answer(connection)

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}", listener


def test_a_relay_passes_bytes_both_ways_and_hides_the_end_of_process_0_until_it_is_handled() -> None:
    sent, lost = bytes(range(256)) * 4099, threading.Event()

    def answer(connection: socket.socket) -> None:
        got = b""
        while len(got) < len(sent):
            got += connection.recv(65536)
        connection.sendall(got[::-1])
        connection.close()

    address, listener = served(answer)
    relay = Relay(address)
    relay.watch(lost.set)
    with listener, socket.create_connection(("127.0.0.1", relay.port), timeout=20) as near:
        near.sendall(sent)
        got = b""
        while len(got) < len(sent):
            got += near.recv(65536)
        assert got == sent[::-1]
        assert lost.wait(20)
        near.settimeout(0.2)
        with pytest.raises(TimeoutError):
            near.recv(1)  # an end here would make the runtime abort


def test_a_relay_to_nobody_closes_so_that_the_runtime_tries_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    relay = Relay(f"127.0.0.1:{port}")
    with socket.create_connection(("127.0.0.1", relay.port), timeout=20) as near:
        assert near.recv(1) == b""


PROCESS = """
import sys, time
from qrpo_jax.faults.interruption import RUN
RUN.listen()
from qrpo_jax.devices import peers
peers.SILENCE = float(sys.argv[3])
with peers.together():
    peers.join(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[1]), facts={})
    print("joined", flush=True)
    for step in range(1, 600):
        time.sleep(0.05)
        if len(sys.argv) > 4 and RUN.reached(step):
            print(step, flush=True)
            RUN.saved()
"""


def two(folder: Path, *arguments: str) -> list["subprocess.Popen[str]"]:
    """Two processes that have joined."""
    script = folder / "process.py"
    script.write_text(PROCESS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, script, str(i), port, *arguments],
            cwd=ROOT,
            env=environment(PYTHONPATH=str(ROOT)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "joined\n", process.communicate()
    return started


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_is_noticed_and_named_in_one_line(tmp_path: Path, victim: int) -> None:
    started = two(tmp_path, "5")
    try:
        time.sleep(1.5)
        began = time.monotonic()
        started[victim].kill()
        _, errors = started[1 - victim].communicate(timeout=60)
        seconds = time.monotonic() - began
    finally:
        for process in started:
            process.kill()
    lines = [line for line in errors.splitlines() if line.strip()]
    print(f"noticed after {seconds:.1f} s")
    assert started[1 - victim].returncode == 1, errors
    assert len(lines) == 1 and lines[0].startswith(f"error: process {victim} (") and "died" in lines[0], errors
    assert f"pid {started[victim].pid}" in lines[0], errors


@pytest.mark.parametrize("training", [True, False])
def test_a_signal_to_one_of_two_processes_stops_both(tmp_path: Path, training: bool) -> None:
    started = two(tmp_path, "40", *(["steps"] if training else []))
    try:
        time.sleep(0.5)
        started[1].send_signal(signal.SIGTERM)
        ends = [process.communicate(timeout=30) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [75, 75], ends
    assert ends[0][0] == ends[1][0] and bool(ends[0][0]) == training, "the last step"
    assert "stopped by SIGTERM" in ends[0][1] and not ends[1][1].strip(), ends
