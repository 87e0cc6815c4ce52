"""The roll call names who is missing and what differs, before `jax.distributed` starts."""

import json
import socket
import threading
from typing import Any

import pytest

from qrpo_jax.devices.roll_call import Facts, call_roll, program_facts
from qrpo_jax.errors import PeerError, UserError

SAME = {"jax": "0.10.2", "config.train.beta": 0.1, "config.stages": ("sample",)}


def address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def called(facts: list[Facts], numbers: list[int] | None = None, *, of: int, seconds: float = 20) -> list[Any]:
    """What `call_roll` returns or raises in each of several processes, here threads."""
    numbers = list(range(len(facts))) if numbers is None else numbers
    results: list[Any] = [None] * len(facts)
    where = address()

    def run(index: int) -> None:
        try:
            results[index] = call_roll(where, of, numbers[index], facts[index], seconds)
        except (PeerError, UserError) as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in reversed(range(len(facts)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_all_that_come_know_each_other() -> None:
    names, *others = called([SAME, SAME, SAME], of=3)
    assert [name.split(" (")[0] for name in names] == ["process 0", "process 1", "process 2"], names
    assert others == [names, names]


def test_who_is_missing_is_named_on_all_that_came() -> None:
    results = called([SAME, SAME], [0, 2], of=4, seconds=1.5)
    for error in results:
        assert isinstance(error, PeerError), results
        assert str(error) == "process 1 and process 3 did not come within 1.5 s (--join-timeout)"


def test_a_missing_first_process_is_named_with_its_address() -> None:
    (error,) = called([SAME], [1], of=2, seconds=0.7)
    assert isinstance(error, PeerError) and "process 0 did not answer at 127.0.0.1:" in str(error), error


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({**SAME, "jax": "0.12.0"}, r"has jax '0\.12\.0', process 0 \(.*\) has '0\.10\.2'; all processes must"),
        ({**SAME, "config.train.beta": 0.3, "z": 1}, r"config\.train\.beta 0\.3, .* 0\.1, and 1 other things differ"),
    ],
)
def test_a_difference_is_one_line_on_all(other: Facts, message: str) -> None:
    results = called([SAME, other], of=2)
    for error in results:
        assert isinstance(error, UserError), results
        assert error.message.startswith("process 1 (") and "\n" not in error.message
        with pytest.raises(UserError, match=message):
            raise error


def test_two_processes_of_one_number_and_one_too_many() -> None:
    assert all("have the same number" in str(error) for error in called([SAME] * 3, [0, 1, 1], of=3)[:1])
    assert "is none of 2 processes" in str(called([SAME] * 2, [0, 2], of=2)[0])


def test_others_that_knock_at_the_port_disturb_nobody() -> None:
    where, results = address(), []
    first = threading.Thread(target=lambda: results.append(call_roll(where, 2, 0, SAME, 20)))
    first.start()
    host, _, port = where.rpartition(":")
    for text in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"[]\n",
        b'{"process": "x"}\n',
        json.dumps({"process": 1}).encode() + b"\n",
    ):
        while True:
            try:
                with socket.create_connection((host, int(port))) as line:
                    line.sendall(text)
                break
            except OSError:
                continue
    assert len(call_roll(where, 2, 1, SAME, 20)) == 2
    first.join(20)
    assert len(results) == 1


def test_facts_are_versions_and_the_code() -> None:
    facts = program_facts()
    assert {"Python", "code of qrpo_jax", "jax", "numpy"} <= facts.keys() and facts == program_facts()
