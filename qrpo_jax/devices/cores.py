"""Cores and memory of this machine for a job without an accelerator."""

import ctypes
import os
import platform

import jax

from qrpo_jax.devices.capacity import machine_bytes

# Parameters of mallopt (glibc's malloc.h) and their values in bytes. What is above the first, which cannot be larger,
# is given back to the system as soon as it is freed; programs on a CPU ask for no larger blocks (`xla_flags`).
_KEPT = {-3: 1 << 25, -1: (1 << 31) - 1, -2: 1 << 26}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD


def core_count() -> int:
    """Cores that this process may use."""
    available = getattr(os, "sched_getaffinity", None)  # Linux
    return len(available(0)) if available else os.cpu_count() or 1


def copies_that_fit(weight_bytes: int) -> int:
    """How many devices may share the CPU if each trains its own copy of a model; at least 1.

    Half of the machine's memory is for them. A parameter that is stored in 2 bytes takes 16 in training: its value, its
    gradient and two moments in float32.

    Args:
      weight_bytes: of the files of the model; 0 for a new model, which is small.
    """
    return max(1, int(0.5 * machine_bytes() / (8 * weight_bytes))) if weight_bytes else core_count()


def use_cores(count: int) -> None:
    """Splits the CPU into `count` devices; what the user's environment says about it has priority.

    It must run before the first computation. With an accelerator it changes nothing: JAX then computes there.
    """
    by_flag = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not by_flag and "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", count)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Lets this process use memory again that it has freed, up to 2 GiB a thread, instead of giving it back.

    A program on a CPU allocates its intermediate values anew each time that it runs, and the system would clear every
    page of them: 133,000 page faults and 12 % of the time of a training step of 30 million parameters (one core of an
    Intel Xeon, 2026-11-28). A user's own settings have priority; other C libraries have none, and nothing changes.
    """
    by_user = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if not by_user and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _KEPT.items():
            mallopt(parameter, value)
