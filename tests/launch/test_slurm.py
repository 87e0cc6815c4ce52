"""`launch/slurm.sbatch` on a SLURM cluster of one node, which the tests start themselves (Debian: slurm-wlm, munge)."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qrpo_jax.data import row_files, rows
from tests.helpers import stand_in
from tests.helpers.jobs import ROOT, SMALL, environment

SCRIPT = "launch/slurm.sbatch"
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=30
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


class Cluster:
    """A running cluster; `folder` has its files and the logs of its jobs."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder = folder
        self.python = python
        # The interpreter of the jobs: Python, or what a test puts here.
        self.play(f'exec {sys.executable} "$@"')

    def play(self, program: str) -> None:
        self.python.write_text(f"#!/bin/bash\n{program}\n")
        self.python.chmod(0o755)

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=ROOT, env=self.environment(), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def environment(self) -> dict[str, str]:
        return environment(SLURM_CONF=str(self.folder / "slurm.conf"))

    def submit(self, *flags: str, options: tuple[str, ...] = ()) -> str:
        """Submits a job; returns its number."""
        output = f"--output={self.folder}/%x-%j.log"
        return self.run("sbatch", "--parsable", output, *options, SCRIPT, f"--python={self.python}", *flags)

    def wait(self, job: str, *states: str, seconds: float = 240) -> str:
        """Waits until all tasks of a job are in one of the states; a requeued one need not wait for its time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            shown = self.run("scontrol", "--oneliner", "show", "job", job)
            found = {word.partition("=")[2] for word in shown.split() if word.startswith("JobState=")}
            if found <= set(states):
                return shown
            if "Reason=BeginTime" in shown:
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now")
            time.sleep(0.5)
        raise AssertionError(f"job {job} is not {states}: {shown}\n{self.logs()}")

    def logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("*.log")))


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    sbin = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
    programs = {name: shutil.which(name, path=sbin) for name in ("munged", "slurmctld", "slurmd", "sbatch")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} of SLURM and munge are not installed")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [server.getsockname()[1] for server in held]
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, user=getpass.getuser(), ports=ports))
    for server in held:
        server.close()
    variables = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    munge = [f"--{name.replace('_', '-')}={folder}/munge.{name.split('_')[0]}" for name in ("socket", "key_file")]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "seed")] + [f"--log-file={folder}/munge.out"]
    daemons = []
    try:
        for command in (["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D"]):
            program = str(programs[command[0]])
            log = (folder / f"{command[0]}.out").open("w")
            daemons.append(subprocess.Popen([program, *command[1:]], env=variables, stdout=log, stderr=log))
            time.sleep(1)
        cluster = Cluster(folder, folder / "python")
        end = time.monotonic() + 30
        while cluster.run("sinfo", "--noheader", "--format=%T") != "idle":
            assert time.monotonic() < end, cluster.run("sinfo")
            time.sleep(0.5)
        yield cluster
        cluster.run("scancel", f"--user={getpass.getuser()}")
        time.sleep(2)
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(30)


@pytest.fixture
def cluster(started: Cluster, tmp_path: Path) -> Cluster:
    return Cluster(started.folder, tmp_path / "python")


# Plays a program that saves at SIGTERM, and ends at its second start.
SAVES = """
echo "start $SLURM_RESTART_COUNT $*" >> {record}
[[ -z $SLURM_RESTART_COUNT ]] || exit 0
trap 'echo saved >> {record}; exit 75' TERM
while :; do sleep 0.1; done
"""
FLAGS = ("--config=quickstart", "--workdir=runs/a b")


def wait_for(record: Path, text: str) -> None:
    end = time.monotonic() + 60
    while not record.exists() or text not in record.read_text():
        assert time.monotonic() < end, record.read_text() if record.exists() else "nothing"
        time.sleep(0.2)


@pytest.mark.slow
def test_the_end_of_its_time_saves_and_requeues(cluster: Cluster, tmp_path: Path) -> None:
    record = tmp_path / "record"
    cluster.play(SAVES.format(record=record))
    # 120 s before the limit of two minutes is now.
    job = cluster.submit(*FLAGS, options=("--time=2",))
    cluster.wait(job, "COMPLETED")
    first, saved, second = record.read_text().splitlines()
    assert first == "start  -m qrpo_jax.main --distributed --config=quickstart --workdir=runs/a b"
    assert saved == "saved" and second.startswith("start 1 ")


@pytest.mark.slow
def test_preemption_saves_and_requeues(cluster: Cluster, tmp_path: Path) -> None:
    record = tmp_path / "record"
    cluster.play(SAVES.format(record=record))
    job = cluster.submit(*FLAGS, options=("--partition=low", "--exclusive"))
    wait_for(record, "start")
    other = cluster.run(
        "sbatch", "--parsable", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"
    )
    cluster.wait(other, "COMPLETED")
    cluster.wait(job, "COMPLETED")
    assert [line.partition(" ")[0] for line in record.read_text().splitlines()] == ["start", "saved", "start"]


@pytest.mark.slow
def test_a_cancelled_job_saves_and_stays_away(cluster: Cluster, tmp_path: Path) -> None:
    record = tmp_path / "record"
    cluster.play(SAVES.format(record=record))
    job = cluster.submit(*FLAGS)
    wait_for(record, "start")
    cluster.run("scancel", job)
    cluster.wait(job, "CANCELLED")
    time.sleep(3)
    assert "JobState=CANCELLED" in cluster.run("scontrol", "--oneliner", "show", "job", job)
    assert record.read_text().splitlines()[-1] == "saved"


@pytest.mark.slow
@pytest.mark.parametrize("status", [1, 2])
def test_an_error_is_not_requeued(cluster: Cluster, status: int) -> None:
    cluster.play(f"exit {status}")
    shown = cluster.wait(cluster.submit(*FLAGS), "FAILED")
    assert f"ExitCode={status}:0" in shown and "Restarts=0" in shown


@pytest.mark.slow
def test_a_real_job_and_an_array_of_shards_for_each_stage_complete(cluster: Cluster, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    flags = [f"--workdir={workdir}", *SMALL]
    alone = cluster.submit(*flags, "--config.stages=sft")
    array = alone
    for _ in ("sample", "score"):
        options = ("--array=0-2", f"--dependency=afterok:{array}")
        array = cluster.submit("--shards=3", *flags, "--config.stages=sft,sample,score", options=options)
    cluster.wait(array, "COMPLETED")
    found = [rows.encode(row) for row in row_files.read(workdir / "score")]
    assert len(found) == 59


@pytest.mark.parametrize(
    "variables, flags, message",
    [
        ({"SLURM_ARRAY_TASK_ID": "3"}, ("--shards=3",), "task 3 of the array; allowed with --shards=3: 0 to 2"),
        ({"SLURM_ARRAY_TASK_ID": "0"}, (), "a job array needs --shards=N"),
        ({}, ("--shards=4",), "sbatch --array=0-3"),
    ],
)
def test_shards_and_arrays_belong_together(
    tmp_path: Path, variables: dict[str, str], flags: tuple[str, ...], message: str
) -> None:
    done = stand_in.launch(tmp_path, "slurm.sbatch", *FLAGS, *flags, **variables)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_dry_run_prints_the_step(tmp_path: Path) -> None:
    done = stand_in.launch(tmp_path, "slurm.sbatch", *FLAGS, "--dry-run")
    assert done.stdout.startswith("+ srun --kill-on-bad-exit=0 .venv/bin/python -m qrpo_jax.main --distributed "), done
    done = stand_in.launch(tmp_path, "slurm.sbatch", *FLAGS, "--shards=8", "--image=registry/qrpo:1", "--dry-run")
    assert "--container-image=registry/qrpo:1" in done.stdout and "--shard=TASK/8" in done.stdout, done


def test_a_process_has_all_gpus_of_its_node(tmp_path: Path) -> None:
    """JAX gives a process of SLURM one GPU unless this variable says otherwise."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text('#!/bin/sh\necho "$JAX_LOCAL_DEVICE_IDS"\n')
    (tmp_path / "bin" / "srun").chmod(0o755)
    done = stand_in.launch(tmp_path, "slurm.sbatch", *FLAGS, SLURM_GPUS_ON_NODE="8", SLURM_JOB_ID="1")
    assert done.stdout == "0,1,2,3,4,5,6,7\n", done
