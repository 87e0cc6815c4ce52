"""Reading what Orbax wrote, with every kind of damage as one kind of error, the same on all processes."""

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.errors import JaxRuntimeError

from qrpo_jax.devices.array_sums import array_sums, differences
from qrpo_jax.devices.processes import everywhere
from qrpo_jax.errors import DamagedError, reason
from qrpo_jax.faults import storage


def attempt(folder: Path, read: Callable[[], Any]) -> Any:
    """What `read` returns, if it succeeds on every process.

    What fails for want of memory, or because the storage cannot be read, tells nothing about the files: it passes.

    Args:
      folder: that it reads, for the message.

    Raises:
      DamagedError: it failed on some process, which may be another one.
    """
    result, fault = None, ""
    try:
        result = read()
    except Exception as error:  # of many types, for files that are cut, absent or changed
        if isinstance(error, MemoryError | JaxRuntimeError) or storage.refuses(error):
            raise
        fault = reason(error)
    if fault:
        _forget_reads()
    if everywhere(not fault):
        return result
    raise DamagedError(folder, fault or "another process cannot read it")


def _forget_reads() -> None:
    """Collects the reads that Orbax had begun beside the one that failed; each would print its own failure."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook


def compare(folder: Path, expected: dict[str, str], arrays: Any) -> None:
    """Refuses arrays that differ from the checksums made when they were saved.

    Raises:
      DamagedError: naming the first of them.
    """
    wrong = differences(expected, array_sums(arrays))
    if wrong:
        others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise DamagedError(folder, f"{wrong[0]}{others} is not what was saved")
