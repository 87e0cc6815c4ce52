"""Compiled programs on disk, so that a run that starts again does not compile again."""

import hashlib
import os
import platform
import sys
import warnings
from pathlib import Path

import jax

MOST_BYTES = 10 * 2**30  # the programs that were used longest ago are removed


def keep_programs() -> None:
    """Keeps compiled programs in a folder of this user's, unless the environment or another caller has named one.

    JAX's own variables have priority: JAX_COMPILATION_CACHE_DIR names another folder, such as one that all hosts share,
    and JAX_ENABLE_COMPILATION_CACHE=false keeps none. A program whose intermediate values lie in several blocks is not
    kept, because XLA cannot write it.
    """
    known = jax.config.values
    if known["jax_compilation_cache_dir"] or not known["jax_enable_compilation_cache"]:
        return
    folder = user_cache() / "qrpo_jax" / f"programs-{processor()}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    # Training steps of large models on a CPU (`xla_flags.BACKWARD_FLAGS`): they are compiled anew at each start.
    warnings.filterwarnings("ignore", message="(?s).*persistent compilation cache.*Multiple temp buffer allocations")


def user_cache() -> Path:
    """The folder for what a user's programs can make again."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named)
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def processor() -> str:
    """Names the kind of this machine's processor: programs for one CPU may fail on another that shares the folder."""
    kind = platform.machine() + platform.processor()
    cpus = Path("/proc/cpuinfo")
    if cpus.is_file():
        wanted = ("model name", "flags", "Features", "CPU part")
        lines = {line for line in cpus.read_text(errors="replace").splitlines() if line.startswith(wanted)}
        kind += "".join(sorted(lines))
    return hashlib.sha256(kind.encode()).hexdigest()[:12]
