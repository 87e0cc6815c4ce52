"""A disk that is full or read-only, a real one: one line, the documented status, and nothing is lost."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qrpo_jax import pipeline
from tests.helpers.jobs import ROOT, environment
from tests.helpers.unit_jobs import outcome, toy_job

# A job of toy stages by the command's own way, on the disk that is mounted at the folder of the work directory.
PROGRAM = """
import sys
from qrpo_jax import main
from tests.helpers.unit_jobs import NAMES, TOY

main.STAGES.update(TOY)
main.run(["qrpo-jax", "--config=configs/default.py", f"--config.stages={','.join(NAMES)}", f"--workdir={sys.argv[1]}"])
"""
GOES_ON = "run the same command: it goes on from what is complete"


class Disk:
    """A small disk in memory, in a name space of mounts of its own, with a shell inside that the test talks to."""

    def __init__(self, folder: Path, kilobytes: int) -> None:
        self.folder, self.workdir = folder, folder / "disk" / "run"
        (folder / "disk").mkdir()
        self._shell = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "bash"],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.mounted = self.shell(f"mount -t tmpfs -o size={kilobytes}k disk {folder}/disk 2> /dev/null") == 0

    def shell(self, command: str) -> int:
        """The status of a command."""
        assert self._shell.stdin is not None and self._shell.stdout is not None
        self._shell.stdin.write(f"{command} < /dev/null; echo $?\n")
        self._shell.stdin.flush()
        return int(self._shell.stdout.readline() or "1")

    def mount(self, options: str) -> None:
        assert self.shell(f"mount -o remount,{options} {self.folder}/disk") == 0

    def start(self) -> tuple[int, list[str]]:
        """Exit status of a run, and its lines without progress bars."""
        program, log = self.folder / "program.py", self.folder / "log"
        program.write_text(PROGRAM)
        status = self.shell(f"PYTHONPATH={ROOT} {sys.executable} {program} {self.workdir} > {log} 2>&1")
        return status, [line for line in log.read_text().splitlines() if line and "units [" not in line]

    def close(self) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        disk = Disk(tmp_path, 1000)
    except FileNotFoundError:
        pytest.skip("needs unshare, to mount a small disk")
    if not disk.mounted:
        disk.close()
        pytest.skip("this machine lets nobody mount a small disk")
    yield disk
    disk.close()


def test_a_full_disk_is_one_line_again_and_again_and_costs_nothing_when_there_is_room(disk: Disk) -> None:
    whole = disk.folder / "whole"
    assert pipeline.run(toy_job(whole))
    for size in ("", "size=2000k", "size=2000k", "size=4000k"):
        if size:
            disk.mount(size)
        status, lines = disk.start()
        errors = [line for line in lines if line.startswith("error: ")]
        assert status == 1 and len(errors) == 1 and "Traceback" not in "".join(lines), (size, status, lines)
        assert "No space left on device; make room and" in errors[0] and errors[0].endswith(GOES_ON), (size, errors)
        assert str(disk.workdir) in errors[0], errors
    disk.mount("size=9000k")
    status, lines = disk.start()
    assert status == 0 and lines[-1] == f"done: {disk.workdir}" and "WARNING" not in "".join(lines), (status, lines)
    assert disk.shell(f"cp -r {disk.workdir} {disk.folder}/copy") == 0
    assert outcome(disk.folder / "copy") == outcome(whole)


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to_is_one_line_and_the_run_goes_on_when_it_can(disk: Disk) -> None:
    status, lines = disk.start()
    assert status == 1, lines  # full, so that something is left to do
    disk.mount("ro,size=9000k")
    status, lines = disk.start()
    assert (status, lines) == (
        2,
        [f"error: --workdir={disk.workdir} cannot be written to: {disk.workdir}: Read-only file system"],
    )
    disk.mount("rw,size=9000k")
    status, lines = disk.start()
    assert status == 0, lines
    assert pipeline.run(toy_job(disk.folder / "whole"))
    assert disk.shell(f"cp -r {disk.workdir} {disk.folder}/copy") == 0
    assert outcome(disk.folder / "copy") == outcome(disk.folder / "whole")
