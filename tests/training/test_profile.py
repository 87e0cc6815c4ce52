"""A profile has the steps that were asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

from qrpo_jax.errors import UserError
from qrpo_jax.training.profile import NO_PROFILE, parse_profile
from tests.helpers.jobs import ROOT, environment


@pytest.mark.parametrize("text", ["x", "3", "0:2", "3:0", "-1:2", "3:2:1", "1.5:2", " 3:2"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="allowed: STEP:COUNT, such as 20:3, or nothing") as caught:
        parse_profile(text, Path())
    assert caught.value.about == ("profile",)


PROGRAM = """
import sys
from pathlib import Path
import jax.numpy as jnp
from qrpo_jax.training.profile import parse_profile
folder = Path(sys.argv[1])
profile = parse_profile("2:2", folder)
for number in range(1, 6):
    with profile.step(number):
        jnp.ones(7).sum().block_until_ready()
    print(number, (folder / "profile").exists(), len(list(folder.rglob("*.xplane.pb"))))
"""


def test_some_steps_are_recorded(tmp_path: Path) -> None:
    """In a process of its own: the profiler crashes where libtpu is installed and is not told that there is no TPU."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [files for *_, files in lines] == ["0", "0", "1", "1", "1"], lines
    assert lines[0] == ["1", "False", "0"], lines


def test_a_run_that_begins_in_the_middle_has_none(tmp_path: Path) -> None:
    profile = parse_profile("2:2", tmp_path)
    for number in (3, 4):
        with profile.step(number):
            pass
    assert not list(tmp_path.iterdir())
    assert parse_profile("", tmp_path) == NO_PROFILE
