"""Steps on the disks of the hosts: each process saves its own parts, and reads back what its host still has.

A step counts if every part of every array is whole on some host; the processes that lack theirs get them from those
that have them. Each start of a run saves into folders of its own, START-PROCESS/STEP, so that nothing that it writes
mixes with what an earlier one left.
"""

import json
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.errors import JaxRuntimeError

from qrpo_jax.devices.parts import cover, part_names, part_sums, spread, zeros
from qrpo_jax.devices.processes import from_all, from_any, from_first, wait
from qrpo_jax.errors import DamagedError, reason
from qrpo_jax.faults.records import sealed, unsealed
from qrpo_jax.files import remove_folder
from qrpo_jax.training.orbax_folders import patiently

PLACE = "local"  # of records; the step is in their content
KEPT = 2  # while one process writes a step, all have the one before


class Held(NamedTuple):
    """What a process has of a step.

    Attributes:
      arrays: with its parts.
      record: what `LocalSteps.save` was given, the step, and the start that saved it.
      sums: of its parts when they were saved.
    """

    arrays: Any
    record: dict[str, Any]
    sums: dict[str, str]


class LocalSteps:
    """Saves and restores steps in a folder of each host's disk. All processes call its methods together.

    Args:
      folder: the same path on all hosts, with nothing but the steps of one run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._start, self._saves = folder, from_first(uuid.uuid4().hex[:8]), 0
        own = folder / f"{self._start}-{jax.process_index()}"
        own.mkdir(parents=True)
        alone = ocp.options.MultiprocessingOptions(
            primary_host=None, active_processes={jax.process_index()}, barrier_sync_key_prefix="local"
        )
        self._handler = _handler(alone)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT,
            create=False,
            save_root_metadata=False,
            multiprocessing_options=alone,
            # Orbax announces folders that it makes in the background under names that all processes share.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self._records = ocp.JsonCheckpointHandler(multiprocessing_options=alone)
        handlers = {"state": self._handler, "record": self._records}
        self._manager = ocp.CheckpointManager(own, options=options, item_handlers=handlers)

    def save(self, step: int, arrays: Any, record: dict[str, Any]) -> None:
        """Starts saving in the background. The arrays are copied first, so they may be donated afterwards.

        Args:
          record: JSON, the same on all processes.
        """
        self._manager.wait_until_finished()
        wait(f"local step before {step}")
        if self._saves == 1:  # what this start has saved first is now whole on all hosts
            for earlier in self._earlier():
                remove_folder(earlier)
        content = {"record": record | {"step": step, "start": self._start}, "parts": part_sums(arrays)}
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), record=ocp.args.JsonSave(sealed(content, PLACE)))
        self._manager.save(step, args=items)
        self._saves += 1

    def steps(self) -> list[int]:
        """Steps of which some host has something, the newest first."""
        here = {int(step.name) for step in self.folder.glob("*/*") if step.name.isdigit()}
        return sorted({step for each in from_all(json.dumps(sorted(here))) for step in json.loads(each)}, reverse=True)

    def read(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any], str]:
        """The arrays and the record of a step, and what is wrong with parts of which another process has a whole copy.

        Args:
          abstract: shapes, types and shardings of the arrays.

        Raises:
          DamagedError: the hosts do not have all of it.
        """
        held, fault = self._held(step, abstract)
        record = "" if held is None else json.dumps(held.record, sort_keys=True)
        if cover(abstract, np.asarray([bool(each) for each in from_all(record)])):
            arrays = zeros(abstract) if held is None else held.arrays
            sums = part_sums(arrays)
            if held is not None and sums != held.sums:
                record, fault = "", self._told("an array is not what was saved")
            # Two starts may have saved the same step with different numbers: only parts of one of them go together.
            records_P = np.asarray(from_all(record))
            for chosen in filter(None, dict.fromkeys(records_P.tolist())):
                if cover(abstract, records_P == chosen):
                    return spread(arrays, records_P == chosen), json.loads(chosen), from_any(fault)
        raise DamagedError(self.folder, from_any(fault) or "no host has some parts that this mesh needs")

    def keep(self, step: int | None) -> None:
        """Removes what earlier starts left; `step`, which this one goes on from, stays until there are newer ones."""
        wait("local steps are read")
        for earlier in self._earlier():
            needed = earlier / str(step)
            # Another process of this host may be removing the same folders.
            for folder in [each for each in earlier.glob("*") if each != needed] if needed.exists() else [earlier]:
                remove_folder(folder)

    def close(self) -> None:
        """Waits for a save under way. No process waits for another: this one may end with an error."""
        self._manager.wait_until_finished()
        self._manager.close()

    def remove(self) -> None:
        """Removes the folder, after `close`."""
        wait("local steps are closed")
        remove_folder(self.folder)

    def _earlier(self) -> list[Path]:
        return [folder for folder in self.folder.iterdir() if not folder.name.startswith(f"{self._start}-")]

    def _held(self, step: int, abstract: Any) -> tuple[Held | None, str]:
        """The parts that this process needs, if its host has them from any process; or what is wrong with them."""
        names, fault = part_names(abstract), ""
        for folder in sorted(self.folder.glob(f"*/{step}")):
            try:
                content = unsealed(self._records.restore(_orbax(folder / "record")), PLACE, folder)
                if content["record"]["step"] != step:
                    raise DamagedError(folder, f"it is step {content['record']['step']}")
                if set(content["parts"]) == names:
                    return Held(self._arrays(folder, abstract), content["record"], content["parts"]), ""
            except (MemoryError, JaxRuntimeError):
                raise
            except Exception as error:  # of many types, for files that are cut, absent, changed or cannot be read
                fault = self._told(error.reason if isinstance(error, DamagedError) else reason(error))
        return None, fault

    def _told(self, fault: str) -> str:
        return f"process {jax.process_index()}: {fault}"

    def _arrays(self, folder: Path, abstract: Any) -> Any:
        # The manager's own restore has barriers, and the other processes may have nothing to read.
        args = ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))
        return patiently(lambda: self._handler.restore(_orbax(folder / "state"), args=args))


def _handler(alone: ocp.options.MultiprocessingOptions) -> ocp.PyTreeCheckpointHandler:
    """Writes and reads the parts that this process holds, as if it had no other process beside it."""
    arrays = ocp.type_handlers.ArrayHandler(primary_host=None, replica_id=None, use_replica_parallel=False)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return ocp.PyTreeCheckpointHandler(multiprocessing_options=alone, type_handler_registry=registry)


def _orbax(folder: Path) -> Any:
    from etils import epath

    return epath.Path(folder)
