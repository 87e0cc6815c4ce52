"""`launch/tpu_pod.sh` against a small cloud whose hosts are folders of this machine: see `tests.helpers.stand_in`."""

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.helpers import stand_in

NAMED = ("--name=pod", "--project=a-project", "--zone=a-zone", "--poll=1", "--allow-dirty")
RUN = ("run", *NAMED, "--type=v5p-16", "--runtime=v2-alpha-tpuv5", "--config=tulu3_8b", "--workdir=gs://bucket/a run")

# uv's work, and what it installs: an interpreter that plays the program of the test.
PYTHON3 = """#!/bin/sh
for word; do case $word in --target=*) uv=${word#--target=}/bin ;; esac; done
mkdir -p "$uv"
cat > "$uv/uv" <<'END'
#!/bin/sh
echo "$*" >> "$HOME/installed"
[ "$1" != venv ] || { for venv; do :; done; mkdir -p "$venv/bin"; cp "$CLOUD/program" "$venv/bin/python"; }
END
chmod +x "$uv/uv"
"""


class Cloud:
    """The cloud of one test.

    Args:
      program: shell script that plays the program on a host; $HOST is its name and $try counts its starts from 1.
    """

    def __init__(self, folder: Path, program: str = "exit 0", hosts: int = 2) -> None:
        self.folder = folder
        stand_in.install(folder, "gcloud")
        counted = 'try=$(($(cat "$CLOUD/tries-$HOST" 2>/dev/null || echo 0) + 1)); echo $try > "$CLOUD/tries-$HOST"'
        self.write("program", f'#!/bin/bash\n{counted}\nprintf "%s\\n" "$@" > "$CLOUD/flags-$HOST"\n{program}\n')
        (folder / "program").chmod(0o755)
        # Launcher and hosts wait a twentieth of their time.
        sleep = '#!/bin/sh\nexec /bin/sleep "$(echo "$1" | awk \'{ print $1 / 20 }\')"\n'
        for name, text in (("python3", PYTHON3), ("curl", '#!/bin/sh\necho "$WORKER"\n'), ("sleep", sleep)):
            self.write(f"bin/{name}", text)
            (folder / "bin" / name).chmod(0o755)
        self.write("hosts", f"{hosts}\n")
        self.write("created", "PROVISIONING\nACTIVE\n")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def launch(self, *flags: str) -> subprocess.CompletedProcess[str]:
        return stand_in.launch(self.folder, "tpu_pod.sh", *flags)

    def calls(self, service: str) -> list[str]:
        """Verbs of the calls of a service, in their order; looks at states are left out."""
        words = [call[3:] for call in stand_in.calls(self.folder)]
        return [verb for called, verb, *_ in words if called == service and verb != "describe"]

    def starts(self) -> list[str]:
        commands = [word for call in stand_in.calls(self.folder) for word in call if word.startswith("--command=")]
        return [command for command in commands if "host.sh start" in command]


def test_a_run_ends_with_the_program_and_says_what_its_hosts_say(tmp_path: Path) -> None:
    cloud = Cloud(
        tmp_path, "echo step 7 $JAX_COMPILATION_CACHE_DIR; [[ $HOST == pod-0 ]] || echo 'Warning: host 1 is slow' >&2"
    )
    done = cloud.launch(
        *RUN, "--spot", "--cache=gs://bucket/c", "--config.train.beta=0.1", '--config.note=it\'s "a" $b'
    )
    assert done.returncode == 0, done.stderr
    assert "[pod/0] step 7 gs://bucket/c\n" in done.stdout and "[pod/1] Warning: host 1 is slow" in done.stdout, (
        done.stdout
    )
    assert "[pod/1] step 7" not in done.stdout, "only errors of the other hosts are shown"
    assert cloud.calls("queued-resources") == ["create"]
    given = (tmp_path / "flags-pod-1").read_text().split("\n")
    assert given[:3] == ["-m", "qrpo_jax.main", "--distributed"], given
    assert given[3:-1] == [
        "--config=tulu3_8b",
        "--workdir=gs://bucket/a run",
        "--config.train.beta=0.1",
        '--config.note=it\'s "a" $b',
    ]


def test_the_commit_and_its_lock_file_are_what_hosts_get(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, 'pwd > "$CLOUD/where"; ls > "$CLOUD/files"')
    assert cloud.launch(*RUN).returncode == 0
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=stand_in.ROOT, text=True).strip()
    assert (tmp_path / "where").read_text().strip().endswith(f"/qrpo/{commit}")
    assert {"setup.py", "qrpo_jax", "launch"} <= set((tmp_path / "files").read_text().split())
    for worker in "01":
        venv, pip = (tmp_path / "machines" / f"pod-{worker}" / "installed").read_text().splitlines()
        assert venv.startswith("venv --quiet --python=3.13 "), venv
        assert "--require-hashes" in pip and pip.endswith(f"{commit}/launch/locks/tpu.txt"), pip


def test_a_dry_run_prints_the_commands_of_a_run_and_runs_none(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, hosts=1)
    flags = [*RUN, "--reserved", "--network=n", "--subnetwork=s", "--service-account=a@b", "--internal-ips"]
    dry = cloud.launch(*flags, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert not stand_in.calls(tmp_path)
    cloud.write("created", "ACTIVE\n")
    assert cloud.launch(*flags).returncode == 0
    printed = [shlex.split(line[2:]) for line in dry.stdout.splitlines() if line.startswith("+ gcloud")]
    made = stand_in.calls(tmp_path)
    expected, found = (
        [re.sub(r"/\S*/tmp\.\w+", "SCRATCH", shlex.join(call)) for call in calls] for calls in (printed, made)
    )
    # The program is looked at until it has ended.
    assert expected == [line for line, _ in itertools.groupby(found)], "\n".join(found)
    creation = next(call for call in made if "create" in call)
    assert creation[5:] == [
        "pod",
        "--project=a-project",
        "--zone=a-zone",
        "--accelerator-type=v5p-16",
        "--runtime-version=v2-alpha-tpuv5",
        "--node-id=pod",
        "--reserved",
        "--internal-ips",
        "--network=n",
        "--subnetwork=s",
        "--service-account=a@b",
    ]


@pytest.mark.slow
def test_after_a_preemption_the_slice_is_requested_anew_and_the_program_goes_on(tmp_path: Path) -> None:
    preempt = """
if ((try == 1)); then
  echo SUSPENDED > "$CLOUD/queued"; echo pod PREEMPTED > "$CLOUD/nodes"
  /bin/sleep 20
fi
echo resumed
"""
    cloud = Cloud(tmp_path, preempt, hosts=1)
    done = cloud.launch(*RUN)
    assert done.returncode == 0, done.stderr
    assert cloud.calls("queued-resources") == ["create", "delete", "create"]
    assert "lost: queued resource SUSPENDED" in done.stderr and "[pod/0] resumed" in done.stdout
    assert len(cloud.starts()) == 2


@pytest.mark.slow
def test_a_failure_to_get_slices_back_may_pass(tmp_path: Path) -> None:
    """Over a weekend a request may fail once. What was right at the first start is tried again."""
    preempt = """
((try > 1)) || { printf 'ERROR: 503\nERROR: no quota\n' > "$CLOUD/refuse"; echo SUSPENDED > "$CLOUD/queued"
  echo pod PREEMPTED > "$CLOUD/nodes"; /bin/sleep 20; }
"""
    cloud = Cloud(tmp_path, preempt, hosts=1)
    done = cloud.launch(*RUN)
    assert done.returncode == 0, done.stderr
    assert cloud.calls("queued-resources") == ["create", "delete", "create", "create", "create"]
    assert done.stderr.count("gcloud refused the queued resource pod; trying again") == 2, done.stderr


@pytest.mark.slow
def test_a_slice_that_is_gone_from_an_active_request_is_requested_anew(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, '((try > 1)) || { echo pod PREEMPTED > "$CLOUD/nodes"; /bin/sleep 20; }', hosts=1)
    done = cloud.launch(*RUN)
    assert done.returncode == 0, done.stderr
    assert cloud.calls("queued-resources") == ["create", "delete", "create"]


def test_status_75_starts_the_program_again_on_the_same_slice(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, "((try > 2)) || exit 75", hosts=1)
    done = cloud.launch(*RUN)
    assert done.returncode == 0, done.stderr
    assert cloud.calls("queued-resources") == ["create"]
    assert len(cloud.starts()) == 3
    assert len((tmp_path / "machines" / "pod-0" / "installed").read_text().splitlines()) == 2, "installed once"


@pytest.mark.slow
def test_a_host_that_was_restarted_is_an_interruption(tmp_path: Path) -> None:
    # Host 1 loses the program and its watcher at once; host 0 ends with status 1, as it does when a peer dies.
    cloud = Cloud(tmp_path, "((try > 1)) || { [[ $HOST == pod-0 ]] || kill -9 $PPID $$; /bin/sleep 1; exit 1; }")
    done = cloud.launch(*RUN)
    assert done.returncode == 0, done.stderr
    assert len(cloud.starts()) == 2


@pytest.mark.parametrize("status", [1, 2])
def test_an_error_ends_the_run_with_its_status_and_the_host_that_had_it(tmp_path: Path, status: int) -> None:
    cloud = Cloud(tmp_path, f"[[ $HOST == pod-0 ]] || printf 'one\\ntwo: beta is -1\\n' >&2; exit {status}")
    done = cloud.launch(*RUN)
    assert done.returncode == status, done.stderr
    assert "[pod/1] one\n[pod/1] two: beta is -1" in done.stdout, done.stdout
    assert len(cloud.starts()) == 1
    assert cloud.calls("queued-resources") == ["create"], "the slice is not deleted"


@pytest.mark.slow
def test_a_host_that_never_comes_up_is_named(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    cloud.write("silent", "pod 1\n")
    done = cloud.launch(*RUN, "--patience=3")
    assert done.returncode == 1
    assert "no answer from pod worker 1 for 3 s: ERROR: connection refused" in done.stderr, done.stderr
    assert not cloud.starts()


@pytest.mark.slow
def test_a_host_that_comes_up_late_is_waited_for(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    cloud.write("silent", "pod 0\npod 1\n")
    cloud.write("created", "ACTIVE\n")
    # They come up during the second wait; the first one is for the slice.
    cloud.write("bin/sleep", f"#!/bin/sh\n[ ! -e {tmp_path}/once ] || rm -f {tmp_path}/silent\ntouch {tmp_path}/once\n")
    done = cloud.launch(*RUN)
    assert done.returncode == 0, done.stderr
    assert "installing: no answer from pod worker 0,pod worker 1; trying again" in done.stderr


@pytest.mark.slow
def test_what_cannot_be_had_ends_the_run(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    cloud.write("created", "WAITING_FOR_RESOURCES\n")
    done = cloud.launch(*RUN, "--wait=1")
    assert done.returncode == 1 and "after 1 s; run again to go on waiting" in done.stderr, done.stderr
    assert cloud.calls("queued-resources") == ["create"]
    cloud.write("created", "FAILED\n")
    cloud.write("queued", "FAILED\n")
    done = cloud.launch(*RUN)
    assert done.returncode == 1 and 'the request failed: {"state": {"state": "FAILED"}}' in done.stderr, done.stderr
    assert cloud.calls("queued-resources") == ["create", "delete", "create"], "an old failure is replaced once"
    cloud.write("refuse", "ERROR: quota exceeded\n")
    cloud.write("queued", "")
    done = cloud.launch(*RUN)
    assert done.returncode == 1 and "quota exceeded" in done.stderr, done.stderr


def test_an_installation_that_fails_ends_the_run(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    cloud.write("bin/python3", "#!/bin/sh\n[ $WORKER = 0 ] || { echo 'hashes differ' >&2; exit 1; }\n" + PYTHON3)
    done = cloud.launch(*RUN)
    assert done.returncode == 1 and "installing failed on pod 1: hashes differ" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_program_that_runs_is_followed_and_not_started_again(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, "until [[ -e $CLOUD/end ]]; do sleep 0.1; done; echo the end")
    first = subprocess.Popen(
        ["bash", "launch/tpu_pod.sh", *RUN],
        cwd=stand_in.ROOT,
        env=stand_in.environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert first.stderr is not None
    while "started commit" not in first.stderr.readline():
        pass
    first.kill()
    first.communicate()
    second = subprocess.Popen(
        ["bash", "launch/tpu_pod.sh", *RUN],
        cwd=stand_in.ROOT,
        env=stand_in.environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert second.stderr is not None
    while "runs already" not in second.stderr.readline():
        pass
    cloud.write("end", "")
    output, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert "[pod/0] the end" in output
    assert len(cloud.starts()) == 1


@pytest.mark.slow
def test_stop_saves_and_ends_it_for_good(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, "trap 'echo saved; exit 75' TERM; while :; do sleep 0.1; done")
    run = subprocess.Popen(
        ["bash", "launch/tpu_pod.sh", *RUN],
        cwd=stand_in.ROOT,
        env=stand_in.environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stderr is not None
    while "started commit" not in run.stderr.readline():
        pass
    assert cloud.launch("stop", *NAMED).returncode == 0
    output, errors = run.communicate(timeout=60)
    assert run.returncode == 75 and "stopped on request" in errors, errors
    assert "[pod/0] saved" in output
    assert len(cloud.starts()) == 1


@pytest.mark.slow
def test_several_slices_are_one_request(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, "echo here")
    done = cloud.launch(*RUN, "--node-count=2", "--delete-when-done")
    assert done.returncode == 0, done.stderr
    creation = next(call for call in stand_in.calls(tmp_path) if "create" in call)
    assert {"--node-count=2", "--node-prefix=pod"} <= set(creation) and "--node-id=pod" not in creation
    assert {f"[pod-{i}/0] here" for i in range(2)} <= set(done.stdout.splitlines()), done.stdout
    assert "on 4 hosts" in done.stderr
    assert cloud.calls("queued-resources") == ["create", "delete"]


def test_delete_gives_back_what_is_there(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    assert "there is no queued resource pod" in cloud.launch("delete", *NAMED).stderr
    cloud.write("queued", "ACTIVE\n")
    assert cloud.launch("delete", *NAMED).returncode == 0
    assert cloud.calls("queued-resources") == ["delete"]


@pytest.mark.parametrize("missing", ["name", "project", "zone", "type", "runtime", "config", "workdir"])
def test_a_missing_flag_is_one_line_and_status_2(tmp_path: Path, missing: str) -> None:
    cloud = Cloud(tmp_path)
    done = cloud.launch(*(flag for flag in RUN if not flag.startswith(f"--{missing}=")))
    assert done.returncode == 2 and f"--{missing}=" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not stand_in.calls(tmp_path)


def test_flags_are_read_from_the_environment_too(tmp_path: Path) -> None:
    Cloud(tmp_path)
    flags = [flag for flag in RUN if not flag.startswith(("--project", "--zone", "--allow"))]
    done = stand_in.launch(
        tmp_path, "tpu_pod.sh", *flags, "--dry-run", QRPO_PROJECT="p", QRPO_ZONE="z", QRPO_ALLOW_DIRTY="yes"
    )
    assert done.returncode == 0 and "--project=p --zone=z" in done.stdout, done.stderr
