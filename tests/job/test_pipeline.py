"""Stages are records in a table; a job runs them in order, each once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from configs import default
from qrpo_jax import pipeline
from qrpo_jax.data import row_files
from qrpo_jax.errors import UserError, located
from qrpo_jax.job.completions import jitted_sampler, sampler_program
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.stage import Stage
from qrpo_jax.job.units import run_units
from qrpo_jax.model.compute import UNROLL
from qrpo_jax.stages import STAGES
from tests.helpers.jobs import ROOT, environment, job
from tests.helpers.sample_rows import make_row


def check_nothing(job: Job) -> None:
    pass


def note(path: Path) -> Stage:
    """A toy stage: it appends a line to a file, and needs no model."""

    def run(job: Job) -> dict[str, Any]:
        path.write_text(path.read_text() + "ran\n" if path.exists() else "ran\n")
        return {"lines": len(path.read_text().splitlines())}

    return Stage(run, check_nothing, sections=("log",), needs_model=False)


def toy_job(workdir: Path, table: dict[str, Stage], **overrides: Any) -> Job:
    config = default.get_config()
    config.stages = tuple(table)
    for key, value in overrides.items():
        config[key] = value
    return Job(FrozenConfigDict(config), workdir, Shard(0, 1), STAGES | table)


def test_a_stage_is_one_record_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    assert pipeline.run(toy_job(tmp_path / "run", {"note": note(path)}))
    recorded = read_manifest(tmp_path / "run" / "note")
    assert recorded is not None and recorded["lines"] == 1 and list(recorded["files"]) == ["settings.json"]
    settings = json.loads((tmp_path / "run" / "note" / "settings.json").read_text())
    assert settings["seed"] == 0 and settings["log.tensorboard"] is True and "train.beta" not in settings


def test_a_complete_stage_does_not_run_again_and_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    for _ in range(3):
        assert pipeline.run(toy_job(tmp_path / "run", {"note": note(path)}))
    assert path.read_text() == "ran\n"
    with pytest.raises(UserError, match="seed: 0 -> 5"):
        pipeline.run(toy_job(tmp_path / "run", {"note": note(path)}, seed=5))
    assert path.read_text() == "ran\n"


def test_stages_that_are_unknown_repeated_or_out_of_order_are_refused(tmp_path: Path) -> None:
    first, second = note(tmp_path / "a"), note(tmp_path / "b")._replace(needs=("first",))
    stages = {"first": first, "second": second}
    for names, message in (
        (("second", "first"), "'second' needs 'first' before it"),
        (("first", "first"), "'first' is twice"),
        (("first", "third"), "stages is 'third'; allowed: sft, .*, first, second"),
        ((), "stages is empty"),
    ):
        with pytest.raises(UserError, match=message):
            pipeline.run(toy_job(tmp_path / "run", stages, stages=names))
    assert not (tmp_path / "run").exists()


def test_all_stages_are_checked_before_any_runs(tmp_path: Path) -> None:
    def check(job: Job) -> None:
        with located("log.wandb_project"):
            raise UserError("this cannot run")

    path = tmp_path / "note.txt"
    stages = {"note": note(path), "bad": note(path)._replace(check=check)}
    with pytest.raises(UserError, match=r"^this cannot run \(config.log.wandb_project\)$"):
        pipeline.run(toy_job(tmp_path / "run", stages))
    assert not path.exists() and not (tmp_path / "run").exists()


def test_a_stage_reads_the_rows_of_the_last_earlier_stage_that_writes_rows(tmp_path: Path) -> None:
    """So a stage that filters rows can be inserted without a change to the stages around it."""

    def run(job: Job) -> dict[str, Any]:
        raise AssertionError("not run here")

    kept = Stage(run, check_nothing, needs=("sample",), writes_rows=True)
    stages = ("sft", "sample", "filter", "train", "evaluate")
    config = default.get_config()
    config.stages = stages
    filtered = Job(FrozenConfigDict(config), tmp_path, Shard(0, 1), STAGES | {"filter": kept})
    assert [filtered.rows_before(name) for name in ("filter", "train", "evaluate")] == ["sample", "filter", "filter"]
    with pytest.raises(UserError, match="'sample' reads rows, and no stage before it writes any"):
        filtered.rows_before("sample")


def test_a_starting_shard_keeps_files_that_another_shard_is_writing(tmp_path: Path) -> None:
    def run(job: Job) -> dict[str, Any] | None:
        counts = run_units(job, job.folder("rows"), 2, lambda unit: ([make_row(unit)], {"rows": 1}), title="rows")
        return None if counts is None else {"units": 2, "counts": counts}

    stages = {"rows": Stage(run, check_nothing, shardable=True, writes_rows=True, needs_model=False)}
    config = default.get_config()
    config.stages = ("rows",)
    first, second = (
        Job(FrozenConfigDict(config), tmp_path / "run", Shard(index, 2), STAGES | stages) for index in (0, 1)
    )
    assert not pipeline.run(first)  # the other half is missing
    half_written = tmp_path / "run" / "rows" / ".tmp-of-the-first-shard"
    half_written.write_text("half a unit")
    assert pipeline.run(second)
    assert half_written.exists()
    assert [row.id for row in row_files.read(tmp_path / "run" / "rows")] == ["row-0", "row-1"]


PROGRAM = """
import sys
from qrpo_jax import main
from qrpo_jax.errors import UserError
from qrpo_jax.job.stage import Stage

def run(job):
    import numpy as np
    if {kind!r} == "user":
        raise UserError("the data is empty", about="data")
    if {kind!r} == "broadcast":
        np.zeros(3) + np.zeros(5)
    list(zip([1], [], strict=True))

main.STAGES["broken"] = Stage(run, lambda job: None, needs_model=False)
sys.argv += ["--config=configs/quickstart.py", "--config.stages=('broken',)", "--workdir={workdir}"]
main.run(sys.argv)
"""


@pytest.mark.parametrize("kind, status", [("user", 2), ("broadcast", 1), ("zip", 1)])
def test_a_mistake_is_one_line_and_a_bug_keeps_its_traceback(tmp_path: Path, kind: str, status: int) -> None:
    program = PROGRAM.format(kind=kind, workdir=tmp_path / "run")
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == status, (done.returncode, done.stderr)
    if kind == "user":
        assert done.stderr == "error: the data is empty\n"
    else:
        assert "Traceback" in done.stderr and done.stderr.rstrip().splitlines()[-1].startswith("ValueError"), (
            done.stderr
        )


class Compilations:
    """Counts the programs that XLA compiles, by name."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, event: str, seconds: float, **details: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.names.append(details.get("fun_name", ""))


@pytest.mark.slow
def test_sampling_more_units_compiles_nothing_more(tmp_path: Path) -> None:
    """The programs of a stage are compiled for its first unit and serve all others."""
    compiled = []
    for units in (1, 3):
        counter = Compilations()
        jax.monitoring.register_event_duration_secs_listener(counter)
        jax.clear_caches()
        sampler_program.cache_clear()
        small = job(
            tmp_path / f"{units}-units",
            stages=("sft", "sample"),
            sft__examples=13,
            sft__batch_size=13,
            prompts__unit=5,
            prompts__count=5 * units,
            prompts__held_out=0,
            sample__completions=2,
            sample__max_new_tokens=3,
            log__tensorboard=False,
        )
        try:
            assert pipeline.run(small)
        finally:
            jax.monitoring.unregister_event_duration_listener(counter)
        compiled.append(len(counter.names))
        manifest = read_manifest(small.folder("sample"))
        assert manifest is not None and manifest["units"] == units
    assert 0 < compiled[0] == compiled[1], compiled
    assert np.isfinite(compiled[0])


def test_stages_that_sample_alike_share_a_program(tmp_path: Path) -> None:
    same = job(
        tmp_path, sample__completions=3, evaluate__completions=3, sample__max_new_tokens=5, evaluate__max_new_tokens=5
    )
    of_sample, of_evaluate = (
        jitted_sampler(same, same.config[section], side, (0,))
        for section, side in (("sample", "reference"), ("evaluate", "policy"))
    )
    other = job(tmp_path, sample__completions=3, sample__max_new_tokens=7)
    assert of_sample is of_evaluate
    assert of_sample is not jitted_sampler(other, other.config.sample, "reference", (0,))


def test_layers_are_unrolled_where_a_backward_pass_follows(tmp_path: Path) -> None:
    of_platform, of_config = job(tmp_path), job(tmp_path, model__unroll=3)
    assert of_platform.compute(of_platform.mesh, backward=True).unroll == UNROLL["cpu"] > 1
    assert of_config.compute(of_config.mesh, backward=True).unroll == 3
    assert of_platform.compute(of_platform.mesh).unroll == of_config.compute(of_config.mesh).unroll == 1
