"""The processes of a distributed job as a group: they stop together, and notice when one of them dies.

`join` connects them with `jax.distributed`. On the store of its coordination service, which process 0 runs, they agree
on the step at which a signal stops them, and each counts up every second. JAX's runtime notices a death too, but late
(100 s), and it ends the process with a dump of its own stack; so this module is faster and ends with one line.

- Process 0 declares a process dead whose count stands still for `SILENCE` seconds, and tells the others.
- Each other process talks to the service through a relay in itself, which sees at once when the connection to process 0
  breaks. The runtime, which would abort, does not see it.
- A process that ends with an error says so, and the others leave with its status.

Leaving means `os._exit`: nothing is half written, because every file and folder appears whole or not at all, and no
process waits for one that is not there.
"""

import functools
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import jax
from jax.errors import JaxRuntimeError

from qrpo_jax.devices.processes import of_runtime
from qrpo_jax.devices.roll_call import Facts, call_roll
from qrpo_jax.errors import PeerError, UserError
from qrpo_jax.faults.interruption import RUN, command, say, wait_for_ever

BEAT_SECONDS = 1.0
SILENCE = 40.0  # seconds without a beat that mean death; a process whose interpreter is busy may miss some
DOUBT = 15.0  # the same once a process has failed in talking to another
STORE = "qrpo_jax"
RUN_ERROR = 1


def join(
    coordinator: str | None, processes: int | None, process: int | None, *, facts: Facts, seconds: float = 300
) -> None:
    """Joins the other processes of the job, and watches them from now on.

    Args:
      coordinator: host:port of process 0. This and the other two are None where the cluster provides them.
      facts: what must be the same on all processes.
      seconds: to wait for processes that have not come.

    Raises:
      PeerError: a process did not come, or could not be reached.
      UserError: the cluster does not provide the address, or the processes differ.
    """
    coordinator, processes, process = detect(coordinator, processes, process)
    if coordinator is not None and processes is not None and process is not None:
        call_roll(coordinator, processes, process, facts, seconds)
    relay = None
    address = coordinator
    if coordinator is not None and process:
        relay = Relay(coordinator)
        address = f"127.0.0.1:{relay.port}"
    try:
        jax.distributed.initialize(address, processes, process, initialization_timeout=max(1, round(seconds)))
    except (JaxRuntimeError, ValueError) as error:
        message = f"the processes did not join at {coordinator or 'the coordinator'}: {str(error).splitlines()[0]}"
        # JAX refuses what it was not told with a ValueError; all else may pass.
        raise (UserError if isinstance(error, ValueError) else PeerError)(message) from None
    RUN.listen()  # jax.distributed has taken SIGTERM
    Peers(client(), jax.process_index(), jax.process_count(), relay).watch()


def detect(
    coordinator: str | None, processes: int | None, process: int | None
) -> tuple[str | None, int | None, int | None]:
    """Coordinator, count and index of processes as JAX reads them from the cluster; unchanged where it does not."""
    if None not in (coordinator, processes, process):
        return coordinator, processes, process
    with suppress(ImportError, AttributeError, TypeError):  # no public function has this
        from jax._src.clusters import ClusterEnv

        found = ClusterEnv.auto_detect_unset_distributed_params(coordinator, processes, process, None, None, 300)
        return found[0], found[1], found[2]
    return coordinator, processes, process


def client() -> Any:
    """The client of JAX's coordination service; JAX has no public name for it, and Orbax uses this one too."""
    from jax._src.distributed import global_state

    return global_state.client


class Peers:
    """The group of a distributed job; see `interruption.Group`.

    Args:
      client: of the coordination service.
      index, count: of the processes.
      relay: to process 0, in the others.
    """

    def __init__(self, client: Any, index: int, count: int, relay: "Relay | None") -> None:
        self._client, self._index, self._count, self._relay = client, index, count, relay
        self._names = [f"process {i}" for i in range(count)]
        self._beats: dict[str, tuple[str, float]] = {}  # by index: the last beat, and when it was new
        self._answered = time.monotonic()
        self._patience = SILENCE
        self._ended = False

    @property
    def first(self) -> bool:
        return self._index == 0

    def watch(self) -> None:
        """Makes this the group of the run, and starts watching the others."""
        global _joined
        _joined, RUN.group = self, self
        self._set(f"name/{self._index}", f"process {self._index} ({socket.gethostname()}, pid {os.getpid()})")
        names = range(self._count) if self.first else (0,)
        for i in names:
            self._names[i] = self._client.blocking_key_value_get(f"{STORE}/name/{i}", 60_000)
        if self._relay is not None:
            self._relay.watch(functools.partial(self._lost, 0))
        threading.Thread(target=self._follow, daemon=True, name="peers").start()
        threading.Thread(target=self._time, daemon=True, name="peers' clock").start()

    def tell(self, name: str) -> None:
        with suppress(JaxRuntimeError):  # another has told before
            self._set("news/stop", name)

    def agree(self, step: int | None) -> int | None:
        self._set(f"step/{self._index}", "" if step is None else str(step))
        steps = [self._client.blocking_key_value_get(f"{STORE}/step/{i}", 60_000) for i in range(self._count)]
        # A step needs every process. If one has nothing to lose, none has a finished step that it could lose.
        return None if "" in steps else max(map(int, steps)) + 1

    def leave(self, status: int) -> None:
        self._ended = True
        with suppress(JaxRuntimeError):
            self._set(f"news/left/{self._index}", str(status))
            end = time.monotonic() + 3
            while self.first and time.monotonic() < end:  # the service ends with this process
                if len(self._client.key_value_dir_get(f"{STORE}/news/left/")) == self._count:
                    break
                time.sleep(0.05)

    def heard(self) -> dict[str, float]:
        now = time.monotonic()
        beats = sorted((int(key), since) for key, (_, since) in list(self._beats.items()))
        return {self._names[index]: round(now - since, 1) for index, since in beats if index != self._index}

    def fail(self, status: int) -> None:
        """Leaves after an error that has been printed."""
        self.leave(status)
        leave(status)

    def explain(self) -> None:
        """Waits until a death that may have caused an error is known; returns if no process has died."""
        with suppress(JaxRuntimeError):
            self._set("news/doubt", "", again=True)
        time.sleep(DOUBT + 5)

    def finish(self) -> None:
        """Everything is done: that a process ends is no death from now on."""
        self._ended = True

    def _set(self, key: str, value: str, *, again: bool = False) -> None:
        self._client.key_value_set(f"{STORE}/{key}", value, allow_overwrite=again)

    def _follow(self) -> None:
        """Counts up, reads what the others tell, and in process 0 looks whether they count."""
        beat = 0
        while not self._ended:
            beat += 1
            try:
                self._set(f"beat/{self._index}", str(beat), again=True)
                news = self._read("news")
                beats = self._read("beat") if self.first else {}
            except JaxRuntimeError:
                time.sleep(BEAT_SECONDS)
                continue
            self._answered = time.monotonic()
            if not self._ended:
                self._act(news)
                self._look(beats)
            time.sleep(BEAT_SECONDS)

    def _read(self, folder: str) -> dict[str, str]:
        prefix = f"{STORE}/{folder}/"
        return {key.removeprefix(prefix): value for key, value in self._client.key_value_dir_get(prefix)}

    def _act(self, news: dict[str, str]) -> None:
        if "doubt" in news:
            self._patience = DOUBT
        if "lost" in news:
            self._say_lost(news["lost"])
            leave(RUN_ERROR)
        if "stop" in news and RUN.signal is None:
            threading.Thread(target=RUN.request, args=(news["stop"],), daemon=True, name="stop").start()
        failed = {key: value for key, value in news.items() if key.startswith("left/") and value != "0"}
        if failed and "stop" not in news:
            time.sleep(3)  # this process may be about to say the same
            if self._ended:
                return
            key, status = next(iter(failed.items()))
            index = int(key.removeprefix("left/"))
            say(f"error: {self._names[index]} left with status {status}, and so does process {self._index}")
            self.fail(int(status))

    def _look(self, beats: dict[str, str]) -> None:
        now = time.monotonic()
        for key, beat in beats.items():
            if self._beats.get(key, ("", 0.0))[0] != beat:
                self._beats[key] = beat, now
        for key, (_, since) in self._beats.items():
            if now - since > self._patience:
                name = self._names[int(key)]
                with suppress(JaxRuntimeError):
                    self._set("news/lost", name)
                self._say_lost(name)
                time.sleep(3 * BEAT_SECONDS)  # the others read it before the service ends
                leave(RUN_ERROR)

    def _time(self) -> None:
        """Notices a process 0 that neither answers nor breaks the connection."""
        while not self._ended:
            time.sleep(BEAT_SECONDS)
            if not self.first and time.monotonic() - self._answered > SILENCE:
                self._lost(0)

    def _lost(self, index: int) -> None:
        if self._ended:
            return
        if RUN.signal is not None:
            time.sleep(2)  # it has left first, and this process is leaving
        self._say_lost(self._names[index])
        leave(RUN_ERROR)

    def _say_lost(self, name: str) -> None:
        say(f"error: {name} died or cannot be reached, and process {self._index} leaves; to go on: {command()}")


class Relay:
    """Passes connections on to process 0, from a port of this machine, and sees when they break.

    Args:
      address: host:port of process 0.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._remote = host.strip("[]"), int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._others: dict[socket.socket, socket.socket] = {}
        self._near: set[socket.socket] = set()
        self._lost: list[tuple[socket.socket, socket.socket]] = []  # kept open
        self._on_loss: Callable[[], None] | None = None
        self._selector.register(self._listener, selectors.EVENT_READ)
        threading.Thread(target=self._serve, daemon=True, name="relay").start()

    def watch(self, on_loss: Callable[[], None]) -> None:
        """Calls `on_loss` when process 0 closes or breaks a connection. Before, the runtime tries again by itself."""
        self._on_loss = on_loss

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._others:
                    self._pass_on(key.fileobj)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._remote, timeout=10)
        except OSError:
            near.close()  # process 0 has not started yet, or has gone
            return
        for end in (near, far):
            end.settimeout(None)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(far)
        self._near.add(near)
        self._others |= {near: far, far: near}
        for end in (near, far):
            self._selector.register(end, selectors.EVENT_READ)

    def _pass_on(self, source: socket.socket) -> None:
        data, far = b"", source not in self._near
        with suppress(OSError):
            data = source.recv(1 << 16)
        if data:
            try:
                self._others[source].sendall(data)
                return
            except OSError:
                far = not far  # the other end is the broken one
        lost = far and self._on_loss is not None
        other = self._others.pop(source)
        del self._others[other]
        for end in (source, other):
            self._selector.unregister(end)
            if not lost:  # else the runtime must not see it: it would abort before this process has left
                self._near.discard(end)
                end.close()
        if far and self._on_loss is not None:
            self._lost.append((source, other))
            self._on_loss()


def keep_alive(connection: socket.socket) -> None:
    """Breaks a connection whose other machine has not answered for 30 s."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPALIVE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


_joined: Peers | None = None
_leaving = threading.Lock()


def leave(status: int) -> None:
    """Ends the process without waiting for any other; the first caller does so."""
    if not _leaving.acquire(blocking=False):
        wait_for_ever()
    RUN.take_leave()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)


def leave_together(status: int) -> NoReturn:
    """Ends the process at once, after the others of a distributed job have been told."""
    if _joined is not None:
        _joined.leave(status)
    leave(status)
    raise AssertionError("it has left")


@contextmanager
def together() -> Iterator[None]:
    """Runs a block that no process of a distributed job leaves with an error alone; without `join` it does nothing."""
    try:
        yield
    except SystemExit as end:
        if _joined is not None and end.code:
            _joined.fail(end.code if isinstance(end.code, int) else RUN_ERROR)
        raise
    except Exception as error:
        if _joined is None:
            raise
        if of_runtime(error):
            _joined.explain()
        traceback.print_exc()
        _joined.fail(RUN_ERROR)
    if _joined is not None:
        _joined.finish()
