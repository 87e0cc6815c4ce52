"""Cores of this machine as devices, so that a job without an accelerator uses all of them."""

import os

import jax

from qrpo_jax.devices.capacity import machine_bytes


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
