"""Compilation for devices that need not be there, with the compiler's messages about memory read."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from qrpo_jax.devices.program.memory import largest_allocations

# What the TPU compiler writes down: the last form of a program, scheduled and with estimates of cycles; the arrays of
# a program by size; and the form of a program that turned out too large.
_FINAL = "*.after_codegen.txt"
_MEMORY = "*memory-usage-report.txt"
_TOO_LARGE = "*.oom_intermediate_module.txt"


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
    def of_dump(cls, message: str, folder: Path) -> "DoesNotFitError":
        """The error that the TPU compiler reports, with what it has written down about it."""
        limit = re.search(r"exceeds available \w+ \(([\d.]+)([KMGT]?)\)", message)
        available = _bytes(*limit.groups()) if limit else 0
        report, program = (_newest(folder, pattern) for pattern in (_MEMORY, _TOO_LARGE))
        total, largest = largest_allocations(report, program)
        return cls(total, available, largest)


def compile_program(lowered: Any, platform: str, options: Mapping[str, str] | None = None) -> Program:
    """Compiles a `jax.stages.Lowered`.

    Args:
      platform: of its devices: "tpu", "gpu" or "cpu".
      options: of the compiler, besides those that the function was jitted with.

    Raises:
      DoesNotFitError: it needs more memory than a device has.
    """
    options = dict(options or {})
    if platform != "tpu":
        compiled = lowered.compile(compiler_options=options)
        return Program(compiled, compiled.as_text())
    # jax cannot print every TPU program: work of the sparse cores is one that it cannot. The compiler can.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            compiled = lowered.compile(compiler_options={**options, "xla_dump_to": name})
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise DoesNotFitError.of_dump(str(error), folder) from None
        return Program(compiled, _newest(folder, _FINAL))


def _newest(folder: Path, pattern: str) -> str:
    """The text of the last file that was written; "" if there is none."""
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
    return found[-1].read_text(encoding="utf-8") if found else ""


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * 1024.0 ** " KMGT".index(unit or " "))
