"""`launch/gke.sh` and its manifests; kubectl is a stand-in that plays a scenario.

The published models of JobSet and of Kubernetes' Job check the manifests; the package kubeflow-trainer-api has them.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import stand_in

models = pytest.importorskip("kubeflow_trainer_api.models", reason="needs the test extra")

COMMON = ("--name=run", "--image=registry/qrpo:1", "--accelerator=tpu-v5p-slice", "--poll=1")
PROGRAM = ("--config=tulu3_8b", "--workdir=gs://bucket/run")
RUN = ("run", *COMMON, "--topology=4x4x4", *PROGRAM)
STATE = "get jobset run --output=jsonpath"
PODS = "get pods"
LOGS = " logs "
FOUND_NONE = [1, 'Error from server (NotFound): jobsets.jobset.x-k8s.io "run" not found\n']


def manifest(tmp_path: Path, *flags: str) -> dict[str, Any]:
    done = stand_in.launch(tmp_path, "gke.sh", *flags, "--dry-run")
    assert done.returncode == 0, done.stderr
    return yaml.safe_load("\n".join(line for line in done.stdout.splitlines() if not line.startswith("+ ")))


def check(model: Any, found: dict[str, Any]) -> None:
    """Every field has the name and the type of the published model, which drops what it does not know."""
    assert model.from_dict(found).to_dict() == found


def play(tmp_path: Path, scenario: dict[str, list[Any]], *flags: str) -> Any:
    stand_in.install(tmp_path, "kubectl")
    (tmp_path / "kubectl.json").write_text(json.dumps(scenario))
    (tmp_path / "bin" / "sleep").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "sleep").chmod(0o755)
    return stand_in.launch(tmp_path, "gke.sh", *flags)


def verbs(tmp_path: Path) -> list[str]:
    return [call[2] for call in stand_in.calls(tmp_path) if "pods" not in call]


def test_the_jobset_is_one_and_every_host_of_the_slices_is_a_pod_of_it(tmp_path: Path) -> None:
    found = manifest(
        tmp_path, *RUN, "--node-count=2", "--spot", "--queue=lines", "--service-account=writer", "--cache=gs://b/c"
    )
    check(models.JobsetV1alpha2JobSet, found)
    (job,) = found["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (2, 16, 16), "64 chips, 4 of them a host"
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["args"] == ["--distributed", *PROGRAM]
    assert container["env"] == [{"name": "JAX_COMPILATION_CACHE_DIR", "value": "gs://b/c"}]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert found["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "lines"}
    assert pod["serviceAccountName"] == "writer"


def test_a_folder_of_the_node_is_at_the_same_place_in_its_pod(tmp_path: Path) -> None:
    found = manifest(tmp_path, *RUN, "--host-path=/mnt/local ssd")
    check(models.JobsetV1alpha2JobSet, found)
    pod = found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (volume,), (mount,) = pod["volumes"], pod["containers"][0]["volumeMounts"]
    assert volume["name"] == mount["name"]
    assert volume["hostPath"] == {"path": "/mnt/local ssd", "type": "DirectoryOrCreate"}
    assert mount["mountPath"] == "/mnt/local ssd"


def test_optional_lines_go_where_their_flags_are_missing(tmp_path: Path) -> None:
    found = manifest(tmp_path, *RUN, "--reservation=mine")
    check(models.JobsetV1alpha2JobSet, found)
    (job,) = found["spec"]["replicatedJobs"]
    selector = job["template"]["spec"]["template"]["spec"]["nodeSelector"]
    assert selector["cloud.google.com/reservation-name"] == "mine" and len(selector) == 3
    assert "labels" not in found["metadata"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert "volumes" not in pod and "volumeMounts" not in pod["containers"][0]


def test_statuses_restart_or_fail_the_jobset(tmp_path: Path) -> None:
    """Kubernetes' message names the status, and the rules of the JobSet look for it."""
    found = manifest(tmp_path, *RUN)
    rules = found["spec"]["failurePolicy"]["rules"]
    (job,) = found["spec"]["replicatedJobs"]
    pod_rules = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert [rule["onExitCodes"]["values"] for rule in pod_rules if "onExitCodes" in rule] == [[2], [75]]
    assert all(rule["action"] == "FailJob" for rule in pod_rules)
    assert pod_rules[-1]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]

    def action(reason: str, message: str) -> str:
        for rule in rules:
            reasons, patterns = (rule.get(f"onJobFailure{key}") for key in ("Reasons", "MessagePatterns"))
            if (not reasons or reason in reasons) and (not patterns or any(p in message for p in patterns)):
                return rule["action"]
        return "RestartJobSet"

    message = "Container qrpo for pod default/run-slice-0-2-x failed with exit code {} matching FailJob rule at index 0"
    assert action("PodFailurePolicy", message.format(2)) == "FailJobSet"
    assert action("PodFailurePolicy", message.format(75)) == "RestartJobSetAndIgnoreMaxRestarts"
    assert action(
        "PodFailurePolicy", "Pod default/run-slice-0-2-x has condition DisruptionTarget matching FailJob rule"
    )
    assert action("BackoffLimitExceeded", "Job has reached the specified backoff limit") == "RestartJobSet"


def test_shards_are_an_indexed_job(tmp_path: Path) -> None:
    flags = ("run", *COMMON, "--topology=2x4", "--chips=8", "--shards=7", "--parallelism=3", *PROGRAM)
    found = manifest(tmp_path, *flags, "--queue=lines")
    check(models.IoK8sApiBatchV1Job, found)
    spec = found["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 7, 3)
    (container,) = spec["template"]["spec"]["containers"]
    assert container["args"] == [*PROGRAM, "--shard=$(JOB_COMPLETION_INDEX)/7"]
    actions = {
        rule["action"]: rule.get("onExitCodes", {}).get("values") for rule in spec["podFailurePolicy"]["rules"][:2]
    }
    assert actions == {"FailJob": [2], "Ignore": [75]}


def test_arguments_reach_the_program_as_they_are(tmp_path: Path) -> None:
    strange = ['--config.note=a "b" \\ c', "--config.tag=$(HOME) ${NAME} é: #1"]
    found = manifest(tmp_path, *RUN, *strange)
    (job,) = found["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    # Kubernetes turns $$(HOME) into $(HOME), and $(HOME) alone into the value of a variable.
    assert [word.replace("$$(", "$(") for word in container["args"][3:]] == strange


def test_a_run_is_applied_and_followed_to_its_end(tmp_path: Path) -> None:
    scenario = {
        STATE: [FOUND_NONE, [0, ""], [0, "Completed"]],
        "apply": [[0, ""]],
        PODS: [[0, ""]],
        LOGS: [[0, "[pod/run-slice-0-0] step 7\n"]],
    }
    done = play(tmp_path, scenario, *RUN)
    assert done.returncode == 0 and "step 7" in done.stdout, done.stderr
    assert verbs(tmp_path) == ["get", "apply", "get", "logs", "get"]
    logs = next(call for call in stand_in.calls(tmp_path) if "logs" in call)
    assert {"--selector=jobset.sigs.k8s.io/jobset-name=run", "--max-log-requests=16"} <= set(logs), logs


def test_pods_that_are_preempted_midway_are_followed_when_they_are_back(tmp_path: Path) -> None:
    scenario = {
        STATE: [FOUND_NONE, [0, ""], [0, ""], [0, ""], [0, "Completed"]],
        "apply": [[0, ""]],
        PODS: [[0, ""], [0, "pod/run-slice-0-1-abc\n"], [0, ""]],
        LOGS: [[1, "error: pod run-slice-0-1 is terminated\n"], [0, "resumed\n"]],
    }
    done = play(tmp_path, scenario, *RUN)
    assert done.returncode == 0 and "resumed" in done.stdout, done.stderr
    assert "waiting for pod/run-slice-0-1-abc" in done.stderr
    first, second = (call for call in stand_in.calls(tmp_path) if "logs" in call)
    assert not any("--since-time" in word for word in first) and any("--since-time" in word for word in second)


def test_pods_that_never_start_are_named(tmp_path: Path) -> None:
    scenario = {STATE: [FOUND_NONE, [0, ""]], "apply": [[0, ""]], PODS: [[0, "pod/run-slice-0-3-abc\n"]]}
    done = play(tmp_path, scenario, *RUN, "--wait=3")
    assert done.returncode == 1 and "did not start in 3 s: pod/run-slice-0-3-abc" in done.stderr, done.stderr


def test_a_failed_job_is_said_and_replaced_by_the_next_run(tmp_path: Path) -> None:
    scenario = {STATE: [[0, "Failed"]], "apply": [[0, ""]], "delete": [[0, ""]]}
    done = play(tmp_path, scenario, *RUN)
    assert done.returncode == 1 and "jobset run failed" in done.stderr, done.stderr
    assert verbs(tmp_path) == ["get", "delete", "apply", "get"]


@pytest.mark.parametrize("state, status", [("", 0), ("Completed", 0)])
def test_a_job_that_is_there_is_not_submitted_again(tmp_path: Path, state: str, status: int) -> None:
    scenario = {STATE: [[0, state], [0, "Completed"]]}
    done = play(tmp_path, scenario, *RUN)
    assert done.returncode == status and verbs(tmp_path) == ["get", "get"], done.stderr


def test_calls_that_fail_end_the_script(tmp_path: Path) -> None:
    done = play(tmp_path, {STATE: [[1, "Unable to connect to the server\n"]]}, *RUN)
    assert done.returncode == 1 and "cannot reach the cluster" in done.stderr and verbs(tmp_path) == ["get"]
    done = play(tmp_path, {STATE: [FOUND_NONE], "apply": [[1, "forbidden\n"]]}, *RUN)
    assert done.returncode == 1 and "forbidden" in done.stderr and verbs(tmp_path)[1:] == ["get", "apply"]


@pytest.mark.parametrize(
    "change, message",
    [
        (("--name=run", "--name=Run_1"), "--name=Run_1; allowed"),
        (("--topology=4x4x4", "--topology=4"), "--topology=4; allowed"),
        (("--topology=4x4x4", "--topology=3x3"), "no multiple of --chips=4"),
        (("--image=registry/qrpo:1", ""), "--image=... is missing"),
        (("--config=tulu3_8b", ""), "--config=NAME"),
        (("--poll=1", "--pol=1"), "unknown flag --pol"),
        (("--poll=1", "--host-path=local"), "--host-path=local; a path"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    flags = [change[1] if flag == change[0] else flag for flag in RUN]
    done = play(tmp_path, {}, *(flag for flag in flags if flag))
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not stand_in.calls(tmp_path)
