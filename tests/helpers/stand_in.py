"""Stand-ins for gcloud, kubectl and xpk: small programs on PATH that record their calls and play a scenario.

`install` puts them into a folder. Each call is a line of JSON in `calls`. The scenario of kubectl and xpk is a list of
answers for each pattern of a call. gcloud plays a small cloud instead: a queued resource with its slices, whose hosts
are folders on which commands really run.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def install(folder: Path, *names: str) -> None:
    """Puts stand-ins called `names` into folder/bin."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    for name in names:
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nSTAND_IN={folder} exec {sys.executable} -I -S {__file__} {name} "$@"\n')
        script.chmod(0o755)


def calls(folder: Path) -> list[list[str]]:
    """All calls so far, in their order."""
    path = folder / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def launch(folder: Path, script: str, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a launcher with the stand-ins before everything else on PATH."""
    return subprocess.run(
        ["bash", str(ROOT / "launch" / script), *flags],
        env=environment(folder, **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )


def environment(folder: Path, **variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("QRPO_", "SLURM_"))}
    return inherited | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"} | variables


def play(folder: Path, name: str, words: list[str]) -> int:
    """Answers a call as folder/NAME.json says: {pattern: [answer, ...]}; the last answer of a pattern stays.

    An answer is [status, output], or [status, output, seconds before it ends].
    """
    line = " ".join(words)
    for i, (pattern, answers) in enumerate(json.loads((folder / f"{name}.json").read_text()).items()):
        if not re.search(pattern, line):
            continue
        counter = folder / f"{name}.{i}"
        seen = int(counter.read_text()) if counter.exists() else 0
        counter.write_text(str(seen + 1))
        status, output, *seconds = answers[min(seen, len(answers) - 1)]
        time.sleep(sum(seconds))
        (sys.stderr if status else sys.stdout).write(output)
        return status
    raise SystemExit(f"unexpected call: {name} {line}")


def gcloud(cloud: Path, words: list[str]) -> int:
    """The small cloud.

    Files in `cloud`: `queued` has the states of the queued resource, a line each, of which the first one holds and each
    look takes one, except the last; `created` the states after a creation; `nodes` "NODE STATE" lines; `hosts` the
    number of hosts of a slice; `silent` "NODE WORKER" lines of hosts that refuse connections; `refuse` the messages of
    creations that fail, a line each.
    """
    assert words[:2] == ["compute", "tpus"], words
    service, verb, name = words[2:5]
    flags = dict(word.lstrip("-").split("=", 1) for word in words[5:] if "=" in word)
    assert flags["project"] == "a-project" and flags["zone"] == "a-zone", words
    if service == "queued-resources":
        return queued(cloud, verb, name, flags, words)
    assert service == "tpu-vm", words
    states = dict(line.split() for line in read(cloud / "nodes"))
    if name.partition(":")[0] not in states and verb != "scp":
        return fail(f"NOT_FOUND: {name}")
    if verb == "describe" and "flatten" in flags:
        print("\n".join(f"10.0.0.{i}" for i in range(int(read(cloud / "hosts")[0]))))
        return 0
    if verb == "describe":
        print(states[name])
        return 0
    return on_hosts(cloud, verb, words, states, flags)


def queued(cloud: Path, verb: str, name: str, flags: dict[str, str], words: list[str]) -> int:
    states = read(cloud / "queued")
    if verb == "create":
        refusals = read(cloud / "refuse")
        if refusals:
            (cloud / "refuse").write_text("".join(f"{line}\n" for line in refusals[1:]))
            return fail(refusals[0])
        assert not states, f"{name} exists"
        count = int(flags.get("node-count", "1"))
        nodes = [flags["node-id"]] if count == 1 else [f"{flags['node-prefix']}-{i}" for i in range(count)]
        (cloud / "queued").write_text((cloud / "created").read_text())
        (cloud / "nodes").write_text("".join(f"{node} READY\n" for node in nodes))
        return 0
    if not states:
        return fail(f"ERROR: (gcloud.compute.tpus.queued-resources.{verb}) NOT_FOUND: {name}")
    if verb == "delete":
        assert "--force" in words and "--quiet" in words, words
        for file in ("queued", "nodes"):
            (cloud / file).write_text("")
        subprocess.run(["rm", "-rf", str(cloud / "machines")], check=True)  # a new slice has new disks
        return 0
    assert verb == "describe", words
    print(states[0] if "value" in flags["format"] else json.dumps({"state": {"state": states[0]}}))
    (cloud / "queued").write_text("\n".join(states[1:] or states) + "\n")
    return 0


def on_hosts(cloud: Path, verb: str, words: list[str], states: dict[str, str], flags: dict[str, str]) -> int:
    """ssh and scp to all hosts of a slice, at the same time."""
    assert flags["worker"] == "all", words
    target = words[4] if verb == "ssh" else words[5]
    node, _, path = target.partition(":")
    if states.get(node) != "READY":
        return fail(f"ERROR: {node} is not READY")
    started, silent = [], read(cloud / "silent")
    for worker in range(int(read(cloud / "hosts")[0])):
        home = cloud / "machines" / f"{node}-{worker}"
        home.mkdir(parents=True, exist_ok=True)
        if f"{node} {worker}" in silent:
            continue
        log = f"{flags.get('output-directory')}/{worker}.log"
        command = f'exec > "$LOG" 2>&1\n{flags["command"]}' if verb == "ssh" else f"cp {words[4]} {home / path}"
        variables = {"HOME": str(home), "HOST": f"{node}-{worker}", "WORKER": str(worker), "CLOUD": str(cloud)}
        started.append(subprocess.Popen(["sh", "-c", command], cwd=home, env=os.environ | variables | {"LOG": log}))
    statuses = [process.wait() for process in started]
    return fail("ERROR: connection refused", 255) if silent else max(statuses)


def read(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []


def fail(line: str, status: int = 1) -> int:
    print(line, file=sys.stderr)
    return status


if __name__ == "__main__":
    FOLDER, NAME = Path(os.environ["STAND_IN"]), sys.argv[1]
    with (FOLDER / "calls").open("a") as record:
        record.write(json.dumps([NAME, *sys.argv[2:]]) + "\n")
    sys.exit(gcloud(FOLDER, sys.argv[2:]) if NAME == "gcloud" else play(FOLDER, NAME, sys.argv[2:]))
