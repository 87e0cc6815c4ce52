"""Checkpoints: one Orbax checkpoint holds parameters, optimizer, step, randomness and the data iterator."""

from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from qrpo_jax.model.decoder import Parameters
from qrpo_jax.training.state import State


class Checkpoints:
    """Saves and restores the state of a run in `directory`. A checkpoint appears only when it is complete.

    A context manager; leaving it waits for a save under way.

    Args:
      every: steps from one checkpoint to the next.
      keep: number of checkpoints kept; older ones are deleted.
    """

    def __init__(self, directory: Path, *, every: int = 1, keep: int = 2) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)
        self._directory, self._every = directory, every

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

    def save(self, state: State, iterator: grain.DatasetIterator) -> None:
        """Starts saving in the background. Orbax copies the state first, so it may be donated afterwards."""
        self._manager.save(
            int(jax.device_get(state.step)),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state._asdict()), iterator=ocp.args.JsonSave(read_state(iterator))
            ),
        )

    def restore(self, abstract: State, iterator: grain.DatasetIterator) -> State:
        """The latest state, and the iterator moved to where it was at that step.

        Args:
          abstract: shapes, types and shardings of the state; the mesh may differ from the one that saved it.
          iterator: over the same batches; its position is overwritten.
        """
        restored = self._manager.restore(
            self.latest,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract._asdict()),
                iterator=ocp.args.JsonRestore(),
            ),
        )
        write_state(iterator, restored["iterator"])
        return State(**restored["state"])

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for a save under way, also when an error ends the run: the state that it saves is good."""
        self._manager.wait_until_finished()
        self._manager.close()


def read_state(iterator: grain.DatasetIterator) -> dict[str, Any]:
    """The iterator's position as JSON. It is the same on every process, so one copy serves any number of them."""
    state = iterator.get_state()
    return {"bytes": state.decode()} if isinstance(state, bytes) else {"value": state}


def write_state(iterator: grain.DatasetIterator, state: dict[str, Any]) -> None:
    """Moves the iterator to a position from `read_state`."""
    iterator.set_state(state["bytes"].encode() if "bytes" in state else state["value"])


def save_parameters(directory: Path, parameters: Parameters) -> None:
    """Writes parameters alone; the folder appears when it is complete and replaces an earlier one."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.absolute(), parameters, force=True)


def load_parameters(directory: Path, abstract: Parameters) -> Parameters:
    """Reads parameters into the types and shardings of `abstract`."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(directory.absolute(), abstract)
