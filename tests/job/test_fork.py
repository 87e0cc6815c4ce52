"""A fork takes over the stages whose settings agree, says so, and shares nothing that a run may change."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from ml_collections import FrozenConfigDict

from configs import default
from qrpo_jax import pipeline
from qrpo_jax.errors import UserError
from qrpo_jax.faults.records import read_record, write_record
from qrpo_jax.files import write_json
from qrpo_jax.job import fork, results_file
from qrpo_jax.job.job import Job, Shard
from qrpo_jax.job.manifest import complete, read_manifest
from qrpo_jax.job.stage import Stage
from qrpo_jax.stages import STAGES
from tests.helpers.faults import outcome

NAMES = ("first", "second", "third")


def toy(workdir: Path, ran: list[str], **overrides: Any) -> Job:
    """Three stages that depend on one section each, and write a file each."""

    def stage(name: str, section: str, keys: tuple[str, ...] = ()) -> Stage:
        def run(job: Job) -> dict[str, Any]:
            ran.append(name)
            folder = job.folder(name)
            (folder / "parameters").mkdir()
            (folder / "checkpoints").mkdir()
            for path in (folder / "rows", folder / "parameters" / "array", folder / "checkpoints" / "old"):
                path.write_text(f"{name} {job.config[section].to_dict()}")
            (job.workdir / f"{name}.json").write_text("{}")
            return {"done": name}

        return Stage(run, sections=(section,), machine_keys=keys, outside=(f"{name}.json",), needs_model=False)

    table = {
        "first": stage("first", "sample"),
        "second": stage("second", "train", STAGES["train"].machine_keys),
        "third": stage("third", "report"),
    }
    config = default.get_config()
    config.stages = NAMES
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return Job(FrozenConfigDict(config), workdir, Shard(0, 1), STAGES | table)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    assert pipeline.run(toy(tmp_path / "other", []))
    return tmp_path / "other"


def test_a_fork_runs_the_first_stage_that_differs_and_those_after_it(tmp_path, other, capsys) -> None:
    before, ran = outcome(other), list[str]()
    forked = toy(tmp_path / "new", ran, train__beta=0.7)
    capsys.readouterr()
    assert pipeline.run(forked, other)
    assert ran == ["second", "third"], ran
    lines = capsys.readouterr().err
    assert f"first: taken over from {other / 'first'}" in lines and "train.beta: 0.1 -> 0.7" in lines, lines
    assert outcome(other) == before
    assert not (tmp_path / "new" / "first" / "checkpoints").exists()
    assert (tmp_path / "new" / "first.json").exists()
    assert pipeline.run(forked, other) and ran == ["second", "third"], "the same command resumes"


def test_a_fork_has_the_bytes_of_the_other_run_and_changes_of_its_files_stay_its_own(tmp_path, other) -> None:
    ran: list[str] = []
    assert pipeline.run(toy(tmp_path / "new", ran), other) and ran == []
    kept = {name: value for name, value in outcome(other).items() if "checkpoints" not in name}
    new = outcome(tmp_path / "new")
    assert {name: value for name, value in new.items() if name != fork.RECORD} == kept
    (tmp_path / "new" / "first" / "rows").write_text("changed")
    assert (other / "first" / "rows").read_bytes() == kept["first/rows"]


def test_keys_that_log_or_pace_are_no_settings(tmp_path, other) -> None:
    ran: list[str] = []
    paced = toy(tmp_path / "new", ran, train__log_every=3, train__checkpoint_every=7, log__tensorboard=False)
    assert pipeline.run(paced, other) and ran == []


def test_a_kill_while_stages_are_copied_leaves_whole_ones_and_the_next_start_copies_the_rest(
    tmp_path, other, monkeypatch
) -> None:
    real, ran = fork.copy, list[str]()

    def copy(source: Path, target: Path, outside: tuple[str, ...]) -> None:
        if source.name == "second":
            raise KeyboardInterrupt
        real(source, target, outside)

    monkeypatch.setattr(fork, "copy", copy)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(toy(tmp_path / "new", ran), other)
    monkeypatch.undo()
    assert read_manifest(tmp_path / "new" / "first") is not None and not (tmp_path / "new" / "second").exists()
    assert pipeline.run(toy(tmp_path / "new", ran), other) and ran == []


def test_what_cannot_be_forked_is_refused_and_nothing_is_written(tmp_path, other) -> None:
    (tmp_path / "empty").mkdir()
    for source, overrides, message in (
        (tmp_path / "none", {}, "is no work directory of a run"),
        (tmp_path / "empty", {}, "is no work directory of a run"),
        (other, {"sample__top_k": 3}, r"nothing can be taken over: stage 'first' has other settings \(sample.top_k: 0"),
    ):
        with pytest.raises(UserError, match=message):
            pipeline.run(toy(tmp_path / "new", [], **overrides), source)
        assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="is also --workdir"):
        pipeline.run(toy(other, []), other)
    assert pipeline.run(toy(tmp_path / "mine", []))
    with pytest.raises(UserError, match="has stage 'first' already; --fork needs a new folder"):
        pipeline.run(toy(tmp_path / "mine", []), other)


def test_a_section_that_only_one_run_has_is_one_phrase(tmp_path: Path) -> None:
    """Another list of stages gives a stage other sections, each with dozens of keys."""
    ran: list[str] = []
    one, other = toy(tmp_path / "one", ran), toy(tmp_path / "other", ran)
    assert pipeline.run(one)
    path = one.folder("first") / "settings.json"
    settings = read_record(path)
    many = [key for key in settings if key.startswith("sample.")]
    assert len(many) > 3, settings
    write_record(path, {key: settings[key] for key in settings if key not in many})
    with pytest.raises(UserError) as error:
        pipeline.run(other, one.workdir)
    assert f"stage 'first' has other settings (sample: (absent) -> {len(many)} settings)" in str(error.value), error


def test_results_of_a_stage_that_is_not_taken_over_stay_behind(tmp_path: Path) -> None:
    """A run with benchmarks is forked by one without: its common results are those of `evaluate` alone."""
    other, mine = (toy(tmp_path / name, []) for name in ("other", "mine"))
    for stage, found in (("evaluate", {"policy": 1}), ("harness", {"gsm8k": 2})):
        results_file.write_part(other, stage, found)
        write_json(other.folder(stage) / "settings.json", {})
        files = {path: [0, ""] for path in (f"../{results_file.RESULTS}",)}
        complete(other.folder(stage), {"files": files})
        results_file.write_part(other, stage, found)
    assert json.loads((other.workdir / "results.json").read_text()) == {"policy": 1, "harnesses": {"gsm8k": 2}}
    fork.take_over(mine, fork.Agreement(other.workdir, ["evaluate"], ""), linked=True)
    content = (mine.workdir / "results.json").read_bytes()
    assert json.loads(content) == {"policy": 1}
    for job, written in ((mine, content), (other, (other.workdir / "results.json").read_bytes())):
        manifest = read_manifest(job.folder("evaluate"))
        assert manifest is not None
        assert manifest["files"]["../results.json"] == [len(written), hashlib.sha256(written).hexdigest()]
