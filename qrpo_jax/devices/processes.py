"""The processes of one job: the one that writes, and points where all wait for each other."""

import functools
import pickle
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qrpo_jax.errors import UserError

Made = TypeVar("Made")


def of_runtime(error: BaseException) -> bool:
    """Whether an error is the runtime's own, as when a process dies within a collective.

    A program that is called for the first time passes it on as a ValueError, of which only the text tells.

    >>> of_runtime(ValueError("UNKNOWN: Gloo AllGather failed")), of_runtime(ValueError("beta must be positive"))
    (True, False)
    """
    status = isinstance(error, ValueError) and re.match(r"[A-Z]+(_[A-Z]+)*: ", str(error)) is not None
    return isinstance(error, JaxRuntimeError) or status


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


def everywhere(true: bool) -> bool:
    """Whether something is true on all processes. Every process must ask."""
    return not anywhere(np.asarray([not true]))[0]


def anywhere(true: np.ndarray) -> np.ndarray:
    """For each element, whether it is true on some process. Every process must ask, with equally many elements."""
    return true if jax.process_count() == 1 else multihost_utils.process_allgather(true).any(0)


def start_gather(value: float) -> jax.Array:
    """The number that each process passes, float32 [P] on all devices. Every process must call it; none waits here."""
    mesh, own = _by_process(), np.asarray([value], np.float32)
    with jax.transfer_guard_host_to_device("allow"):  # a few bytes, and intended
        values_P = jax.make_array_from_callback(
            (jax.process_count(),), NamedSharding(mesh, PartitionSpec("process")), lambda index: own
        )
    return _replicate()(values_P)


@functools.cache
def _by_process() -> Mesh:
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(devices).reshape(jax.process_count(), -1), ("process", "device"))


@functools.cache
def _replicate() -> Any:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(_by_process(), PartitionSpec()))


def from_all(text: str) -> list[str]:
    """The text that each process passes, on all of them, in their order. Every process must call it."""
    if jax.process_count() == 1:
        return [text]
    own_B = np.frombuffer(text.encode(), np.uint8)
    sizes_P = np.asarray(multihost_utils.process_allgather(np.int32(own_B.size)))
    sent_B = np.zeros(sizes_P.max(), np.uint8)
    sent_B[: own_B.size] = own_B
    all_PxB = np.asarray(multihost_utils.process_allgather(sent_B))
    return [bytes(sent_B[:size]).decode() for sent_B, size in zip(all_PxB, sizes_P, strict=True)]


def from_any(text: str) -> str:
    """The text of the first process that passes one, on all processes; "" if none does."""
    return next((each for each in from_all(text) if each), "")


def from_first(text: str) -> str:
    """The text that the first process passes, on all processes; cut after 4096 bytes of UTF-8."""
    if jax.process_count() == 1:
        return text
    sent_B = np.zeros(4096, np.uint8)
    words = text.encode()[: sent_B.size]
    sent_B[: len(words)] = np.frombuffer(words, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent_B))).rstrip(b"\0").decode(errors="ignore")


def made_by_first(make: Callable[[], Made]) -> Made:
    """What the first process makes, which may take it minutes, on all processes. Every process must call it.

    Args:
      make: returns something that can be pickled.

    Raises:
      UserError: the one that `make` raised. All processes raise it.
    """
    if jax.process_count() == 1:
        return make()
    made, error = None, None
    if is_first():
        try:
            made = make()
        except UserError as raised:
            error = raised
    sent_B = np.frombuffer(pickle.dumps((made, error and (error.message, error.about))), np.uint8)
    # The size in two numbers, because jax has none of 64 bits here.
    high, low = multihost_utils.broadcast_one_to_all(np.asarray(divmod(sent_B.size, 1 << 30), np.int32)).tolist()
    if not is_first():
        sent_B = np.zeros(high << 30 | low, np.uint8)
    made, fault = pickle.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent_B))))
    if fault is not None:
        raise error or UserError(fault[0], about=fault[1])
    return made
