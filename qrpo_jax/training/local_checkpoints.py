"""Checkpoints on two tiers: often on the disk of each host, and now and then in the work directory.

The disk of a host is fast, and gone with the host. A start resumes from the newest step that the hosts have among them,
unless the work directory has a newer one.

Orbax has a manager for this, `orbax.checkpoint.experimental.emergency`. It restores arrays with a changed byte as if
nothing were wrong, leaves the other slices waiting when one of them cannot read, turns -0 into 0 on the way, and saves
nothing on the hosts of the first slice (version 0.12.8). So this uses Orbax's plain manager in each process.
"""

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import jax

from qrpo_jax.data.loader import Batches
from qrpo_jax.devices.processes import everywhere, from_first, is_first
from qrpo_jax.errors import DamagedError
from qrpo_jax.faults.records import read_record, write_record
from qrpo_jax.training.checkpoints import Checkpoints, Resumed, read_state, write_state
from qrpo_jax.training.local_steps import LocalSteps
from qrpo_jax.training.metrics import Written, begins_with
from qrpo_jax.training.state import State

IDENTITY = "local.json"  # in the folder of checkpoints: the name of its folder on the hosts


class LocalCheckpoints(Checkpoints):
    """Checkpoints in `directory`, and between them on the hosts. What is on the hosts is removed when training ends.

    Args:
      local: a folder on the disk of each host; each run has one of its own in it.
      local_every: steps from one checkpoint on the hosts to the next.
      metrics: the metrics file, which a checkpoint on the hosts must agree with.
      say: called with one line for what is restored, and for what is damaged.
    """

    def __init__(
        self,
        directory: Path,
        *,
        local: Path,
        local_every: int,
        metrics: Path,
        every: int = 1,
        keep: int = 2,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(directory, every=every, keep=keep, warn=say)
        self._local_every, self._metrics, self._say = local_every, metrics, say
        self._local = LocalSteps(local.absolute() / identity(directory))

    def due(self, step: int) -> bool:
        return super().due(step) or step % self._local_every == 0

    def save(self, state: State, iterator: Batches, metrics: Written, *, last: bool = False) -> None:
        """Starts saving on the hosts, or in the work directory, or both. After the last step, only there."""
        step = int(jax.device_get(state.step))
        if step % self._local_every == 0 and not last:
            written = json.loads(from_first(json.dumps(metrics._asdict())))  # only the first process writes metrics
            self._local.save(step, state._asdict(), {"iterator": read_state(iterator), "metrics": written})
        if last or super().due(step):
            super().save(state, iterator, metrics, last=last)

    def restore(self, abstract: State, iterator: Batches) -> Resumed | None:
        """The newest checkpoint that is whole, on the hosts or in the work directory, as in `Checkpoints`."""
        resumed = self._from_hosts(abstract, iterator)
        self._local.keep(None if resumed is None else resumed.step)
        return super().restore(abstract, iterator) if resumed is None else resumed

    def _from_hosts(self, abstract: State, iterator: Batches) -> Resumed | None:
        stored = self.latest or 0
        for step in self._local.steps():
            if step < max(stored, 1):
                break
            try:
                arrays, record, fault = self._local.read(step, abstract._asdict())
                metrics = Written(**record["metrics"])
                if not everywhere(not is_first() or begins_with(self._metrics, metrics)):
                    raise DamagedError(self._metrics, f"it is not what the hosts know of it at step {step}")
            except DamagedError as error:
                self._say(f"WARNING: step {step} on the disks of the hosts is passed over: {error.reason}")
                continue
            if fault:
                self._say(f"WARNING: step {step} on the disks of the hosts: {fault}; another process has a whole copy")
            there = f"has step {stored}" if stored else "has none"
            self._say(f"resuming from step {step} on the disks of the hosts; the work directory {there}")
            write_state(iterator, record["iterator"])
            return Resumed(State(**arrays), step, metrics)
        return None

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self._local.close()
        finally:
            super().__exit__(kind, *rest)
        if kind is None:
            self._local.remove()


def identity(directory: Path) -> str:
    """The name of the folder of a run on the hosts, on all processes. A work directory that was copied has another."""
    name = ""
    if is_first():
        path, place = directory / IDENTITY, str(directory.absolute())
        try:
            record = read_record(path)
        except (FileNotFoundError, DamagedError):
            record = {}
        if record.get("directory") != place:
            record = {"directory": place, "name": f"qrpo-{directory.parent.name}-{uuid.uuid4().hex}"}
            write_record(path, record)
        name = record["name"]
    return from_first(name)
