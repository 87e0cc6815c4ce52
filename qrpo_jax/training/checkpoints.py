"""Checkpoints: one Orbax checkpoint holds parameters, optimizer, step, randomness and the data iterator.

Each has a record with the checksums of its arrays, and `restore` takes the newest checkpoint that still agrees with
its record. Checksums are those of the values in memory: they also cover what Orbax and the storage do in between. In
an object store, they are put there as `stored_steps` says.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from qrpo_jax.data.loader import Batches
from qrpo_jax.devices.array_sums import array_sums
from qrpo_jax.devices.processes import is_first, wait
from qrpo_jax.errors import DamagedError
from qrpo_jax.faults.interruption import RUN, Interrupted
from qrpo_jax.faults.records import sealed, unsealed
from qrpo_jax.files import DAMAGED, move_folder
from qrpo_jax.stores.path import StorePath
from qrpo_jax.training.metrics import Written
from qrpo_jax.training.orbax_folders import attempt, by_put, compare, orbax_path
from qrpo_jax.training.state import State
from qrpo_jax.training.stored_steps import StoredSteps, leave_to_orbax

PLACE = "checkpoint"  # of records; the step is in their content


class Resumed(NamedTuple):
    """Where a run goes on, or begins.

    Attributes:
      metrics: what is kept of the metrics file.
    """

    state: State
    step: int = 0
    metrics: Written = Written()


class Checkpoints:
    """Saves and restores the state of a run in `directory`. A checkpoint appears only when it is complete.

    A context manager; leaving it waits for a save under way.

    Args:
      every: steps from one checkpoint to the next.
      keep: number of checkpoints kept; older ones are deleted.
      warn: called with one line for each damaged checkpoint that is passed over.
    """

    def __init__(
        self, directory: Path, *, every: int = 1, keep: int = 2, warn: Callable[[str], None] = lambda line: None
    ) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._stored = None
        if isinstance(directory, StorePath):
            if by_put(directory):
                self._stored = StoredSteps(directory)
            elif is_first():
                leave_to_orbax(directory)
        place = orbax_path(directory) if self._stored is None else self._stored.local
        self._manager = ocp.CheckpointManager(place, options=options)
        self._directory, self._every, self._warn = directory, every, warn

    @property
    def latest(self) -> int | None:
        """Step of the latest checkpoint."""
        return self._manager.latest_step()

    @property
    def latest_folder(self) -> Path | None:
        return None if self.latest is None else self._directory / str(self.latest)

    def due(self, step: int) -> bool:
        """Whether a checkpoint follows this step."""
        return step % self._every == 0

    def save(self, state: State, iterator: Batches, metrics: Written, *, last: bool = False) -> None:
        """Starts saving in the background. Orbax copies the state first, so it may be donated afterwards.

        Args:
          metrics: the metrics file up to this step.
          last: no step follows in this start, so this must outlast the machine. In the work directory, all does.
        """
        step, arrays = int(jax.device_get(state.step)), state._asdict()
        record = {
            "step": step,
            "iterator": read_state(iterator),
            "metrics": metrics._asdict(),
            "arrays": array_sums(arrays),
        }
        record_args = ocp.args.JsonSave(sealed(record, PLACE))
        if self._stored is not None:
            self._stored.wait()
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), record=record_args))
        if self._stored is not None:
            self._stored.put(self._finished)

    def _finished(self) -> list[int]:
        """The steps that are kept, when the save under way is done."""
        self._manager.wait_until_finished()
        return sorted(self._manager.all_steps())

    def restore(self, abstract: State, iterator: Batches) -> Resumed | None:
        """The newest checkpoint that is whole, and the iterator moved to where it was; None without checkpoints.

        Damaged ones that are newer are set aside, next to the folder of checkpoints, with a warning.

        Args:
          abstract: shapes, types and shardings of the state; the mesh may differ from the one that saved it.
          iterator: over the same batches; its position is overwritten.

        Raises:
          DamagedError: there are checkpoints, and all of them are damaged.
        """
        damaged: list[DamagedError] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                resumed, position = self._read(step, abstract)
            except DamagedError as error:
                damaged.append(error)
                continue
            for newer in damaged:
                aside = self._set_aside(newer.path)
                self._warn(f"WARNING: {newer.path} is damaged: {newer.reason}; moved to {aside}, going on from {step}")
            write_state(iterator, position)
            return resumed
        if damaged:
            reasons = "; ".join(f"{each.path.name}: {each.reason}" for each in damaged)
            remedy = f"restore one of them from a copy, or remove {self._directory} to train from the beginning"
            raise DamagedError(self._directory, f"no checkpoint is whole ({reasons})", remedy)
        return None

    def _read(self, step: int, abstract: State) -> tuple[Resumed, dict[str, Any]]:
        """A checkpoint, compared with its record, and the position of its iterator."""
        folder = self._directory / str(step)
        wanted = ocp.args.Composite(state=ocp.args.StandardRestore(abstract._asdict()), record=ocp.args.JsonRestore())
        read = attempt(folder, lambda: self._manager.restore(step, args=wanted))
        record = unsealed(read["record"], PLACE, folder)
        if record["step"] != step:
            raise DamagedError(folder, f"it is the checkpoint of step {record['step']}")
        compare(folder, record["arrays"], read["state"])
        return Resumed(State(**read["state"]), step, Written(**record["metrics"])), record["iterator"]

    def _set_aside(self, folder: Path) -> Path:
        aside = self._directory.parent / f"{DAMAGED}checkpoint-{folder.name}"
        wait(f"{folder.name} is damaged")
        if is_first():
            # In the place of an earlier one, of a start that fell back from the same step.
            if self._stored is None:
                move_folder(folder, aside)
            else:
                self._stored.set_aside(int(folder.name), aside)
        wait(f"{folder.name} is set aside")
        self._manager.reload()
        return aside

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for a save under way, also when an error ends the run: the state that it saves is good."""
        try:
            if self._stored is not None:
                self._stored.wait()
        finally:
            self._manager.wait_until_finished()
            self._manager.close()
        if kind is None or kind is Interrupted:
            RUN.saved()


def read_state(iterator: Batches) -> dict[str, Any]:
    """The iterator's position as JSON. It is the same on every process, so one copy serves any number of them."""
    state = iterator.get_state()
    return {"bytes": state.decode()} if isinstance(state, bytes) else {"value": state}


def write_state(iterator: Batches, state: dict[str, Any]) -> None:
    """Moves the iterator to a position from `read_state`."""
    iterator.set_state(state["bytes"].encode() if "bytes" in state else state["value"])
