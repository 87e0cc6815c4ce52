"""Checkpoints: one Orbax checkpoint holds parameters, optimizer, step, randomness and the data iterator."""

from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from qrpo_jax.model.decoder import Parameters
from qrpo_jax.training.state import State


class Checkpoints:
    """Saves and restores a run's state in `directory`; a save is there in full or not at all."""

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(Path(directory).absolute(), options=options)

    @property
    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: State, iterator: grain.DatasetIterator) -> None:
        """Starts saving in the background; state may be donated afterwards (Orbax copies it first)."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state._asdict()), iterator=ocp.args.JsonSave(read_state(iterator))
            ),
        )

    def restore(self, abstract: State, iterator: grain.DatasetIterator) -> State:
        """The latest state, laid out as `abstract` says (any mesh), with the iterator put back beside it."""
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
        """Waits for a save under way, also when an error ends the run: what it saves is good."""
        self._manager.wait_until_finished()
        self._manager.close()


def read_state(iterator: grain.DatasetIterator) -> dict[str, Any]:
    """The iterator's state as JSON. It is the same on every process, so one copy serves any number of them."""
    state = iterator.get_state()
    return {"bytes": state.decode()} if isinstance(state, bytes) else {"value": state}


def write_state(iterator: grain.DatasetIterator, state: dict[str, Any]) -> None:
    iterator.set_state(state["bytes"].encode() if "bytes" in state else state["value"])


def save_parameters(directory: Path, parameters: Parameters) -> None:
    """Writes parameters alone; the folder appears when it is complete."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(directory).absolute(), parameters, force=True)


def load_parameters(directory: Path, abstract: Parameters) -> Parameters:
    """Reads parameters into the types and shardings of `abstract`."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(Path(directory).absolute(), abstract)


def abstract_like(shapes: Parameters, shardings: Any, dtype: Any) -> Parameters:
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, dtype, sharding=where), shapes, shardings)
