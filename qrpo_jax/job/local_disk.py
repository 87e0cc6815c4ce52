"""The folder on each host's disk that the config names for checkpoints, and what can be wrong with it."""

import socket
from pathlib import Path

from qrpo_jax.devices.parts import fewest_holders
from qrpo_jax.devices.processes import from_any
from qrpo_jax.errors import UserError, located, shown
from qrpo_jax.files import unwritable
from qrpo_jax.job.job import Job
from qrpo_jax.stores.path import StorePath, as_path

STAGES = "sft", "train"  # that have checkpoints


def check(job: Job) -> None:
    """Refuses a folder that is no use for the job's checkpoints, or that some host cannot write to.

    Raises:
      UserError: naming the key.
    """
    options, stages = job.config.checkpoints, [name for name in job.config.stages if name in STAGES]
    if not options.local_directory or not stages:
        return
    folder = as_path(options.local_directory)
    with located("checkpoints.local_directory"):
        check_folder(folder)
        if fewest_holders(job.mesh) < 2:
            raise UserError(
                "local_directory is set, and some part of the model is on one process alone, so that a lost host would "
                "lose it: set config.mesh.replica or config.mesh.data so that two hosts hold each part, or leave it ''"
            )
    for stage in stages:
        with located("checkpoints.local_every", f"{stage}.checkpoint_every"):
            if options.local_every >= job.config[stage].checkpoint_every:
                raise UserError(
                    f"local_every is {options.local_every}; it must be below {stage}.checkpoint_every, which is "
                    f"{job.config[stage].checkpoint_every}"
                )


def check_folder(folder: Path) -> None:
    """Refuses a folder that is not on a disk of the hosts, or that one of them cannot make or write to.

    Raises:
      UserError: naming the host. All processes raise it.
    """
    if isinstance(folder, StorePath):
        raise UserError(f"local_directory is {shown(str(folder))}; it must be a folder on a disk of each host")
    why = unwritable(folder)
    if refusal := from_any(f"{socket.gethostname()} cannot write to it: {why}" if why else ""):
        raise UserError(f"local_directory is {shown(str(folder))}; {refusal}")
