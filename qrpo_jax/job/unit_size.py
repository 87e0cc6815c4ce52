"""How many prompts a unit of work has. A stage keeps the number with which it began, whoever goes on with it."""

from pathlib import Path

from qrpo_jax.devices.processes import is_first
from qrpo_jax.faults.records import read_record, write_record
from qrpo_jax.job.job import Job

MOST = 128
LEAST = 16  # fewer prompts fill no device
EACH = 2  # units of a process, at least, so that a kill loses half of its work


def unit_size(job: Job, folder: Path, count: int) -> int:
    """The prompts in a unit of the stage in `folder`, and a record of them there.

    Args:
      count: prompts of the stage.

    Raises:
      DamagedError: the record is not what was written.
    """
    path = folder / "unit.json"
    try:
        return read_record(path)["prompts"]
    except FileNotFoundError:
        # Processes and shards that begin at the same moment all choose the same number.
        size = job.config.prompts.unit or choose(count, 1 if job.together else job.shard.parts)
        if is_first():
            write_record(path, {"prompts": size})
        return size


def choose(count: int, parts: int) -> int:
    """At most `MOST`; fewer where so many would leave a process without work, or with less than `EACH` units.

    Args:
      parts: processes or shards that share the prompts.

    >>> [choose(1024, parts) for parts in (1, 8, 32, 128)]
    [128, 64, 16, 8]
    """
    share = -(-count // parts)
    return max(1, min(MOST, max(-(-share // EACH), min(LEAST, share))))
