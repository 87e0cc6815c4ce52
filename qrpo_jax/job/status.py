"""What `--status` says of a work directory, from its files alone, from anywhere and while the run goes on."""

import json
import os
import re
import shlex
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qrpo_jax.errors import UserError
from qrpo_jax.job.journal import Entry, read_journal
from qrpo_jax.job.manifest import MANIFEST, SETTINGS

SILENCE = 60.0  # seconds after which a journal that says "running" is no longer believed
UNIT = re.compile(r"rows-train\.array_record-(\d+)-of-(\d+)")
TAIL = 1 << 16  # bytes of a metrics file, with at least its last line
TRAINING = "sft", "train"
PARTS = {"": "units", "rollouts": "iterations drawn"}  # what a stage's rows are in, by folder; of others units


def read_status(workdir: Path) -> dict[str, Any]:
    """The status of a run, as `--json` prints it.

    Returns:
      workdir; state ("done", "running", "incomplete", "stopped", "failed" or "died"); message; `runs`, an entry for
      each shard with its process and times; `stages`, by name, with state and how far they are; `missing`, shards that
      must still run, each with the stage that waits for it and the command that makes it; `next`, the command that
      goes on, or None while a process runs or if all is done.

    Raises:
      UserError: there is no run in this folder.
    """
    entries = [entry for path in sorted(workdir.glob("journal-*-of-*.json")) if (entry := read_journal(path))]
    if not entries:
        raise UserError(f"--workdir={workdir} has no journal of a run")
    newest = max(entries, key=lambda entry: entry.started)
    runs = [run_status(entry) for entry in entries]
    alive = [run for run in runs if run["state"] == "running"]
    stages = {name: stage_status(workdir, name, runs) for name in newest.stages}
    done = all(stage["state"] == "done" for stage in stages.values())
    state = "done" if done else "running" if alive else run_status(newest)["state"]
    missing = missing_shards(newest, stages, runs)
    return {
        "workdir": str(workdir),
        "state": "incomplete" if state == "done" and not done else state,
        "message": newest.message if state in ("failed", "stopped") else "",
        "version": newest.version,
        "runs": runs,
        "stages": stages,
        "missing": missing,
        "next": None if done or alive or missing else shlex.join(newest.command),
    }


def run_status(entry: Entry) -> dict[str, Any]:
    """The status of one process, or of the processes of a distributed job."""
    now, state = time.time(), entry.state
    if state == "running" and (now - entry.updated > SILENCE or _is_gone(entry)):
        state = "died"
    span = (entry.updated if state != "running" else now) - entry.started
    return {
        "state": state,
        "shard": f"{entry.shard[0]}/{entry.shard[1]}",
        "host": entry.host,
        "pid": entry.pid,
        "processes": entry.processes,
        "starts": len(entry.earlier) + 1,
        "seconds": round(span, 1),
        "seen_seconds_ago": round(now - entry.updated, 1),
        "peers_seen_seconds_ago": entry.peers,
        "stage": entry.stage,
        "message": entry.message,
        "command": shlex.join(entry.command),
        "progress": progress(entry),
    }


def progress(entry: Entry) -> dict[str, Any]:
    """How far the stage at hand is, and seconds left at the speed of this start; empty before that is known."""
    if not entry.total:
        return {}
    at = max(entry.complete, entry.step or 0)
    known = {"at": at, "complete": entry.complete, "total": entry.total, "unit": entry.unit}
    seconds, made = entry.updated - entry.stage_started, at - entry.stage_first
    if made > 0 and seconds > 0:
        known["seconds_left"] = round((entry.total - at) * seconds / made, 1)
    return known


def stage_status(workdir: Path, name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The status of a stage: state "done", "running", "begun" or "waiting", and what is known of its progress."""
    folder = workdir / name
    here = [run for run in runs if run["stage"] == name and run["state"] == "running"]
    if (folder / MANIFEST).exists():
        state = "done"
    elif here:
        state = "running"
    else:
        state = "begun" if (folder / SETTINGS).exists() else "waiting"
    found: dict[str, Any] = {"state": state}
    if units := unit_counts(folder):
        found["units"] = units
    if name in TRAINING:
        saved = [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
        found |= {"last_checkpoint": max(saved, default=None)} | last_metrics(folder / "metrics.jsonl")
    for run in here:
        if run["progress"].get("unit") == "steps" or not units:
            found |= {key: value for key, value in run["progress"].items() if key != "complete"}
        elif "seconds_left" in run["progress"]:
            found["seconds_left"] = max(run["progress"]["seconds_left"], found.get("seconds_left", 0.0))
    return found


def unit_counts(folder: Path) -> dict[str, list[int]]:
    """Complete units and all units of each folder with rows: {"": [3, 8]}, or an entry for each side."""
    counts: dict[str, list[int]] = {}
    for path in [*folder.glob("rows-*"), *folder.glob("*/rows-*")]:
        if found := UNIT.fullmatch(path.name):
            side = "" if path.parent == folder else path.parent.name
            counts.setdefault(side, [0, int(found[2])])[0] += 1
    return counts


def last_metrics(path: Path) -> dict[str, float]:
    """Step and figures of the last whole line of a metrics file."""
    with suppress(OSError, ValueError):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = [line for line in file.read().split(b"\n")[:-1] if line.startswith(b"{")]
        wanted = ("step", "loss", "tokens_per_second")
        return {key: value for key, value in json.loads(lines[-1]).items() if key in wanted} if lines else {}
    return {}


def missing_shards(
    newest: Entry, stages: dict[str, dict[str, Any]], runs: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Shards that do not run although the first stage that is not done waits for units of theirs."""
    parts = newest.shard[1]
    name = next((name for name, stage in stages.items() if stage["state"] != "done"), None)
    if parts == 1 or name is None:
        return []
    busy = {run["shard"] for run in runs if run["state"] == "running"}
    commands = {run["shard"]: run["command"] for run in runs}
    return [
        {"shard": shard, "stage": name, "command": commands.get(shard) or with_shard(newest.command, shard)}
        for shard in (f"{index}/{parts}" for index in range(parts))
        if shard not in busy and not _is_finished(shard, runs, name)
    ]


def _is_finished(shard: str, runs: Sequence[dict[str, Any]], stage: str) -> bool:
    """Whether a shard has made its part of a stage: it waits for the others."""
    return any(run["shard"] == shard and run["state"] == "incomplete" and run["stage"] == stage for run in runs)


def with_shard(command: Sequence[str], shard: str) -> str:
    """A command for another shard."""
    return shlex.join([*(word for word in command if not word.startswith("--shard")), f"--shard={shard}"])


def _is_gone(entry: Entry) -> bool:
    """Whether the process of an entry of this machine has ended."""
    if entry.host != socket.gethostname():
        return False
    try:
        os.kill(entry.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def lines(status: dict[str, Any]) -> list[str]:
    """The status for a terminal."""
    message = f": {status['message']}" if status["message"] else ""
    text = [f"{status['workdir']}: {status['state']}{message}"]
    for run in status["runs"]:
        shard = "" if run["shard"] == "0/1" else f"shard {run['shard']}: "
        many = f" and {run['processes'] - 1} others" if run["processes"] > 1 else ""
        starts = f", start {run['starts']}" if run["starts"] > 1 else ""
        seen = f", seen {duration(run['seen_seconds_ago'])} ago" if run["state"] == "running" else ""
        text.append(
            f"  {shard}{run['state']}, process {run['pid']} on {run['host']}{many}, "
            f"for {duration(run['seconds'])}{starts}{seen}"
        )
        text += [f"    {name} seen {duration(seconds)} ago" for name, seconds in run["peers_seen_seconds_ago"].items()]
    width = max(map(len, status["stages"]))
    text += [f"  {name:<{width}}  {about(stage)}" for name, stage in status["stages"].items()]
    text += [
        f"shard {one['shard']} is missing in {one['stage']}; to make it: {one['command']}" for one in status["missing"]
    ]
    return text + ([f"to go on: {status['next']}"] if status["next"] else [])


def about(stage: dict[str, Any]) -> str:
    """A stage in one line."""
    parts = [stage["state"]]
    if stage["state"] in ("waiting", "done"):
        return parts[0]
    for side, (complete, total) in stage.get("units", {}).items():
        parts.append(f"{complete} of {total} {PARTS.get(side) or f'units of {side}'}")
    if "total" in stage:
        parts.append(f"{stage['at']} of {stage['total']} {stage['unit']}")
    elif "step" in stage:
        parts.append(f"step {stage['step']}")
    if stage.get("last_checkpoint") is not None:
        parts.append(f"last checkpoint {stage['last_checkpoint']}")
    if "tokens_per_second" in stage:
        parts.append(f"{stage['tokens_per_second']:,.0f} tokens/s")
    if "seconds_left" in stage:
        parts.append(f"{duration(stage['seconds_left'])} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in the two largest units.

    >>> [duration(s) for s in (3.4, 75, 3 * 3600 + 120, 200_000)]
    ['3 s', '1 min 15 s', '3 h 2 min', '2 d 7 h']
    """
    whole, units = round(seconds), (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    values: dict[str, int] = {}
    for unit, size in units:
        values[unit], whole = divmod(whole, size)
    shown = [(unit, values[unit]) for unit, _ in units]
    first = next((i for i, (_, value) in enumerate(shown) if value), len(shown) - 1)
    return " ".join(
        f"{value} {unit}" for unit, value in shown[first : first + 2] if value or unit == "s" and first == 3
    )
