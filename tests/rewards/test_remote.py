"""Laws of a sandbox at the far end of a command: what it gives is what a local one gives, whatever the far end does."""

import stat
import sys
from pathlib import Path

import pytest

from qrpo_jax.rewards.sandbox import remote
from qrpo_jax.rewards.sandbox.pool import Call, Failed, IsolationError, Limits, Sandbox, Task
from qrpo_jax.rewards.sandbox.remote import RemoteSandbox, read_outputs

LIMITS = Limits(cpu_seconds=0.2, memory_mb=128, output_bytes=4096)
TASKS = [
    Task("def f(a):\n    return {a, (a, 1.5)}", "f", (Call((1,)), Call(("é\n",)))),
    Task("def f(a):\n    while a == 2: pass\n    return a", "f", tuple(Call((a,)) for a in (1, 2, 3))),
    Task("print(int(input()) * 7)", None, ("6\n", "x", "11")),
    Task("def f(:", "f", (Call(()),)),
    Task("import os\nos._exit(7)", "f", (Call(()), Call(()))),
    *(Task(f"def f(a, b):\n    return a * b + {i}", "f", (Call((i, 3)),)) for i in range(31)),
]


def command(tmp_path: Path, script: str) -> str:
    """A stand-in for a container runtime: a program that does something, then starts Python."""
    program = tmp_path / "runtime"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return f"{program} run --rm -i image {sys.executable}"


PLAIN = 'shift 4; exec env -i "$@"'


def test_outputs_are_those_of_a_local_sandbox(tmp_path: Path) -> None:
    seen: list[int] = []
    with Sandbox(LIMITS, 2) as local, RemoteSandbox(command(tmp_path, PLAIN), LIMITS, 2) as far:
        expected = local.run(TASKS)
        assert far.run(TASKS, lambda index, _: seen.append(index)) == expected
        assert sorted(seen) == list(range(len(TASKS)))
        assert far.run([]) == [] and far.run(TASKS[:1]) == expected[:1]
        assert far.level in ("limits", "kernel", "bubblewrap") and far.protections["cpu"]


def test_a_far_end_that_ends_in_the_middle_is_started_again_and_loses_nothing(tmp_path: Path) -> None:
    """It is killed after its first answers, the first three times."""
    script = f"""
count=$(cat {tmp_path}/count 2>/dev/null || echo 0)
echo $((count + 1)) > {tmp_path}/count
shift 4
if [ "$count" -lt 3 ]; then "$@" | sed -u 9q; exit; fi
exec "$@"
"""
    with Sandbox(LIMITS, 2) as local, RemoteSandbox(command(tmp_path, script), LIMITS, 2) as far:
        assert far.run(TASKS) == local.run(TASKS)
    assert int((tmp_path / "count").read_text()) >= 4


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'no such image' >&2; exit 125", "does not start Python: no such image"),
        ("echo hello", "does not start Python: it answered b'hello'"),
        ("exit 0", "does not start Python: it ended"),
        ("echo '{\"level\": 3}'", "does not start Python"),
    ],
)
def test_a_command_that_starts_no_sandbox_is_refused_with_its_own_words(
    tmp_path: Path, script: str, message: str
) -> None:
    with pytest.raises(IsolationError, match=message), RemoteSandbox(command(tmp_path, script), LIMITS, 1):
        pass


def test_a_program_that_is_not_there_is_refused() -> None:
    with pytest.raises(IsolationError, match="'no-such-runtime' does not start"), RemoteSandbox("no-such-runtime x"):
        pass
    with pytest.raises(ValueError, match="is empty"):
        RemoteSandbox("")


GREETING = '{"level": "kernel", "protections": {}, "notes": []}'


@pytest.mark.parametrize(
    "answer", ['{"index": 99, "outputs": []}', "garbage", '{"index": "0"}', '{"index": [], "outputs": 1}', "[" * 5000]
)
def test_a_far_end_that_does_not_keep_the_protocol_is_given_up(tmp_path: Path, answer: str) -> None:
    (tmp_path / "answer").write_text(f"{GREETING}\n{answer}\n")
    with (
        pytest.raises(IsolationError, match="ended 3 times without an answer"),
        RemoteSandbox(command(tmp_path, f"cat {tmp_path}/answer; cat > /dev/null"), LIMITS, 1) as far,
    ):
        far.run(TASKS[:1])


def test_a_silent_far_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SILENT_SECONDS", 0.3)
    (tmp_path / "answer").write_text(f"{GREETING}\n")
    script = f"cat {tmp_path}/answer; cat > /dev/null"
    with (
        pytest.raises(IsolationError, match="it was silent"),
        RemoteSandbox(command(tmp_path, script), LIMITS, 1) as far,
    ):
        far.run(TASKS[:1])


def test_what_is_held_inside_must_be_what_is_required(tmp_path: Path) -> None:
    weak = command(tmp_path, PLAIN)
    with pytest.raises(IsolationError, match="'limits' inside .* 'kernel' is required"):
        RemoteSandbox(weak, LIMITS, 1, isolation="limits", require="kernel").__enter__()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([["value", 3], ["time", "x"]], (3, Failed("time", "x"))),
        ([["value", 3]], (Failed("error", "its report is unreadable"),) * 2),
        ("text", (Failed("error", "its report is unreadable"),) * 2),
        ([["value", 3], 7], (3, Failed("error", "its report is unreadable"))),
        ([["passed", 1], ["value"]], (Failed("error"), Failed("error", "its report is unreadable"))),
    ],
)
def test_untrusted_outputs_are_read_with_care(given: object, expected: object) -> None:
    assert read_outputs(given, 2) == expected
