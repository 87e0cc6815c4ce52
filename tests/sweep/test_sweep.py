"""A sweep runs each shared stage once, ends the same after kills and in shards, and no point is lost to another."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qrpo_jax import command_line, main
from qrpo_jax.errors import PointsError, UserError
from qrpo_jax.files import write_text
from qrpo_jax.job import fork
from qrpo_jax.job.owner import read_record as owner_record
from qrpo_jax.stages import STAGES
from qrpo_jax.stores.path import as_path
from qrpo_jax.sweep import plan, status
from qrpo_jax.sweep import run as sweep
from tests.helpers.jobs import ROOT, environment
from tests.helpers.sweep_jobs import FAILING, GRID, outcome, ran, toy_sweep

POINTS = 8


def states(workdir: Path) -> list[str]:
    return [point["state"] for point in json.loads((workdir / "sweep.json").read_text())["points"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of an undisturbed sweep."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert sweep.run(toy_sweep(workdir))
    return workdir


def test_each_stage_runs_once_for_all_points_whose_settings_agree(whole):
    # 2 values of a key of the first stage, 2 of the second, 2 of the third.
    assert ran(whole.parent) == {"first": 2, "second": 4, "third": 8}
    for point in json.loads((whole / "sweep.json").read_text())["points"]:
        folder, settings = whole / point["folder"], point["settings"]
        for stage, key in zip(("first", "second", "third"), GRID, strict=True):
            assert f"'{key.partition('.')[2]}': {settings[key]}" in (folder / stage / "rows").read_text(), point
    assert states(whole) == ["complete"] * POINTS


def test_shared_stages_are_the_same_files(whole):
    points = json.loads((whole / "sweep.json").read_text())["points"]
    files: dict[str, set[int]] = {"first": set(), "second": set(), "third": set()}
    for point in points:
        for stage, found in files.items():
            found.add((whole / point["folder"] / stage / "rows").stat().st_ino)
    assert {stage: len(found) for stage, found in files.items()} == {"first": 2, "second": 4, "third": 8}


def test_a_second_start_runs_nothing_and_changes_nothing(whole):
    before = outcome(whole)
    assert sweep.run(toy_sweep(whole))
    assert ran(whole.parent) == {"first": 2, "second": 4, "third": 8} and outcome(whole) == before


@pytest.mark.slow
def test_a_sweep_that_grows_runs_its_new_points_alone(tmp_path):
    assert sweep.run(toy_sweep(tmp_path / "run", {"sample.top_k": [3], "train.beta": [0.1, 0.3]}))
    assert ran(tmp_path) == {"first": 1, "second": 2, "third": 2}
    assert sweep.run(toy_sweep(tmp_path / "run", {"sample.top_k": [3, 5], "train.beta": [0.1, 0.3, 0.7]}))
    # 1 new point of the earlier first stage, and 3 that share a new one.
    assert ran(tmp_path) == {"first": 2, "second": 6, "third": 6}


def test_keys_on_which_no_stage_depends_share_everything(tmp_path):
    assert sweep.run(toy_sweep(tmp_path / "run", {"log.profile": ["", "3:2"]}))
    assert ran(tmp_path) == {"first": 1, "second": 1, "third": 1} and states(tmp_path / "run") == ["complete"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 3])
def test_shards_one_after_the_other_make_what_one_process_makes(tmp_path, whole, parts):
    for index in range(parts):
        done = sweep.run(toy_sweep(tmp_path / "run", shard=(index, parts)))
        assert done == (index == parts - 1), (index, states(tmp_path / "run"))
    assert outcome(tmp_path / "run") == outcome(whole)
    assert ran(tmp_path) == {"first": 2, "second": 4, "third": 8}


def start(workdir: Path, shard: str = "0/1") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.helpers.sweep_jobs", str(workdir), shard]
    log = (workdir.parent / "log").open("ab")
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)


def wait_for_work(process: subprocess.Popen[bytes], workdir: Path) -> None:
    """Until the process, which first imports for seconds, holds the work directory or has ended."""
    owner = workdir / "owner-0-of-1.json"
    while process.poll() is None:
        record = owner_record(owner)
        if record is not None and record.pid == process.pid:
            return
        time.sleep(0.005)


def test_shards_at_the_same_time_run_shared_stages_once(tmp_path, whole):
    processes = [start(tmp_path / "run", f"{index}/3") for index in range(3)]
    codes = [process.wait(timeout=120) for process in processes]
    assert codes == [0, 0, 0], (tmp_path / "log").read_text()[-3000:]
    assert ran(tmp_path) == {"first": 2, "second": 4, "third": 8}
    assert outcome(tmp_path / "run") == outcome(whole)


@pytest.mark.slow
def test_killed_at_random_moments_a_sweep_ends_like_an_undisturbed_one(tmp_path, whole):
    rng, kills, wanted = random.Random(5), 0, outcome(whole)
    hit = []
    for attempt in range(9):
        process = start(tmp_path / "run")
        wait_for_work(process, tmp_path / "run")
        began = time.monotonic()
        if attempt < 8:  # the last start is left alone, or a busy machine would never come to the end
            try:
                process.wait(timeout=rng.uniform(0.0, 0.7))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
        if process.wait() == 0:
            break
        hit.append(round(time.monotonic() - began, 2))
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert kills >= 3, hit
    found = outcome(tmp_path / "run")
    assert found == wanted, {name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)}


def test_a_failing_point_loses_no_other_and_is_tried_again_after_them(tmp_path, capsys):
    grid = {"train.beta": [0.1, 0.3], "report.examples": [FAILING, 2]}
    with pytest.raises(
        PointsError, match=r"2 of 4 points failed: beta=0.1,report.examples=666, beta=0.3,report.examples=666;"
    ):
        sweep.run(toy_sweep(tmp_path / "run", grid))
    assert states(tmp_path / "run") == ["failed", "complete"] * 2
    said = capsys.readouterr().err
    assert "FAILED beta=0.1,report.examples=666: the server does not answer" in said and "Traceback" not in said, said
    assert "sweep: 4 points: 2 complete, 2 failed" in said, said
    # An open point comes before those that failed, and one that succeeds is no longer counted.
    grid["report.examples"].append(4)
    with pytest.raises(PointsError):
        sweep.run(toy_sweep(tmp_path / "run", grid))
    said = capsys.readouterr().err
    assert said.index("beta=0.3,report.examples=4:") < said.index("FAILED beta=0.1,report.examples=666"), said
    mended = toy_sweep(tmp_path / "run", grid)
    stages = dict(mended.stages)
    stages["third"] = stages["third"]._replace(run=lambda job: {"done": "third"})
    assert sweep.run(mended._replace(stages=stages))
    assert states(tmp_path / "run") == ["complete"] * 6 and not list((tmp_path / "run" / "failures").iterdir())


def test_a_bug_in_a_point_keeps_its_traceback_and_loses_no_other(tmp_path, capsys):
    broken = toy_sweep(tmp_path / "run", {"train.beta": [0.1, 0.3]})
    stages, real = dict(broken.stages), broken.stages["second"].run

    def run(job):
        return real(job) if job.config.train.beta > 0.2 else 1 // 0

    stages["second"] = stages["second"]._replace(run=run)
    with pytest.raises(PointsError, match="1 of 2 points failed: beta=0.1"):
        sweep.run(broken._replace(stages=stages))
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said and "Traceback" in said
    assert states(tmp_path / "run") == ["failed", "complete"]


def test_a_shared_stage_that_fails_runs_once_and_fails_its_points_alone(tmp_path):
    broken = toy_sweep(tmp_path / "run", {"sample.top_k": [3, 5], "train.beta": [0.1, 0.3]})
    stages, real, calls = dict(broken.stages), broken.stages["first"].run, []

    def run(job):
        calls.append(job.config.sample.top_k)
        return real(job) if job.config.sample.top_k == 5 else 1 // 0

    stages["first"] = stages["first"]._replace(run=run)
    with pytest.raises(PointsError, match="2 of 4 points failed"):
        sweep.run(broken._replace(stages=stages))
    assert calls == [3, 5] and states(tmp_path / "run") == ["failed", "failed", "complete", "complete"]


def test_all_points_are_checked_before_anything_is_written(tmp_path):
    refused = toy_sweep(tmp_path / "run", {"train.beta": [0.1, 0.3]})
    stages = dict(refused.stages)

    def check(job):
        if job.config.train.beta > 0.2:
            raise UserError("beta is too much for this")

    stages["second"] = stages["second"]._replace(check=check)
    with pytest.raises(UserError, match="point beta=0.3: beta is too much for this"):
        sweep.run(refused._replace(stages=stages))
    assert not (tmp_path / "run").exists() and not ran(tmp_path)


def test_other_settings_in_the_same_folder_are_refused_before_anything_runs(tmp_path, whole):
    before = outcome(whole)
    with pytest.raises(UserError, match=r"point .*was made with other settings \(train.epochs: 1 -> 2\)"):
        sweep.run(toy_sweep(whole, train__epochs=2))
    assert outcome(whole) == before


def test_the_same_command_twice_is_refused_while_it_runs(tmp_path):
    process = start(tmp_path / "run")
    wait_for_work(process, tmp_path / "run")
    with pytest.raises(UserError, match="is in use by"):
        sweep.run(toy_sweep(tmp_path / "run"))
    assert process.wait(timeout=60) == 0


@pytest.mark.slow
def test_a_sweep_is_forked_from_another_run_as_far_as_points_agree(tmp_path, whole):
    plain = whole / "points" / "sample.top_k=3,beta=0.1,report.examples=2"
    assert plain.is_dir()
    forked = toy_sweep(tmp_path / "run")._replace(fork=plain)
    assert sweep.run(forked)
    # Its first stage served the points with top_k 3, those with 5 began anew.
    assert ran(tmp_path) == {"first": 1, "second": 4, "third": 8}
    same = {name: value for name, value in outcome(whole).items() if name.startswith("points/")}
    assert {name: value for name, value in outcome(tmp_path / "run").items() if name.startswith("points/")} == same


@pytest.mark.slow
def test_a_kill_while_shared_stages_are_linked_is_made_good(tmp_path, whole, monkeypatch):
    real = fork.link

    def link(source: Path, target: Path, outside: tuple[str, ...]) -> None:
        if "points" in target.parts and source.name == "second":
            raise KeyboardInterrupt
        real(source, target, outside)

    monkeypatch.setattr(fork, "link", link)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(toy_sweep(tmp_path / "run"))
    monkeypatch.undo()
    assert sweep.run(toy_sweep(tmp_path / "run"))
    assert outcome(tmp_path / "run") == outcome(whole)
    assert ran(tmp_path) == {"first": 2, "second": 4, "third": 8}


def test_writing_a_shared_file_anew_leaves_the_others(whole, tmp_path):
    assert sweep.run(toy_sweep(tmp_path / "run", {"train.beta": [0.1, 0.3]}))
    one, other = (tmp_path / "run" / "points" / f"beta={beta}" / "first" / "rows" for beta in (0.1, 0.3))
    before = other.read_text()
    write_text(one, "made again")
    assert other.read_text() == before != one.read_text()


def test_status_says_which_points_are_complete_failed_and_open(tmp_path, capsys):
    grid = {"train.beta": [0.1, 0.3], "report.examples": [FAILING, 2]}
    assert not sweep.run(toy_sweep(tmp_path / "run", grid, shard=(1, 4)))
    report = status.read_status(tmp_path / "run")
    assert [point["state"] for point in report["points"]] == ["waiting", "done", "waiting", "waiting"], report
    assert report["state"] == "incomplete" and "1 of 4 points are complete" in status.lines(report)[0]
    with pytest.raises(PointsError):
        sweep.run(toy_sweep(tmp_path / "run", grid))
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        command_line.read(["qrpo-jax", "--status", f"--workdir={tmp_path / 'run'}"])
    said = capsys.readouterr().out
    assert left.value.code == 0 and "2 of 4 points are complete" in said, said
    assert "failed      beta=0.1,report.examples=666: the server does not answer" in said, said
    assert "done        beta=0.3,report.examples=2" in said, said


def test_the_command_says_what_failed_and_ends_with_1(tmp_path, monkeypatch, capsys):
    words = ["qrpo-jax", "--config=optimum", "--config.stages=compare_transforms", f"--workdir={tmp_path / 'run'}"]
    words += ['--config.sweep={"compare_transforms.betas": [[0.1], [0.3]]}']
    broken = STAGES["compare_transforms"]._replace(run=lambda job: 1 // 0)
    monkeypatch.setitem(STAGES, "compare_transforms", broken)
    with pytest.raises(SystemExit) as left:
        main.run(words)
    said = capsys.readouterr().err
    assert left.value.code == main.RUN_ERROR and "error: 2 of 2 points failed: betas=0.1, betas=0.3;" in said, said
    with pytest.raises(SystemExit) as left:
        main.run([*words[:-1], '--config.sweep={"compare_transforms.betas": []}'])
    assert left.value.code == main.USER_ERROR
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_run_from_which_no_point_can_begin_is_refused_before_anything_runs(tmp_path, whole):
    for other, message in ((tmp_path / "none", "stage 'first' is not complete"), (whole, "is not complete")):
        with pytest.raises(UserError, match=f"nothing can be taken over by any point.*{message}"):
            sweep.run(toy_sweep(tmp_path / "run")._replace(fork=other))
    plain = whole / "points" / "sample.top_k=3,beta=0.1,report.examples=2"
    with pytest.raises(UserError, match=r"other settings \(sample.top_k: 3 -> 7\)"):
        sweep.run(toy_sweep(tmp_path / "run", {"sample.top_k": [7, 8]})._replace(fork=plain))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_sweep_in_an_object_store_is_the_same(bucket, tmp_path, whole):
    workdir = as_path(f"{bucket}/run")
    for shard in ((1, 2), (0, 2)):
        sweep.run(toy_sweep(workdir, shard=shard, log=tmp_path / "ran")._replace(begun=plan.begun(workdir, None)))
    assert ran(tmp_path) == {"first": 2, "second": 4, "third": 8}
    wanted = json.loads((whole / "sweep.json").read_text())
    assert json.loads((workdir / "sweep.json").read_bytes()) == wanted
    for point in wanted["points"]:
        for stage in ("first", "second", "third"):
            name = f"{point['folder']}/{stage}/rows"
            assert (workdir / name).read_bytes() == (whole / name).read_bytes()
