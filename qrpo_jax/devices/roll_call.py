"""The roll call of a distributed job: who has come, and whether all run the same program.

It comes before `jax.distributed`, whose processes end with a dump of their own stack when one of them is missing, and
compute different things when they differ. The processes meet at the same address: process 0 listens there, hears all
others, answers, and makes room for JAX's service.
"""

import contextlib
import hashlib
import json
import os
import platform
import socket
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from qrpo_jax.errors import PeerError, UserError

RETRY_SECONDS = 0.2
LIMIT = 1 << 20  # bytes of an answer
PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "transformers"

Facts = Mapping[str, Any]


def call_roll(address: str, processes: int, process: int, facts: Facts, seconds: float) -> list[str]:
    """Waits for all processes and compares their facts.

    Args:
      address: host:port of process 0.
      facts: JSON values by name that must be the same on all, such as versions and settings.
      seconds: after which a missing process is an error.

    Returns:
      A name of each process: "process 1 (host-b, pid 77)".

    Raises:
      PeerError: processes have not come in time; names them.
      UserError: a fact differs, or two processes have the same number. All processes raise it.
    """
    end = time.monotonic() + seconds
    mine = {"process": process, "name": f"process {process} ({socket.gethostname()}, pid {os.getpid()})"}
    card = mine | {"facts": json.loads(json.dumps(facts))}
    answer = _hear(address, processes, card, end, seconds) if process == 0 else _report(address, card, end, seconds)
    if answer["missing"]:
        raise PeerError(answer["missing"])
    if answer["error"]:
        raise UserError(answer["error"])
    return [str(name) for name in answer["names"]]


def program_facts() -> dict[str, str]:
    """Versions of Python and libraries, and a checksum of this package's code."""
    code = hashlib.sha256()
    for path in sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".cc")):
        code.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    facts = {"Python": ".".join(platform.python_version_tuple()[:2]), "code of qrpo_jax": code.hexdigest()[:12]}
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            facts[library] = metadata.version(library)
    return facts


def _hear(address: str, processes: int, card: dict[str, Any], end: float, seconds: float) -> dict[str, Any]:
    """Process 0: hears the others, and tells each the same answer."""
    cards, lines = {0: card}, []
    answer: dict[str, Any] = {"missing": "", "error": "", "names": []}
    port = int(address.rpartition(":")[2])
    try:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise UserError(f"process 0 cannot listen at port {port} of --coordinator: {error.strerror}") from None
    with listener, contextlib.ExitStack() as open_lines:
        while len(cards) < processes and not answer["error"]:
            listener.settimeout(max(0.01, end - time.monotonic()))
            try:
                line, _ = listener.accept()
            except TimeoutError:
                absent = [f"process {index}" for index in range(processes) if index not in cards]
                answer["missing"] = f"{' and '.join(absent)} did not come within {seconds:g} s (--join-timeout)"
                break
            open_lines.enter_context(line)
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # others may knock at the port
                other = _receive(line, 10.0)
                lines.append(line)
                answer["error"] = _fault(other, cards, processes)
                cards[int(other["process"])] = other
        answer["names"] = [cards[index]["name"] for index in sorted(cards)]
        for line in lines:
            with contextlib.suppress(OSError):
                line.sendall(json.dumps(answer).encode() + b"\n")
    return answer


def _report(address: str, card: dict[str, Any], end: float, seconds: float) -> dict[str, Any]:
    """The other processes: report to process 0, as soon as it listens, and wait for its answer."""
    host, _, port = address.rpartition(":")
    while True:
        left = end - time.monotonic()
        if left <= 0:
            raise PeerError(f"process 0 did not answer at {address} within {seconds:g} s (--join-timeout)")
        with contextlib.suppress(OSError, ValueError):
            with socket.create_connection((host.strip("[]"), int(port)), timeout=min(10.0, left)) as line:
                line.sendall(json.dumps(card).encode() + b"\n")
                # Process 0 waits until its own end for those that are missing, and may have begun later.
                answer = _receive(line, left + seconds)
            if isinstance(answer, dict) and {"missing", "error", "names"} <= answer.keys():
                return answer
        time.sleep(RETRY_SECONDS)


def _receive(line: socket.socket, seconds: float) -> Any:
    """One line of JSON."""
    end, text = time.monotonic() + seconds, b""
    while not text.endswith(b"\n") and len(text) < LIMIT:
        line.settimeout(max(0.01, end - time.monotonic()))
        part = line.recv(1 << 16)
        if not part:
            raise OSError("the other end has gone")
        text += part
    return json.loads(text)


def _fault(card: dict[str, Any], cards: Mapping[int, dict[str, Any]], processes: int) -> str:
    """What is wrong with a process that reports; empty if nothing is."""
    index, first = int(card["process"]), cards[0]
    if not 0 <= index < processes:
        return f"{card['name']} is none of {processes} processes (--processes)"
    if index in cards:
        return f"{card['name']} and {cards[index]['name']} have the same number (--process)"
    theirs, ours = card["facts"], first["facts"]
    different = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if not different:
        return ""
    name = different[0]
    others = f", and {len(different) - 1} other things differ" if different[1:] else ""
    return (
        f"{card['name']} has {name} {theirs.get(name)!r}, {first['name']} has {ours.get(name)!r}{others}; "
        "all processes must run the same program with the same config"
    )
