"""results.json of the work directory: what stage `evaluate` found, and under `harnesses` what stage `harness` found.

Each stage keeps its own part in its folder. The manifests of both list the common file, so whoever changes it says so
there first: a run that is killed in between makes the file again.
"""

import hashlib
import json
from typing import Any

from qrpo_jax.devices.processes import is_first
from qrpo_jax.files import write_bytes, write_json
from qrpo_jax.job import manifest
from qrpo_jax.job.integrity import FILES
from qrpo_jax.job.job import Job

RESULTS = "results.json"
OWN = {"evaluate": "", "harness": "harnesses"}  # stages, and the entry that each has; "": the file itself


def write_part(job: Job, stage: str, found: dict[str, Any]) -> None:
    """Writes what a stage found into its folder and into the common file."""
    if is_first():
        write_json(job.folder(stage) / RESULTS, found)
        write_common(job)


def write_common(job: Job) -> None:
    """Writes the common file from what the stages of this work directory have found."""
    content = (json.dumps(read(job, tuple(OWN)), indent=2, allow_nan=True) + "\n").encode()
    listed = [len(content), hashlib.sha256(content).hexdigest()]
    for other in OWN:
        recorded = manifest.read_manifest(job.folder(other))
        if recorded is not None and recorded[FILES].get(f"../{RESULTS}", listed) != listed:
            recorded[FILES][f"../{RESULTS}"] = listed
            manifest.complete(job.folder(other), recorded)
    write_bytes(job.workdir / RESULTS, content)


def read(job: Job, stages: tuple[str, ...]) -> dict[str, Any]:
    """What those of some stages that have run found, as the common file has it."""
    results: dict[str, Any] = {}
    for stage, entry in OWN.items():
        path = job.folder(stage) / RESULTS
        if stage in stages and path.exists():
            found = json.loads(path.read_text())
            results |= {entry: found} if entry else found
    return results
