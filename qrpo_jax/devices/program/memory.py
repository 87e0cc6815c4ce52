"""Memory that a compiled program needs on each device, and its largest arrays."""

import re
from typing import Any, NamedTuple

from qrpo_jax.devices.program.hlo import Module, Shape, executions, parse


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


def largest_allocations(report: str, program: str, count: int = 8) -> tuple[int, list[str]]:
    """What takes most memory, from the compiler's report and the text of a program that is too large.

    Returns:
      All bytes, and the largest allocations, as "16.0GiB f32[64,4096,16384] from jit(step)/dot_general"; 0 and [] if
      the report says nothing.
    """
    device = report.split("Memory Space: ")[1] if "Memory Space: " in report else ""
    total = re.search(r"Total bytes: (\d+)", device)
    lines = re.findall(r";\s*([\d.]+)(\w*B);\s*\d+;\s*\d+; (?:\d+×)?\(?(\w+\[[\d,]*\])", device)
    units = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
    lines.sort(key=lambda line: -float(line[0]) * units.get(line[1], 1))
    sources = _sources(program)
    named = [
        f"{number}{unit} {shape}{f' from {sources[shape]}' if sources.get(shape) else ''}"
        for number, unit, shape in lines[:count]
    ]
    return int(total.group(1)) if total else 0, named


def _sources(program: str) -> dict[str, str]:
    """For each printed shape of a program an operation that makes an array of it."""
    if "ENTRY" not in program:
        return {}
    module = parse(program)
    found: dict[str, str] = {}
    for name in executions(module)[0]:
        for instruction in module.computations[name].instructions.values():
            for shape in instruction.shapes:
                if instruction.source and not found.get(str(shape)):
                    found[str(shape)] = instruction.source
    return found
