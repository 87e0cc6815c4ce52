"""What Orbax writes and reads: where, and every kind of damage as one kind of error, the same on all processes.

Orbax writes a folder on disk, which appears by rename. For an object store one process writes a local folder and puts
it; several processes have no common local folder, and leave gs:// to Orbax itself, which marks a complete folder with
an object of its own.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
from jax.errors import JaxRuntimeError

from qrpo_jax.devices.array_sums import array_sums, differences
from qrpo_jax.devices.processes import everywhere, is_first
from qrpo_jax.errors import DamagedError, UserError, reason
from qrpo_jax.faults import storage
from qrpo_jax.files import local_folder, objects_list, put_folder
from qrpo_jax.stores.path import StorePath


def by_put(folder: Path) -> bool:
    """Whether a folder is written locally and put, and fetched before it is read."""
    return isinstance(folder, StorePath) and jax.process_count() == 1


def check(folder: Path) -> None:
    """Refuses an object store that Orbax cannot share between processes.

    Raises:
      UserError: naming the address.
    """
    if isinstance(folder, StorePath) and not by_put(folder) and folder.parts[0] != "gs:":
        raise UserError(f"{folder}: several processes save to a folder that all of them see, or to gs://")


def orbax_path(folder: Path) -> Any:
    """A folder as Orbax takes it, for one that it writes and reads by itself."""
    check(folder)
    if not isinstance(folder, StorePath):
        return folder.absolute()
    from etils import epath

    return epath.Path(str(folder))


@contextmanager
def written(folder: Path) -> Iterator[Any]:
    """Where Orbax writes a folder, which is in its place after the block."""
    if not isinstance(folder, StorePath) or not by_put(folder):
        if isinstance(folder, StorePath) and is_first():
            objects_list(folder).unlink(missing_ok=True)
        yield orbax_path(folder)
        return
    with put_folder(folder) as local:
        yield local


def readable(folder: Path) -> Any:
    """Where Orbax reads a folder.

    Raises:
      DamagedError: what was put is not there any more.
    """
    return local_folder(folder) if by_put(folder) else orbax_path(folder)


def attempt(folder: Path, read: Callable[[], Any]) -> Any:
    """What `read` returns, if it succeeds on every process.

    What fails for want of memory, or because the storage cannot be read, tells nothing about the files: it passes.

    Args:
      folder: that it reads, for the message.

    Raises:
      DamagedError: it failed on some process, which may be another one.
    """
    result, fault = None, ""
    try:
        result = patiently(read)
    except Exception as error:  # of many types, for files that are cut, absent or changed
        if isinstance(error, MemoryError | JaxRuntimeError) or storage.refuses(error):
            raise
        fault = reason(error)
    if everywhere(not fault):
        return result
    raise DamagedError(folder, fault or "another process cannot read it")


def patiently(read: Callable[[], Any]) -> Any:
    """What `read` returns. If it fails, all that Orbax began has ended before the error comes."""
    with patch.object(asyncio, "new_event_loop", _PatientLoop):
        return read()


class _PatientLoop(asyncio.SelectorEventLoop):
    """An event loop that ends what it began before it closes.

    Orbax reads arrays in a loop of its own, and closes it when the first of them fails. The other reads would end in
    threads of its storage library, and call a loop that is closed: a line on the terminal for each, and in Python 3.13
    now and then a segmentation fault.
    """

    def close(self) -> None:
        if not self.is_closed():
            self.run_until_complete(self._rest())
        super().close()

    async def _rest(self) -> None:
        others = asyncio.all_tasks(self) - {asyncio.current_task(self)}
        await asyncio.gather(*others, return_exceptions=True)


def compare(folder: Path, expected: dict[str, str], arrays: Any) -> None:
    """Refuses arrays that differ from the checksums made when they were saved.

    Raises:
      DamagedError: naming the first of them.
    """
    wrong = differences(expected, array_sums(arrays))
    if wrong:
        others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise DamagedError(folder, f"{wrong[0]}{others} is not what was saved")
