"""Cores of this machine as devices, so that a job without an accelerator uses all of them."""

import os

import jax


def core_count() -> int:
    """Cores that this process may use."""
    available = getattr(os, "sched_getaffinity", None)  # Linux
    return len(available(0)) if available else os.cpu_count() or 1


def use_cores(count: int) -> None:
    """Splits the CPU into `count` devices; what the user's environment says about it has priority.

    It must run before the first computation. With an accelerator it changes nothing: JAX then computes there.
    """
    by_flag = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not by_flag and "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", count)
