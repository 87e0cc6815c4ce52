"""A report without stage `evaluate`: of rows alone, and of a training that nothing evaluates."""

from pathlib import Path
from typing import Any

import pytest

from qrpo_jax import pipeline
from qrpo_jax.job.job import Job
from tests.helpers.jobs import job

SMALL: dict[str, Any] = {
    "prompts__count": 23,
    "prompts__held_out": 0,
    "sft__examples": 101,
    "sft__batch_size": 31,
    "sample__completions": 3,
    "sample__max_new_tokens": 9,
    "reward__name": "tests.helpers.text_rewards:digits",
    "train__batch_size": 17,
    "log__tensorboard": False,
    "mesh__cpu_devices": 1,
}
ROWS = ("sft", "sample", "score", "report")
TRAINED = ("sft", "sample", "score", "reference", "train", "report")


def page_of(run: Job) -> str:
    return (run.folder("report") / "report.html").read_text()


@pytest.fixture(scope="module")
def rows_alone(tmp_path_factory: pytest.TempPathFactory) -> Job:
    run = job(tmp_path_factory.mktemp("run") / "run", stages=ROWS, **SMALL)
    assert pipeline.run(run)
    return run


def test_rows_have_a_page_with_what_became_of_them_and_their_rewards(rows_alone: Job) -> None:
    page = page_of(rows_alone)
    assert "No stage of this run evaluates a policy" in page and 'id="results"' not in page
    tables = sorted(path.stem for path in (rows_alone.folder("report") / "tables").glob("*.json"))
    assert "headline" not in tables and "rows" in tables, tables
    assert "69" in page, "completions of 23 prompts"
    assert page.count("<h2") >= 3


def test_a_training_that_nothing_evaluates_has_its_curves(rows_alone: Job, tmp_path: Path) -> None:
    run = job(tmp_path / "run", stages=TRAINED, **SMALL)
    assert pipeline.run(run, fork_from=rows_alone.workdir)
    page = page_of(run)
    assert "<title>QRPO run" in page and 'id="training"' in page and "Training loss" in page
