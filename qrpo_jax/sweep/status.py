"""What `--status` says of a sweep, from its files alone: which points are complete, and what runs now."""

import json
from pathlib import Path
from typing import Any

from qrpo_jax.errors import UserError
from qrpo_jax.job import status
from qrpo_jax.job.manifest import MANIFEST
from qrpo_jax.sweep.plan import FAILURES, RECORD


def is_sweep(workdir: Path) -> bool:
    return (workdir / RECORD).exists()


def read_status(workdir: Path) -> dict[str, Any]:
    """The status of a sweep, as `--json` prints it.

    Returns:
      workdir; state ("done", "running" or "incomplete"); `points` and `shared`, for each the folder and state:
      "waiting", "failed" with its message, or that of a run (`job.status.read_status`), with its stages.
    """
    record = json.loads((workdir / RECORD).read_bytes())
    points = [of_folder(workdir, one["folder"], one["name"]) for one in record["points"]]
    shared = [of_folder(workdir, one["folder"], one["folder"], one["stages"]) for one in record["shared"]]
    states = [one["state"] for one in (*points, *shared)]
    done = all(one["state"] == "done" for one in points)
    state = "done" if done else "running" if "running" in states else "incomplete"
    return {"workdir": str(workdir), "state": state, "points": points, "shared": shared}


def of_folder(workdir: Path, folder: str, name: str, stages: list[str] | None = None) -> dict[str, Any]:
    """The status of a point, or of a shared part with these stages."""
    found: dict[str, Any] = {"name": name, "folder": folder, "state": "waiting", "message": ""}
    try:
        run = status.read_status(workdir / folder)
        found |= {"state": run["state"], "message": run["message"], "stages": run["stages"]}
    except UserError:
        pass  # it has not begun
    if stages is not None and all((workdir / folder / name / MANIFEST).exists() for name in stages):
        found["state"] = "done"
    failure = workdir / FAILURES / f"{name}.json"
    if failure.exists() and found["state"] != "running":
        found |= {"state": "failed", "message": json.loads(failure.read_bytes())["message"]}
    return found


def lines(report: dict[str, Any]) -> list[str]:
    """The status for a terminal: a line for each point, and the stages of those that run."""
    states = [point["state"] for point in report["points"]]
    text = [f"{report['workdir']}: {report['state']}, {states.count('done')} of {len(states)} points are complete"]
    for one in (*report["shared"], *report["points"]):
        message = f": {one['message']}" if one["message"] else ""
        text.append(f"  {one['state']:<10}  {one['name']}{message}")
        if one["state"] == "running":
            text += [f"    {name}: {status.about(stage)}" for name, stage in one["stages"].items()]
    return text
