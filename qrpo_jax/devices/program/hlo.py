"""The text of a compiled program (HLO), parsed into computations and instructions, and how often each of them runs.

`jax.stages.Compiled.as_text()` prints it. The grammar is that of XLA's `HloParser`; only what the other modules of this
folder need is read, and what is not understood is kept as text.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

BITS = {"pred": 8, "token": 0, "opaque": 0, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "bf16": 16, "c64": 64, "c128": 128}
UNKNOWN = 2**63 - 1  # as the compiler writes an estimate that it does not have
# Instructions that move no data: they rename, group or allocate.
FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id")
)


class Shape(NamedTuple):
    """One array: its element type such as "bf16", and its dimensions on one device."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Without padding of tiled layouts."""
        return self.elements * _bits(self.dtype) / 8

    @property
    def tiled_bytes(self) -> float:
        """In whole tiles of the last two dimensions: 128 numbers, and 8 rows of 32 bits or as many narrower ones."""
        *outer, rows, lanes = (1, 1, *self.dims)
        height = 8 * max(1, int(32 // _bits(self.dtype)))
        return math.prod(outer) * (-(-rows // height) * height) * (-(-lanes // 128) * 128) * _bits(self.dtype) / 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


class Instruction(NamedTuple):
    """One instruction of a computation.

    Attributes:
      shapes: of its result; several for a tuple, nested tuples flattened.
      operands: names of instructions of the same computation; for a constant its value.
      attributes: the text after the operands.
    """

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def attribute(self, name: str) -> str | None:
        """The value of an attribute such as "channel_id", up to the next comma; None if it is absent."""
        found = re.search(rf"(?:^|, ){name}=([^,\s]+)", self.attributes)
        return found.group(1) if found else None

    def number(self, name: str) -> int | None:
        """A number in the compiler's notes, such as `"estimated_cycles":"123"`; None if it is absent or unknown."""
        found = re.search(rf'"{name}":"?(-?\d+)"?', self.attributes)
        return int(found.group(1)) if found and int(found.group(1)) != UNKNOWN else None

    @property
    def source(self) -> str:
        """The JAX operation that it comes from, such as "jit(step)/while/body/dot_general"; "" if unknown."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    @property
    def bytes(self) -> float:
        return sum(shape.bytes for shape in self.shapes)


class Computation(NamedTuple):
    """Instructions in the order in which they run, by name.

    Attributes:
      thread: of the device, such as "sparsecore", that runs it beside the main one; "" for the main one.
    """

    name: str
    instructions: dict[str, Instruction]
    thread: str = ""

    @property
    def root(self) -> Instruction:
        return next(one for one in self.instructions.values() if one.root)


class Module(NamedTuple):
    """All computations of a program by name, and the name of the one that runs first."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Reads the text of a compiled program.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = None, None
    for line in _logical_lines(text):
        header = re.match(r"(ENTRY )?%?([^\s(]+) \(.*\{$", line)
        if header and not line.startswith(" "):
            current = Computation(header.group(2), {})
            computations[current.name] = current
            entry = current.name if header.group(1) else entry
        elif current is not None and line.startswith(" ") and " = " in line:
            instruction = _instruction(line.strip())
            current.instructions[instruction.name] = instruction
        elif current is not None and (thread := re.match(r'\}, execution_thread="([^"]*)"', line)):
            computations[current.name] = current._replace(thread=thread.group(1).replace("main", ""))
    if entry is None:
        raise ValueError("the text of the program has no ENTRY computation")
    return Module(computations, entry)


def called(instruction: Instruction) -> dict[str, str]:
    """Computations that an instruction runs, by role: body, condition, fusion, call or branch."""
    found: dict[str, str] = {}
    if instruction.opcode == "while":
        for role in ("body", "condition"):
            found[role] = (instruction.attribute(role) or "").lstrip("%")
    elif instruction.opcode in ("fusion", "async-start"):
        found["fusion" if instruction.opcode == "fusion" else "call"] = (instruction.attribute("calls") or "").lstrip(
            "%"
        )
    elif instruction.opcode == "call":
        found["call"] = (instruction.attribute("to_apply") or "").lstrip("%")
    elif instruction.opcode == "custom-call":
        listed = re.search(r"called_computations=\{%?([^},]*)", instruction.attributes)
        found |= {"call": listed.group(1)} if listed else {}
    elif instruction.opcode == "conditional":
        names = re.findall(r"(?:true_computation|false_computation)=%?([^,\s]+)", instruction.attributes)
        listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
        names += [name.strip().lstrip("%") for name in listed.group(1).split(",")] if listed else []
        found |= {f"branch {index}": name for index, name in enumerate(names)}
    return found


def executions(module: Module) -> tuple[dict[str, float], dict[str, float]]:
    """How often one run of the program runs each computation.

    Every branch of a conditional is counted once. A loop whose number of rounds cannot be read is counted as one round.

    Returns:
      Counts of the computations whose instructions the device runs one after another, and counts of those that are
      fused into one instruction, or that another thread of the device runs beside.
    """
    steps: dict[str, float] = defaultdict(float)
    fused: dict[str, float] = defaultdict(float)

    def visit(name: str, times: float, into: dict[str, float]) -> None:
        into[name] += times
        for instruction in module.computations[name].instructions.values():
            for role, callee in called(instruction).items():
                if callee not in module.computations:
                    continue
                rounds = trip_count(module, module.computations[name], instruction) or 1
                if role == "fusion" or instruction.opcode == "async-start":
                    visit(callee, times, fused)
                elif role == "body":
                    visit(callee, times * rounds, into)
                elif role == "condition":
                    visit(callee, times * (rounds + 1), into)
                else:
                    visit(callee, times, into)

    visit(module.entry, 1.0, steps)
    return dict(steps), dict(fused)


def trip_count(module: Module, caller: Computation, loop: Instruction) -> int | None:
    """Rounds of a while loop: as the compiler notes them, or read from its condition; None if neither says.

    A condition such as `i < 16 and not all finished` gives 16, the most that it can be.
    """
    if loop.opcode != "while":
        return None
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if noted:
        return int(noted.group(1))
    condition = module.computations.get((loop.attribute("condition") or "").lstrip("%"))
    if condition is None:
        return None
    limits = [limit for limit in _limits(module, condition) if limit is not None]
    if not limits:
        return None
    limit, index = min(limits)
    return max(limit - _start(caller, loop, index), 0)


def _limits(module: Module, condition: Computation) -> Iterator[tuple[int, int | None]]:
    """Each constant that the condition compares a loop variable with, and the variable's index in the loop's state."""
    names = [condition.name, *(n for i in condition.instructions.values() for n in called(i).values())]
    for name in names:
        computation = module.computations.get(name)
        if computation is None:
            continue
        for one in computation.instructions.values():
            if one.opcode != "compare" or one.attribute("direction") not in ("LT", "GT", "LE", "GE"):
                continue
            left, right = (_through(module, condition, computation, operand) for operand in one.operands)
            if one.attribute("direction") in ("GT", "GE"):
                left, right = right, left
            if right.opcode == "constant" and left.opcode != "constant" and right.operands[0].lstrip("-").isdigit():
                more = one.attribute("direction") in ("LE", "GE")
                index = left.attribute("index") if left.opcode == "get-tuple-element" else None
                yield int(right.operands[0]) + more, int(index) if index is not None else None


def _through(module: Module, condition: Computation, computation: Computation, name: str) -> Instruction:
    """The instruction of that name; for a parameter of a fused computation, what the condition passes to it."""
    found = computation.instructions[name]
    if found.opcode == "parameter" and computation.name != condition.name:
        for one in condition.instructions.values():
            if computation.name in called(one).values():
                return condition.instructions[one.operands[int(found.operands[0])]]
    return found


def _start(caller: Computation, loop: Instruction, index: int | None) -> int:
    """The value with which a loop variable starts; 0 if it is not a constant."""
    if index is None:
        return 0
    value = caller.instructions.get(loop.operands[0])
    if value is None or value.opcode != "tuple" or index >= len(value.operands):
        return 0
    value = caller.instructions.get(value.operands[index])
    while value is not None and value.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
        value = caller.instructions.get(value.operands[0])
    known = value is not None and value.opcode == "constant" and value.operands[0].lstrip("-").isdigit()
    return int(value.operands[0]) if known and value is not None else 0


def _logical_lines(text: str) -> Iterator[str]:
    """Lines of the text; an instruction whose attributes hold line breaks becomes one line."""
    pending = ""
    for line in text.splitlines():
        starts = re.match(
            r"\s+(ROOT )?%?[\w.\-]+ = |\}(, execution_thread=.*)?$|(ENTRY )?%?[\w.\-]+ \(|HloModule|$", line
        )
        if starts and pending:
            yield pending
            pending = ""
        pending = f"{pending} {line.strip()}" if pending and not starts else line
    if pending:
        yield pending


def _instruction(line: str) -> Instruction:
    root = line.startswith("ROOT ")
    name, rest = line.removeprefix("ROOT ").split(" = ", 1)
    rest = re.sub(r"/\*index=\d+\*/", "", rest)
    end = _balanced(rest, 0)
    opcode, rest_after = rest[end:].strip().split("(", 1)
    close = _balanced(f"({rest_after}", 0, stop=None)
    inside, attributes = rest_after[: close - 2], rest_after[close - 1 :].lstrip(", ")
    operands = (inside,) if opcode in ("constant", "parameter") else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name.lstrip("%"), shapes_of(rest[:end]), opcode, operands, attributes, root)


def _balanced(text: str, start: int, stop: str | None = " ") -> int:
    """The end of the bracketed text at `start`; with `stop`, the first such character outside of brackets."""
    depth = 0
    for index in range(start, len(text)):
        character = text[index]
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0 and stop is None:
                return index + 1
        elif character == stop and depth == 0:
            return index
    return len(text)


def shapes_of(text: str) -> tuple[Shape, ...]:
    """All arrays of a printed type such as "(f32[2,3]{1,0}, s32[])".

    >>> [str(shape) for shape in shapes_of("(f32[2,3]{1,0:T(8,128)}, (s32[], bf16[5]))")]
    ['f32[2,3]', 's32[]', 'bf16[5]']
    """
    found = re.findall(r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\]", text)
    return tuple(Shape(kind, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)) for kind, dims in found)


def operand_shapes(computation: Computation, instruction: Instruction) -> tuple[Shape, ...]:
    """Shapes of all operands."""
    known: Mapping[str, Instruction] = computation.instructions
    return tuple(shape for name in instruction.operands if name in known for shape in known[name].shapes)


def _bits(dtype: str) -> int:
    if dtype in BITS:
        return BITS[dtype]
    digits = re.search(r"\d+", dtype)
    return int(digits.group()) if digits else 0
