"""Devices of a slice that is not there: programs are compiled for them, and nothing can run on them."""

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from importlib import util

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from qrpo_jax.errors import UserError

# The names by which libtpu knows the chips, and examples of slices.
EXAMPLES = "v5e:2x4, v5p:2x4x4, v6e:8x8, tpu7x:4x4x4; v5p:4x4x8*2 is two slices of 4x4x8"
# libtpu would ask the metadata server of a cloud machine, and would hold the lock of chips that it does not use.
_WITHOUT_CHIPS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",  # of the absent host; any valid one
}


def open_topology(name: str) -> list[jax.Device]:
    """The devices of a TPU topology, to compile for; needs the package libtpu and no TPU.

    Args:
      name: chips and shape of a slice, and optionally a number of slices, such as "v5p:4x4x8" or "v6e:8x8*2".

    Raises:
      UserError: about "topology": a name that libtpu does not know, or libtpu is not installed.
    """
    match = re.fullmatch(r"([^*]+)(?:\*(\d+))?", name)
    slices = int(match.group(2) or 1) if match else 0
    if match is None or slices < 1:
        raise UserError(f"topology is {name!r}; examples: {EXAMPLES}", about="topology")
    if util.find_spec("libtpu") is None:
        message = f"topology {name!r} needs libtpu, which also runs without a TPU: pip install 'jax[tpu]'"
        raise UserError(message, about="topology")
    several = {"num_slices": slices} if slices > 1 else {}
    jax.devices()  # before XLA_FLAGS are hidden: jax reads them once, here at the latest
    with _environment():
        try:
            devices = topologies.get_topology_desc(match.group(1), "tpu", **several).devices
        except jax.errors.JaxRuntimeError as error:
            reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
            raise UserError(f"topology is {name!r}: {reason}; examples: {EXAMPLES}", about="topology") from None
        _read_flags(devices[0])
    return devices


@functools.cache
def _read_flags(device: jax.Device) -> None:
    """Lets libtpu read XLA_FLAGS, which it does once, with its first program, and aborts if it does not know one."""
    one = jax.ShapeDtypeStruct((), "float32", sharding=SingleDeviceSharding(device))
    jax.jit(lambda x: x).lower(one).compile()


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Environment variables for the time in which libtpu starts.

    XLA_FLAGS are hidden: they are for the devices at hand. Where jax could not find out about a host, it has written
    that into the variables, which libtpu would take for names.
    """
    before = {key: os.environ.pop(key, None) for key in (*_WITHOUT_CHIPS, "XLA_FLAGS")}
    os.environ.update(_WITHOUT_CHIPS)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
