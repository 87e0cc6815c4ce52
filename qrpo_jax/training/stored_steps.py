"""Checkpoints in an object store: folders that Orbax writes on a local disk, put behind the training.

The index, which is put last, says which steps are complete; each step has a list of its objects. Local copies may be
lost with the machine: a start fetches what the index names. Where several processes leave a store to Orbax, there is
no index, and complete steps are those that Orbax marks.
"""

import json
from collections.abc import Callable
from pathlib import Path
from threading import Thread

from qrpo_jax import files
from qrpo_jax.errors import DamagedError
from qrpo_jax.stores import copies
from qrpo_jax.stores.path import StorePath

INDEX = "steps.json"


class StoredSteps:
    """The steps in a folder of a store, and a local folder with the same steps, where Orbax works.

    Args:
      directory: in the store.
    """

    def __init__(self, directory: StorePath) -> None:
        self._directory, self.local = directory, copies.scratch(directory.name)
        self._steps: list[int] = []
        self._putting, self._error = Thread(), []  # type: Thread, list[BaseException]
        self.local.mkdir()
        self._fetch()

    def put(self, ready: Callable[[], list[int]]) -> None:
        """Begins to put, in the background, the steps that the store does not have yet.

        Args:
          ready: waits until they are written, and returns the steps to keep.
        """
        self.wait()

        def work() -> None:
            try:
                self._put(ready())
            except BaseException as error:
                self._error.append(error)

        self._putting = Thread(target=work, name="put checkpoint")
        self._putting.start()

    def wait(self) -> None:
        """Waits for what is being put, and raises its error."""
        if self._putting.ident is not None:
            self._putting.join()
        if self._error:
            raise self._error.pop()

    def set_aside(self, step: int, aside: Path) -> None:
        """Moves a damaged step to a folder outside, in the store, and forgets it."""
        self._write_index([kept for kept in self._steps if kept != step])
        files.move_folder(self._directory / str(step), aside)
        files.remove_folder(self.local / str(step))

    def _put(self, steps: list[int]) -> None:
        for step in steps:
            if step not in self._steps:
                files.put_copy(self.local / str(step), self._directory / str(step))
        dropped = [step for step in self._steps if step not in steps]
        self._write_index(steps)
        for step in dropped:
            files.remove_folder(self._directory / str(step))

    def _write_index(self, steps: list[int]) -> None:
        files.write_json(self._directory / INDEX, steps)
        self._steps = list(steps)

    def _fetch(self) -> None:
        """Brings the complete steps here. What is damaged is met when Orbax reads it: arrays have their checksums."""
        index = self._directory / INDEX
        try:
            self._steps = [int(step) for step in json.loads(index.read_bytes())]
        except FileNotFoundError:
            steps = [int(name) for name in self._directory.store.children(str(self._directory)) if name.isdigit()]
            self._steps = [step for step in steps if (self._directory / str(step) / files.COMMITTED).is_file()]
        except (ValueError, TypeError):
            raise DamagedError(index, "it is no list of steps") from None
        for step in self._steps:
            try:
                found = files.local_folder(self._directory / str(step))
            except DamagedError:
                (self.local / str(step)).mkdir()
            else:
                found.rename(self.local / str(step))  # a copy that nothing else reads


def leave_to_orbax(directory: StorePath) -> None:
    """Removes index and lists of a folder of checkpoints, which Orbax does not keep."""
    for path in directory.iterdir():
        if path.name == INDEX or path.name.endswith(files.OBJECTS):
            path.unlink(missing_ok=True)
