"""The peak speed of a mesh, published or measured, and the most memory that a process has used."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qrpo_jax.devices.chips import CHIPS

SIZE = 1024  # rows and columns of the matrices whose product is timed


class Peak(NamedTuple):
    """The peak of all devices of a mesh together.

    flops: FLOP/s.
    name: what it is the peak of.
    source: where it is published.
    """

    flops: float
    name: str
    source: str


def published_peak(mesh: Mesh) -> Peak | None:
    """The peak of the mesh's chips by `CHIPS`; None if the table does not have them, as no processor is in it."""
    kind = mesh.devices.flat[0].device_kind
    if kind not in CHIPS:
        return None
    return Peak(CHIPS[kind].bf16_flops * mesh.size, f"bfloat16 peak of {mesh.size} x {kind}", CHIPS[kind].source)


def matrix_product(mesh: Mesh, dtype: Any) -> Callable[[], float]:
    """A function that times a product of two square matrices on every device at once, and returns FLOP/s of all.

    What a chip of unknown peak is compared with, in turn with the program that is measured: a change of the machine's
    speed then hits both.
    """
    sharding: Any = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    make = jax.jit(lambda: jnp.ones((mesh.size, SIZE, SIZE), dtype), out_shardings=sharding)
    a_NxKxK = make()
    product = jax.jit(lambda a: jnp.einsum("nij,njk->nik", a, a), out_shardings=sharding)
    jax.block_until_ready(product(a_NxKxK))

    def timed() -> float:
        start = time.perf_counter()
        jax.block_until_ready(product(a_NxKxK))
        return 2.0 * SIZE**3 * mesh.size / (time.perf_counter() - start)

    return timed


def peak_bytes(mesh: Mesh) -> int:
    """The most memory that was in use so far on any of this process's devices; on a CPU, by this process."""
    devices = mesh.local_devices
    stats = [device.memory_stats() or {} for device in devices]
    if devices[0].platform != "cpu" and all("peak_bytes_in_use" in one for one in stats):
        return max(one["peak_bytes_in_use"] for one in stats)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
