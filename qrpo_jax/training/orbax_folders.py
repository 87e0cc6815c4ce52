"""Reading what Orbax wrote, with every kind of damage as one kind of error, the same on all processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qrpo_jax.devices.array_sums import array_sums, differences
from qrpo_jax.devices.processes import everywhere
from qrpo_jax.errors import DamagedError


def attempt(folder: Path, read: Callable[[], Any]) -> Any:
    """What `read` returns, if it succeeds on every process.

    Args:
      folder: that it reads, for the message.

    Raises:
      DamagedError: it failed on some process, which may be another one.
    """
    result = error = None
    try:
        result = read()
    except Exception as raised:  # of many types, for files that are cut, absent or changed
        error = raised
    if everywhere(error is None):
        return result
    if error is None:
        raise DamagedError(folder, "another process cannot read it")
    first_line = (str(error).strip().splitlines() or [""])[0][:200]
    raise DamagedError(folder, f"{type(error).__name__}: {first_line}") from error


def compare(folder: Path, expected: dict[str, str], arrays: Any) -> None:
    """Refuses arrays that differ from the checksums made when they were saved.

    Raises:
      DamagedError: naming the first of them.
    """
    wrong = differences(expected, array_sums(arrays))
    if wrong:
        others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise DamagedError(folder, f"{wrong[0]}{others} is not what was saved")
