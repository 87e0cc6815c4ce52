"""`launch/xpk.sh` against a stand-in of xpk."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import stand_in

WHERE = ("--name=run", "--cluster=c", "--project=p", "--zone=z")
RUN = ("run", *WHERE, "--type=v5p-128", "--image=registry/qrpo:1", "--config=tulu3_8b", "--workdir=gs://b/a run")


def play(tmp_path: Path, scenario: dict[str, list[Any]], *flags: str) -> Any:
    stand_in.install(tmp_path, "xpk")
    (tmp_path / "xpk.json").write_text(json.dumps(scenario))
    return stand_in.launch(tmp_path, "xpk.sh", *flags)


def test_a_workload_is_created_with_restarts_after_75(tmp_path: Path) -> None:
    scenario = {"workload list": [[0, "Jobset Name  Created Time\n"]], "workload create": [[0, ""]]}
    done = play(tmp_path, scenario, *RUN, "--node-count=2", "--reservation=r", "--cache=gs://b/c")
    assert done.returncode == 0, done.stderr
    *_, create = stand_in.calls(tmp_path)
    assert create[:3] == ["xpk", "workload", "create"]
    assert set(create[3:-1]) == {
        "--workload=run", "--cluster=c", "--project=p", "--zone=z", "--tpu-type=v5p-128", "--num-slices=2",
        "--docker-image=registry/qrpo:1", "--priority=medium", "--max-restarts=1000", "--restart-on-exit-codes=1,75",
        "--termination-grace-period-seconds=300", "--reservation=r",
        "--env=JAX_COMPILATION_CACHE_DIR=gs://b/c",
    }  # fmt: skip
    command = create[-1].removeprefix("--command=")
    assert shlex.split(command) == [
        "python", "-m", "qrpo_jax.main", "--distributed", "--config=tulu3_8b", "--workdir=gs://b/a run"
    ]  # fmt: skip


def test_a_dry_run_prints_these_calls_and_makes_none(tmp_path: Path) -> None:
    scenario = {"workload list": [[0, ""]], "workload create": [[0, ""]]}
    dry = play(tmp_path, scenario, *RUN, "--dry-run")
    assert dry.returncode == 0 and not stand_in.calls(tmp_path)
    assert play(tmp_path, scenario, *RUN).returncode == 0
    assert [shlex.split(line[2:]) for line in dry.stdout.splitlines()] == stand_in.calls(tmp_path)


@pytest.mark.parametrize("listed", [["run  2026-11-27", ""], ["", "run  2026-11-27"]])
def test_a_workload_that_is_there_is_left_as_it_is(tmp_path: Path, listed: list[str]) -> None:
    queued, running = listed
    scenario = {"status=QUEUED": [[0, queued]], "status=RUNNING": [[0, running]]}
    done = play(tmp_path, scenario, *RUN)
    assert done.returncode == 0 and "already" in done.stderr, done.stderr


def test_a_call_that_fails_ends_it(tmp_path: Path) -> None:
    done = play(tmp_path, {"workload list": [[1, "no credentials\n"]]}, *RUN)
    assert done.returncode == 1 and "cannot list the workloads of c" in done.stderr, done.stderr
    scenario = {"workload list": [[0, ""]], "workload create": [[3, "the cluster does not exist\n"]]}
    done = play(tmp_path, scenario, *RUN)
    assert done.returncode == 3 and "the cluster does not exist" in done.stderr, done.stderr


def test_delete(tmp_path: Path) -> None:
    assert play(tmp_path, {"workload delete": [[0, ""]]}, "delete", *WHERE).returncode == 0
    assert stand_in.calls(tmp_path)[0][1:3] == ["workload", "delete"]
