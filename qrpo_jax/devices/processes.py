"""The processes of one job: the one that writes, and points where all wait for each other."""

import jax
import numpy as np
from jax.experimental import multihost_utils


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


def from_first(text: str) -> str:
    """The text that the first process passes, on all processes; cut after 4096 bytes of UTF-8."""
    if jax.process_count() == 1:
        return text
    sent_B = np.zeros(4096, np.uint8)
    words = text.encode()[: sent_B.size]
    sent_B[: len(words)] = np.frombuffer(words, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent_B))).rstrip(b"\0").decode(errors="ignore")
