"""Compilation for devices that need not be there, with the compiler's messages about memory read."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from qrpo_jax.devices.program.memory import largest_allocations

# The last form of a program that the TPU compiler writes down: scheduled, with estimates of cycles.
_FINAL = "*.after_codegen.txt"


class Program(NamedTuple):
    """A compiled program and its text."""

    compiled: Any
    text: str


class DoesNotFitError(Exception):
    """A program needs more memory than a device has.

    Attributes:
      needed, available: bytes on one device, if the compiler says; else 0.
      largest: its largest arrays, as `largest_allocations` lists them.
    """

    def __init__(self, needed: float, available: float, largest: list[str]) -> None:
        self.needed, self.available, self.largest = needed, available, largest
        memory = f"needs {needed / 1e9:.1f} GB of {available / 1e9:.1f} GB a device" if needed else "is too large"
        super().__init__(memory + (f"; largest arrays: {', '.join(largest[:3])}" if largest else ""))

    @classmethod
    def of_message(cls, message: str) -> "DoesNotFitError":
        """The error that the TPU compiler's message is about."""
        used = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message)
        sizes = (_bytes(*used.group(1, 2)), _bytes(*used.group(3, 4))) if used else (0, 0)
        return cls(*sizes, largest_allocations(message))


def compile_program(lowered: Any, platform: str, options: Mapping[str, str] | None = None) -> Program:
    """Compiles a `jax.stages.Lowered`.

    Args:
      platform: of its devices: "tpu", "gpu" or "cpu".
      options: of the compiler, besides those that the function was jitted with.

    Raises:
      DoesNotFitError: it needs more memory than a device has.
    """
    try:
        if platform != "tpu":
            compiled = lowered.compile(compiler_options=dict(options or {}))
            return Program(compiled, compiled.as_text())
        # jax cannot print every TPU program: work of the sparse cores is one that it cannot. The compiler can.
        with tempfile.TemporaryDirectory() as folder:
            compiled = lowered.compile(compiler_options={**(options or {}), "xla_dump_to": folder})
            return Program(compiled, next(Path(folder).glob(_FINAL)).read_text(encoding="utf-8"))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFitError.of_message(str(error)) from None


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * 1024.0 ** " KMGT".index(unit or " "))
