"""How much memory there is: of an accelerator, or the machine's, which the devices of a CPU share."""

import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from qrpo_jax.devices.chips import chip_of

CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def machine_bytes() -> int:
    """Memory that this machine has in all, or the container or batch job that this process is in.

    It does not depend on what is free, so that a run that resumes chooses by it what the first start chose.
    """
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()])


def _limits() -> list[int]:
    """Limits of the control groups of this process, from its own to the outermost, in both versions of Linux's."""
    lines = [line.split(":", 2) for line in OWN.read_text().splitlines()] if OWN.is_file() else []
    named = []
    for _, controllers, place in lines:
        root = CGROUPS / "memory" if controllers else CGROUPS
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        if not controllers or "memory" in controllers.split(","):
            inner = root / place.lstrip("/")
            named += [folder / name for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
    texts = [path.read_text().strip() for path in named if path.is_file()]
    return [int(text) for text in texts if text.isdigit()]


def device_bytes(mesh: Mesh) -> float:
    """Memory of one device of the mesh; without an accelerator an equal share of the machine's."""
    device: jax.Device = mesh.local_devices[0] if mesh.local_devices else mesh.devices.flat[0]
    if device.platform == "cpu":
        return machine_bytes() / len(mesh.local_devices)
    try:
        return float((device.memory_stats() or {})["bytes_limit"])
    except (KeyError, jax.errors.JaxRuntimeError):  # not every platform says, and a device of a topology is not there
        return chip_of(device).hbm_bytes


def bytes_per_device(tree: Any) -> float:
    """Bytes of a tree of arrays or shapes with shardings, on one device."""
    leaves = jax.tree.leaves(tree)
    numbers = [(leaf, math.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in leaves]
    # Keys of random numbers have a type of their own, and no size to speak of.
    return float(sum(np.dtype(leaf.dtype).itemsize * n for leaf, n in numbers if _is_plain(leaf)))


def _is_plain(leaf: Any) -> bool:
    return not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
