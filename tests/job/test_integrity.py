"""Integrity: whatever happens to a file of a run, the next start ends in the same result or in one line about it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrpo_jax import pipeline
from qrpo_jax.data import row_files
from qrpo_jax.data.rows import Completion, Message, Row, encode
from qrpo_jax.errors import DamagedError, UserError
from qrpo_jax.files import write_json
from qrpo_jax.job import integrity
from qrpo_jax.job.job import Job
from qrpo_jax.job.stage import Stage
from qrpo_jax.job.units import run_units
from tests.helpers.faults import FAULTS, content, outcome, restored
from tests.job.test_pipeline import toy_job

UNITS = 3


def row(number: int) -> Row:
    completion = Completion(f"completion {number}", np.arange(number + 1, dtype=np.int32), True, "reference", 0.5)
    return Row(f"row-{number}", (Message("user", f"prompt {number}"),), completions=(completion,))


def draw(job: Job) -> dict[str, Any] | None:
    """A toy stage that writes rows."""
    counts = run_units(job, job.folder("draw"), UNITS, lambda u: ([row(u), row(u + 7)], {"rows": 2}), title="draw")
    return None if counts is None else {"units": UNITS, "counts": counts}


def double(job: Job) -> dict[str, Any] | None:
    """A toy stage that reads these rows and writes others."""

    def work(unit: int) -> tuple[list[Row], dict[str, int]]:
        rows = list(row_files.read_unit(job.folder("draw"), unit, UNITS))
        return [*rows, *rows], {"rows": 2 * len(rows)}

    counts = run_units(job, job.folder("double"), UNITS, work, title="double")
    return None if counts is None else {"units": UNITS, "counts": counts}


def total(job: Job) -> dict[str, Any]:
    """A toy stage that reads these and writes a result."""
    rows = list(row_files.read(job.folder("double")))
    tokens = sum(len(r.completions[0].tokens) for r in rows)
    result = {"rows": len(rows), "tokens": tokens, "bytes": [len(encode(r)) for r in rows]}
    for folder in (job.folder("total"), job.workdir):
        write_json(folder / "results.json", result)
    return result


def nothing(job: Job) -> None:
    pass


TABLE = {
    "draw": Stage(draw, nothing, shardable=True, writes_rows=True, needs_model=False),
    "double": Stage(double, nothing, needs=("draw",), shardable=True, writes_rows=True, needs_model=False),
    "total": Stage(total, nothing, needs=("double",), outside=("results.json",), needs_model=False),
}


def start(workdir: Path, said: list[str] | None = None) -> None:
    job = toy_job(workdir, TABLE)
    if said is not None:
        job.say = said.append  # type: ignore[method-assign]
    assert pipeline.run(job)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("complete") / "run"
    start(workdir)
    return workdir


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed in stage `double`, with one unit of it written."""
    workdir = tmp_path_factory.mktemp("begun") / "run"

    def work(unit: int) -> Any:
        if unit == 1:
            raise KeyboardInterrupt
        rows = list(row_files.read_unit(workdir / "draw", unit, UNITS))
        return [*rows, *rows], {"rows": 2 * len(rows)}

    def half(job: Job) -> Any:
        return run_units(job, job.folder("double"), UNITS, work, title="double")

    with pytest.raises(KeyboardInterrupt):
        pipeline.run(toy_job(workdir, TABLE | {"double": TABLE["double"]._replace(run=half)}))
    return workdir


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("state", ["complete", "begun"])
def test_a_fault_in_any_file_ends_in_the_same_result_or_in_one_line(
    request: pytest.FixtureRequest, complete: Path, fault: str, state: str
) -> None:
    workdir: Path = request.getfixturevalue(state)
    rng, expected, ends = np.random.default_rng(len(fault)), outcome(complete), {"same": 0, "refused": 0}
    for name in sorted(content(workdir)):
        with restored(workdir):
            FAULTS[fault](workdir / name, rng)
            try:
                start(workdir)
            except (DamagedError, UserError) as error:
                assert "\n" not in str(error), error
                ends["refused"] += 1
                continue
            different = [file for file, data in outcome(workdir).items() if data != expected.get(file)]
            # White space in a record is no content, and a record is not written again for it.
            assert not [file for file in different if not file.endswith(("settings.json", "manifest.json"))], name
            ends["same"] += 1
    assert ends["same"] > ends["refused"] / 2 and ends["refused"], ends


def test_a_damaged_unit_of_a_complete_stage_is_made_again_and_said(complete: Path) -> None:
    path = row_files.unit_path(complete / "draw", 1, UNITS)
    files = outcome(complete)
    with restored(complete):
        path.write_bytes(path.read_bytes()[:-3] + b"abc")
        said: list[str] = []
        start(complete, said)
        assert outcome(complete) == files
        assert [line for line in said if line.startswith("WARNING") and path.name in line], said


def test_a_unit_that_is_made_again_otherwise_stops(complete: Path) -> None:
    """As on another machine, whose samples differ: the later stages have used the old ones."""
    with restored(complete):
        row_files.unit_path(complete / "draw", 1, UNITS).unlink()

        def other(job: Job) -> Any:
            return draw_with(job, lambda u: ([row(u + 1)], {"rows": 1}))

        def draw_with(job: Job, work: Any) -> Any:
            return {"units": UNITS, "counts": run_units(job, job.folder("draw"), UNITS, work, title="draw")}

        with pytest.raises(DamagedError, match="made again it is another file"):
            pipeline.run(toy_job(complete, TABLE | {"draw": TABLE["draw"]._replace(run=other)}))


def test_the_listing_leaves_out_arrays_and_what_no_stage_reads(tmp_path: Path) -> None:
    unlisted = ("parameters/d/0", "checkpoints/3/x", "tensorboard/events", "manifest.json", "tokens/.nfs0001")
    for name in ("rows.json", "a/b.json", *unlisted):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".tmp-half").write_text("x")
    (tmp_path / "damaged-checkpoint-3").mkdir()
    (tmp_path / "damaged-checkpoint-3" / "x").write_text("x")
    listed = integrity.listing(tmp_path)
    assert list(listed) == ["a/b.json", "rows.json"] and listed["rows.json"][0] == 9
    assert integrity.damaged_files(tmp_path, listed) == []
    (tmp_path / "rows.json").write_text("rows.JSON")
    (tmp_path / "a" / "b.json").unlink()
    assert integrity.damaged_files(tmp_path, listed) == [tmp_path / "a" / "b.json", tmp_path / "rows.json"]
