"""The processes of one job: the one that writes, and points where all wait for each other."""

import jax
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Whether this process prints and writes the files that all share."""
    return jax.process_index() == 0


def wait(point: str) -> None:
    """Lets no process pass this point before all have reached it.

    Args:
      point: the same name on every process.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(point)
