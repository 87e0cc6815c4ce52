"""A job whose work directory is in an object store ends like one on disk, whatever happens to it and to its machine."""

import contextlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrpo_jax import files, pipeline
from qrpo_jax.data import row_files
from qrpo_jax.data.text import make_text
from qrpo_jax.data.vocabulary import vocabulary_tokenizer
from qrpo_jax.errors import UserError
from qrpo_jax.hugging_face import model_folder
from qrpo_jax.job.fork import copy
from qrpo_jax.job.job import Job
from qrpo_jax.job.status import read_status
from qrpo_jax.stores.path import StorePath
from qrpo_jax.stores.store import open_store
from tests.helpers import fake_store
from tests.helpers import faults as fault_files
from tests.helpers.exports import CHARACTERS, TIED, fresh
from tests.helpers.faults import flip
from tests.helpers.jobs import ROOT, SMALL, environment, job

KILLS = 5


def content(root: Path, address: str) -> dict[str, bytes]:
    """Objects below an address, without those that differ between any two runs."""
    prefix = address.removeprefix("fake://") + "/"
    return {
        name.removeprefix(prefix): data
        for name, data in fake_store.objects(root).items()
        if name.startswith(prefix) and "journal" not in name and "owners/" not in name
    }


def small_job(place: Path) -> Job:
    """A job that samples from a model for prompts of a file; model, prompts and work directory are in this folder."""
    return job(
        place / "run",
        stages=("sample",),
        model__path=str(place / "model"),
        prompts__source=f"jsonl:{place / 'prompts.jsonl'}",
        prompts__count=0,
        prompts__held_out=3,
        prompts__unit=11,
        sample__completions=2,
        sample__max_new_tokens=3,
        pack__max_tokens=59,
    )


def test_a_job_in_a_store_ends_like_one_on_disk_and_makes_damaged_units_again(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, disk, tokenizer = StorePath(bucket), tmp_path / "disk", vocabulary_tokenizer(CHARACTERS)
    text = make_text(tokenizer, "chat", (tokenizer.eos_token_id,))
    for place in (stored, disk):
        model_folder.save(place / "model", TIED, fresh(TIED, 3), text)
        files.write_text(place / "prompts.jsonl", "".join(f'{{"prompt": "{i}"}}\n' for i in range(26)))
        open_store.cache_clear()  # another process, to which nothing is listed yet
        assert pipeline.run(small_job(place))
    made, address = content(tmp_path / "store", f"{bucket}/run"), f"{bucket}/run/sample"
    assert sorted(made) == sorted(
        path.relative_to(disk / "run").as_posix()
        for path in (disk / "run").rglob("*")
        if path.is_file() and "journal" not in path.name
    )
    for name in ("sample/rows-train.array_record-00001-of-00003", "sample/dataset_info.json"):
        assert made[name] == (disk / "run" / name).read_bytes(), name

    unit = row_files.unit_path(stored / "run" / "sample", 1, 3)
    flip(unit, np.random.default_rng(0))
    open_store.cache_clear()
    assert pipeline.run(small_job(stored))
    assert f"{unit} is damaged" in capsys.readouterr().err
    again = content(tmp_path / "store", f"{bucket}/run")
    assert again == made | {name: again[name] for name in made if "/pace/" in name or "/starts/" in name}
    open_store.cache_clear()
    assert pipeline.run(small_job(stored)) and "sample: complete, skipped" in capsys.readouterr().err

    monkeypatch.setenv("FAKE_LATE", "0")
    assert read_status(stored / "run")["state"] == "done"
    copy(stored / "run" / "sample", StorePath(f"{bucket}/other/sample"), ())
    assert content(tmp_path / "store", f"{bucket}/other/sample") == content(tmp_path / "store", address)


def test_a_store_that_does_not_answer_is_one_line_before_anything_runs(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(exist_ok=True)
    (tmp_path / "store" / "closed").touch()
    with pytest.raises(UserError, match=f"--workdir={bucket}/run cannot be written to: UnavailableError"):
        pipeline.check_workdir(StorePath(f"{bucket}/run"))


class Machine:
    """Processes that share a fake store, and nothing else but compiled programs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.starts = folder, folder / "store", 0
        self.root.mkdir(exist_ok=True)

    def start(self, workdir: str, *more: str, **options: Any) -> tuple["subprocess.Popen[bytes]", Path]:
        """A process of its own with an empty folder for copies, and its log."""
        self.starts += 1
        log, copies = self.folder / f"{self.starts}.log", self.folder / f"copies-{self.starts}"
        copies.mkdir()
        variables = environment(
            JAX_ENABLE_COMPILATION_CACHE="true",
            JAX_COMPILATION_CACHE_DIR=str(self.folder / "cache"),
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
            TMPDIR=str(copies),
            **fake_store.environment(self.root, seed=self.starts, **options),
        )
        command = [sys.executable, "-m", "qrpo_jax.main", *SMALL, f"--workdir={workdir}", *more]
        with log.open("wb") as file:
            return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=file, stderr=file), log

    def finish(self, workdir: str, *more: str) -> float:
        began = time.monotonic()
        process, log = self.start(workdir, *more)
        assert process.wait(timeout=900) == 0, log.read_text()[-3000:]
        return time.monotonic() - began


def results(folder: Path, objects: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """results.json and the export of a run on disk, or of these objects."""
    objects = fault_files.content(folder) if objects is None else objects
    return {name: data for name, data in objects.items() if name == "results.json" or name.startswith("export/model/")}


@pytest.mark.slow
def test_killed_at_random_moments_with_its_disk_lost_a_job_ends_like_one_on_disk(tmp_path: Path) -> None:
    machine, generator = Machine(tmp_path), random.Random(5)
    machine.finish(str(tmp_path / "disk"))
    wanted = results(tmp_path / "disk")
    assert len(wanted) == 7
    seconds = machine.finish("fake://bucket/undisturbed")
    assert results(tmp_path, content(machine.root, "fake://bucket/undisturbed")) == wanted
    kills, rounds, hit = 0, 0, []
    while kills < KILLS:
        process, log = machine.start(f"fake://bucket/run-{rounds}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=generator.uniform(0.15, 0.75) * seconds)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            hit.append(len(content(machine.root, f"fake://bucket/run-{rounds}")))
            continue
        assert process.returncode == 0, log.read_text()[-3000:]
        assert results(tmp_path, content(machine.root, f"fake://bucket/run-{rounds}")) == wanted, hit
        rounds += 1
    machine.finish(f"fake://bucket/run-{rounds}")
    assert results(tmp_path, content(machine.root, f"fake://bucket/run-{rounds}")) == wanted, hit
    print(f"undisturbed {seconds:.0f} s; objects at the kills: {hit}")


@pytest.mark.slow
def test_of_two_starts_at_once_one_is_refused_and_a_store_that_goes_away_is_one_line(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    both = [machine.start("fake://bucket/run") for _ in range(2)]
    loser = None
    while loser is None:
        time.sleep(0.2)
        loser = next((one for one in both if one[0].poll() is not None), None)
    assert loser[0].returncode == 2, loser[1].read_text()
    assert "--workdir=fake://bucket/run is in use by process" in loser[1].read_text()
    winner = both[0] if loser is both[1] else both[1]
    while not (machine.root / "objects" / "bucket%2Frun%2Fsft%2Fcheckpoints%2Fsteps.json").exists():
        assert winner[0].poll() is None, winner[1].read_text()
        time.sleep(0.1)
    (machine.root / "closed").touch()
    assert winner[0].wait(timeout=300) == 1
    said = winner[1].read_text()
    assert "Traceback" not in said, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "UnavailableError" in errors[0] and "run the same command" in errors[0], said
    (machine.root / "closed").unlink()
    machine.finish("fake://bucket/run")
