"""Where the results of a stage come from: for each start its time, command, program, machine, and peak memory.

The records lie in the folder of the stage, so that a fork keeps those of the stages that it takes over. No result
depends on them.
"""

import contextlib
import functools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import qrpo_jax
from qrpo_jax.devices.cores import core_count
from qrpo_jax.devices.peaks import peak_bytes
from qrpo_jax.devices.processes import is_first
from qrpo_jax.files import write_json
from qrpo_jax.job.job import Job

FOLDER = "starts"
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers")
GIT_SECONDS = 10.0


@contextlib.contextmanager
def recorded(job: Job, name: str) -> Iterator[None]:
    """Keeps a record of this start of a stage; one that is killed inside the block has no end.

    Only the first process of a job writes; each shard has a file of its own.
    """
    path = job.folder(name) / FOLDER / f"{job.shard.index}-of-{job.shard.parts}.json"
    begun, before = time.perf_counter(), _read(path) if is_first() else []
    start: dict[str, Any] = {"started": time.time(), "seconds": None, "peak_bytes": None} | _facts(job, name)

    def write() -> None:
        if is_first():
            with contextlib.suppress(OSError):  # a full disk is met by what the stage itself writes, and said there
                write_json(path, [*before, start])

    write()
    try:
        yield
    finally:
        start["seconds"] = time.perf_counter() - begun
        start["peak_bytes"] = peak_bytes(job.mesh) if job.stages[name].needs_model else None
        write()


def starts(folder: Path) -> list[dict[str, Any]]:
    """The starts of a stage, of all shards, in order; none for a stage of an earlier version."""
    files = sorted((folder / FOLDER).glob("*.json")) if (folder / FOLDER).exists() else []
    return sorted((start for path in files for start in _read(path)), key=lambda start: float(start["started"]))


def _read(path: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = json.loads(path.read_bytes())
        if all({"started", "seconds", "peak_bytes"} <= one.keys() for one in found):
            return list(found)
    return []


def _facts(job: Job, name: str) -> dict[str, Any]:
    hardware = _processor()
    if job.stages[name].needs_model:
        devices = jax.devices()
        if devices[0].platform != "cpu":
            hardware = f"{len(devices)} x {devices[0].device_kind}; {hardware}"
    return {
        "command": list(sys.orig_argv),
        "version": qrpo_jax.__version__,
        "commit": commit(),
        "libraries": _libraries(),
        "hardware": hardware,
        "processes": jax.process_count() if job.stages[name].needs_model else 1,
    }


@functools.lru_cache(maxsize=1)
def commit() -> str:
    """The commit of this program: of its clone, with "-dirty" if files differ, or that it was installed from; or ""."""
    root = Path(qrpo_jax.__file__).parents[1]
    if (root / ".git").exists():
        words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(words, capture_output=True, text=True, check=True, timeout=GIT_SECONDS).stdout.strip()
    with contextlib.suppress(metadata.PackageNotFoundError, ValueError, KeyError):
        origin = metadata.distribution("qrpo-jax").read_text("direct_url.json")
        return str(json.loads(origin or "{}")["vcs_info"]["commit_id"])[:12]
    return ""


@functools.lru_cache(maxsize=1)
def _libraries() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@functools.lru_cache(maxsize=1)
def _processor() -> str:
    """The processor of this machine, the cores that this process may use, and memory."""
    name = ""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as lines:
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    name = name or platform.processor() or platform.machine()
    text = f"{name}, {core_count()} cores"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        text += f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB of memory"
    return text
