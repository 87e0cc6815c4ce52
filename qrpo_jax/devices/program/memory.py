"""Memory that a compiled program needs on each device, and its largest arrays."""

import re
from typing import Any, NamedTuple

from qrpo_jax.devices.program.hlo import Module, Shape, executions


class Memory(NamedTuple):
    """Bytes on one device while the program runs.

    Attributes:
      arguments: inputs: parameters, optimizer state, the batch.
      outputs: results that do not take the place of an argument.
      aliased: results in the place of an argument that was donated; they are part of `arguments`.
      temporaries: everything in between, at its peak.
      code: the program itself.
      host: in the host's memory.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    host: int

    @property
    def total(self) -> int:
        """What must fit in the device's memory."""
        return self.arguments + self.outputs + self.temporaries + self.code

    def gigabytes(self) -> dict[str, float]:
        """In units of 10^9 bytes, with the total."""
        return {name: round(size / 1e9, 3) for name, size in [*self._asdict().items(), ("total", self.total)]}


def memory(compiled: Any) -> Memory:
    """Memory of a `jax.stages.Compiled`."""
    stats = compiled.memory_analysis()
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        host=stats.host_argument_size_in_bytes
        + stats.host_output_size_in_bytes
        - stats.host_alias_size_in_bytes
        + stats.host_temp_size_in_bytes,
    )


class LargeArray(NamedTuple):
    """An array that the program stores: its shape on one device, and the JAX operation that makes it."""

    shape: Shape
    source: str


def large_arrays(module: Module, elements: int) -> list[LargeArray]:
    """All arrays that the program stores and that have at least so many elements on one device, largest first.

    Arrays inside a fused computation are not stored and not listed.
    """
    steps, _ = executions(module)
    found = {
        LargeArray(shape, instruction.source)
        for name in steps
        for instruction in module.computations[name].instructions.values()
        for shape in instruction.shapes
        if shape.elements >= elements
    }
    return sorted(found, key=lambda one: (-one.shape.elements, str(one.shape), one.source))


def largest_allocations(message: str) -> list[str]:
    """The largest arrays in the compiler's out-of-memory message, as "10.5G f32[8,4096,128256] from jit(step)/dot".

    Returns:
      One line each, largest first as the compiler lists them; [] if the message lists none.
    """
    found = []
    for entry in re.split(r"\n\s*\d+\. Size: ", message)[1:]:
        size = entry.split("\n", 1)[0].strip()
        shape = re.search(r"Shape: (\w+\[[\d,]*\])", entry)
        operator = re.search(r'op_name="([^"]*)"', entry)
        found.append(
            " ".join([size, shape.group(1) if shape else "?", *([f"from {operator.group(1)}"] if operator else [])])
        )
    return found
