"""What pages tell users to type is accepted: each ```bash block, from the top of its page to the bottom, is read as a
command line and its config checked, without running it."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

from qrpo_jax import command_line
from qrpo_jax.command_line import Request, RowsRequest
from qrpo_jax.errors import UserError
from tests.helpers.pages import PAGES, ROOT, blocks, name_of, typed

WITH_COMMANDS = [page for page in PAGES if blocks(page.read_text("utf-8"), "bash")]
PROGRAM = re.compile(r"--(config|workdir|fork)\b")  # flags that launch scripts pass on


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_commands_are_accepted(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = typed("\n".join(blocks(page.read_text("utf-8"), "bash")), tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")  # pages of a clone name its files
    for words in commands:
        check(words)
    assert commands


def test_a_wrong_command_is_not_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = "cat > a.py <<'EOF'\nx = 1\nEOF\nB=0.1\nqrpo-jax --config=optimum \\\n  --workdir=r --config.train.beta=$B"
    good = typed(script, tmp_path)
    assert good == [["qrpo-jax", "--config=optimum", "--workdir=r", "--config.train.beta=0.1"]]
    assert (tmp_path / "a.py").read_text() == "x = 1\n"
    check(good[0])
    for wrong in (
        ["qrpo-jax", "--config=quickstart", "--workdir=r", "--config.train.bta=0.1"],
        ["qrpo-jax", "--config=quickstart", "--workdir=r", "--config.stages=score"],
        ["launch/gke.sh", "run", "--nme=a", "--config=quickstart", "--workdir=r"],
        ["pip", "install", "-e", ".[cda]"],
    ):
        with pytest.raises((UserError, AssertionError)):
            check(wrong)


def check(words: list[str]) -> None:
    """Refuses a command that would be refused where it is typed."""
    name, rest = words[0], words[1:]
    if name == "qrpo-jax":
        check_program(rest)
    elif name == "python" and rest[:2] in (["-m", "qrpo_jax.main"], ["-m", "qrpo_jax"]):
        check_program(rest[2:])
    elif name == "python" and rest[0] == "-c":
        ast.parse(rest[1])
    elif name == "python":
        path = rest[1].replace(".", "/") + ".py" if rest[0] == "-m" else rest[0]
        assert (ROOT / path).exists() or rest[:2] == ["-m", "pip"] or rest[1] in ("pytest", "sphinx"), words
    elif name == "pip":
        for extras in re.findall(r"\[([\w,]+)\]", " ".join(rest)):
            unknown = [extra for extra in extras.split(",") if f'"{extra}": ' not in (ROOT / "setup.py").read_text()]
            assert not unknown, unknown
    elif name in ("bash", "sbatch") or name.startswith("launch/"):
        check_launcher([word for word in words if word != "bash"])


def check_program(words: list[str]) -> None:
    try:
        # No client of a store is installed.
        request = command_line.read(["qrpo-jax", *(word.replace("gs://", "/") for word in words)])
    except SystemExit as asked:  # help, version
        assert asked.code == 0
        return
    except UserError as error:
        if "--status" in words and "has no journal of a run" in str(error):
            return
        raise
    assert isinstance(request, Request | RowsRequest)


def check_launcher(words: list[str]) -> None:
    """The script's own flags are in its help, and the program accepts the others."""
    at = next((i for i, word in enumerate(words) if word.startswith("launch/")), None)
    if at is None:
        assert (ROOT / words[0]).exists(), words  # such as `bash .ci/run`
        return
    script, given = words[at], words[at + 1 :]
    described = subprocess.run(["bash", ROOT / script, "--help"], capture_output=True, text=True, env=os.environ).stdout
    for word in given:
        if not PROGRAM.match(word):
            flag = word.partition("=")[0]
            assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", described), f"{script} has no {word}"
    passed_on = [
        word.replace("gs://", "/") for word in given if PROGRAM.match(word)
    ]  # no client of a store is installed
    if passed_on:
        check_program(passed_on)
