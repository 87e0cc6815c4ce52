"""Machines that lack something: what is not held is named and refused, and what is named is held."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from qrpo_jax.rewards.sandbox import kernel, launch
from qrpo_jax.rewards.sandbox.pool import HELD, Failed, IsolationError, Sandbox
from tests.helpers.jobs import ROOT
from tests.helpers.sandboxes import LIMITS, task, weaken
from tests.rewards.hostile import files, processes
from tests.rewards.hostile.outside import Outside, Ran

KERNEL = "import os, qrpo_jax.rewards.sandbox.kernel as k\n"
# As in a container: no process namespace, and none of users, networks or IPC.
NO_NAMESPACES = (
    KERNEL
    + """
k.fork = lambda namespace: -1 if namespace else os.fork()
k.isolate = lambda: k.LIBC.prctl(k.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
"""
)
NO_FILTER = KERNEL + "k.filter_calls = lambda: None\n"
NOTHING = KERNEL + "k.MACHINE = None\n"
# What is right where a completion has no process namespace is another number.
NUMBERS = {"leaks: other parents", "leaks: process number"}
ATTACKS = [one for one in [*processes.ATTACKS, *files.ATTACKS] if one.name not in NUMBERS]

pytestmark = pytest.mark.skipif(kernel.MACHINE is None, reason="needs the Linux kernel's tools")


def landlock(version: int) -> str:
    """A kernel whose Landlock is older; 0: it has none."""
    return (
        KERNEL
        + f"""
class Older:
    def __init__(self, real): self.real = real
    def __getattr__(self, name): return getattr(self.real, name)
    def syscall(self, number, *rest):
        if number == 444 and rest == (None, 0, 1): return {version or -1}
        return self.real.syscall(number, *rest)
k.LIBC = Older(k.LIBC)
"""
    )


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    with ExitStack() as stack:
        yield Outside(tmp_path, stack)


@pytest.mark.parametrize("version", [1, 3, 5])
def test_in_a_container_with_an_old_landlock_level_kernel_holds(
    monkeypatch: pytest.MonkeyPatch, outside: Outside, version: int
) -> None:
    weaken(monkeypatch, NO_NAMESPACES + landlock(version))
    ran = Ran("kernel", ATTACKS, outside)
    assert ran.level == "kernel", ran.notes
    assert ran.wrong(ATTACKS) == [] and ran.harmed() == [] and ran.leaks(outside.secret) == []
    assert outside.state() == outside.before


@pytest.mark.parametrize(
    ("lacking", "missing"),
    [
        (NOTHING, {"network", "filesystem", "reading", "processes"}),
        (NO_NAMESPACES + landlock(0), {"reading"}),
        (landlock(0), {"reading"}),
        (NO_FILTER, {"network", "processes"}),
        (NO_FILTER + NO_NAMESPACES, {"network", "processes"}),
    ],
)
def test_what_is_not_held_is_named_and_refused(
    monkeypatch: pytest.MonkeyPatch, lacking: str, missing: set[str]
) -> None:
    weaken(monkeypatch, lacking)
    with Sandbox(LIMITS, 1, isolation="kernel") as weaker:
        assert weaker.level == "limits"
        assert {name for name in HELD if not weaker.protections[name]} == missing
        assert all(name in weaker.notes[-1] for name in missing), weaker.notes
        outputs = weaker.run(
            [
                task("def f(a, b):\n    return a + b", (2, 3)),
                task("def f():\n    while True: pass", ()),
                task("import random\ndef f():\n    return random.random()", ()),
            ]
        )
    assert outputs == [(5,), (Failed("time"),), (0.8444218515250481,)]  # Python's first with seed 0
    with pytest.raises(IsolationError, match="'kernel' is required.*" + sorted(missing)[0]):
        Sandbox(LIMITS, 1, isolation="kernel", require="kernel").run([])


def test_bubblewrap_holds_without_landlock(monkeypatch: pytest.MonkeyPatch, outside: Outside) -> None:
    if not launch.bubblewrap():
        pytest.skip("bubblewrap is not installed")
    weaken(monkeypatch, landlock(0))
    try:
        ran = Ran("bubblewrap", ATTACKS, outside)
    except IsolationError as error:
        pytest.skip(str(error))
    assert ran.level == "bubblewrap", ran.notes
    assert ran.wrong(ATTACKS) == [] and ran.leaks(outside.secret) == [] and outside.state() == outside.before


def test_without_bubblewrap_level_kernel_is_used_and_bubblewrap_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "bubblewrap", lambda: "")
    with Sandbox(LIMITS, 1, require="kernel") as there:
        assert there.level == "kernel" and "not installed" in there.notes[0], there.notes
    with pytest.raises(IsolationError, match="'bubblewrap' is required here|not installed"):
        Sandbox(LIMITS, 1, require="bubblewrap").run([])


def test_a_bubblewrap_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(launch, "bubblewrap", lambda: str(broken))
    with Sandbox(LIMITS, 1) as there:
        assert there.level == "kernel" and "No permissions to create a new namespace" in there.notes[0], there.notes


NOBODY: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []}
# Imports the sandbox and the attacks without the packages above them, which need JAX.
AS_NOBODY = """
import json, sys, tempfile, types
from contextlib import ExitStack
from pathlib import Path
root = sys.argv[1]
sys.path.insert(0, root)
for name in ("qrpo_jax", "qrpo_jax.rewards", "qrpo_jax.rewards.sandbox"):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [root + "/" + name.replace(".", "/")]
from qrpo_jax.rewards.sandbox.pool import IsolationError
from tests.rewards.hostile import files, processes
from tests.rewards.hostile.outside import Outside, Ran
attacks = [*processes.ATTACKS, *files.ATTACKS]
found = {}
for level in ("kernel", "bubblewrap", "limits"):
    with ExitStack() as stack:
        outside = Outside(Path(stack.enter_context(tempfile.TemporaryDirectory())), stack)
        try: ran = Ran(level, attacks, outside)
        except IsolationError as error: found[level] = str(error)
        else:
            same = outside.state() == outside.before
            found[level] = [ran.level, ran.notes, ran.wrong(attacks), ran.harmed(), ran.leaks(outside.secret), same]
print(json.dumps(found))
"""


def interpreter_of_all() -> str:
    """An interpreter that a user without any rights can start; "": none."""
    for program in (os.path.realpath(getattr(sys, "_base_executable", sys.executable)), "/usr/bin/python3"):
        check = [program, "-c", "import sys, ctypes; sys.exit(sys.version_info < (3, 11))"]
        with suppress(OSError):
            if subprocess.run(check, **NOBODY, cwd="/", capture_output=True).returncode == 0:
                return program
    return ""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """The package and its attacks in a folder that every user can read; pytest's own is for its user alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("qrpo_jax", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield folder


def test_an_unprivileged_user_has_the_same_levels(open_folder: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("every other test is this one: the user has no privileges")
    program = interpreter_of_all()
    if not program:
        pytest.skip("no interpreter that every user can start")
    path = os.pathsep.join(filter(None, [os.path.dirname(launch.bubblewrap()), "/usr/bin:/bin"]))
    answer = subprocess.run(
        [program, "-c", AS_NOBODY, str(open_folder)],
        **NOBODY,
        cwd="/",
        env={"PATH": path},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    if isinstance(found["bubblewrap"], str):
        assert "bubblewrap" in found.pop("bubblewrap")
    print(f"held as nobody: {list(found)}")
    for level, one in found.items():
        assert one == [level, [], [], [], [], True], f"{level}: {one}"
