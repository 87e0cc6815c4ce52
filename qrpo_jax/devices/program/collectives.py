"""Communication of a compiled program: what each device receives from others, how often, and over which network."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.devices.program.hlo import Computation, Instruction, Module, Shape, called, executions, operand_shapes

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "collective-broadcast")
# Transfers between slices are printed as sends to the host, with the collective that the runtime makes of them.
_BETWEEN_SLICES = "_xla_megascale_transfer_type"


class Collective(NamedTuple):
    """One communication of the program.

    Attributes:
      kind: "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute" or "collective-broadcast".
      bytes: what a device receives in one execution by the best algorithm for a ring, with n devices in a group and P
        bytes of the whole array of a device: P (n - 1) / n, twice that for an all-reduce, P for a permute.
      times: executions in one run of the program.
      members: devices of one of its groups, or the two ends of a permute's longest hop, by their place in the program.
      slices: it is between slices, over the data-centre network, whatever its members are.
      hidden: it is asynchronous, so that other work may overlap with it.
      source: the JAX operation.
    """

    kind: str
    shapes: tuple[Shape, ...]
    bytes: float
    times: float
    members: tuple[int, ...]
    slices: bool
    hidden: bool
    source: str


def collectives(module: Module, devices: int) -> list[Collective]:
    """All communication of a program.

    Args:
      devices: number of devices that the program runs on.
    """
    steps, fused = executions(module)
    found = []
    for name, times in [*steps.items(), *fused.items()]:
        computation = module.computations[name]
        found += [one._replace(times=times) for one in in_computation(computation, devices)]
    return found


def in_computation(computation: Computation, devices: int) -> Iterator[Collective]:
    """The communication of one execution of a computation, without that of computations that it calls."""
    for instruction in computation.instructions.values():
        one = collective(computation, instruction, devices)
        if one is not None:
            yield one


def in_all(module: Module, computation: Computation, devices: int) -> list[Collective]:
    """The communication of one execution of a computation and of all that it calls once."""
    found = list(in_computation(computation, devices))
    for instruction in computation.instructions.values():
        for callee in called(instruction).values():
            if callee in module.computations:
                found += in_all(module, module.computations[callee], devices)
    return found


def collective(computation: Computation, instruction: Instruction, devices: int) -> Collective | None:
    """The communication that an instruction begins, if any."""
    if instruction.opcode == "send" and _BETWEEN_SLICES in instruction.attributes:
        return _between_slices(instruction)
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    role = _role(computation, instruction)
    if role == "continued":
        return None
    given = operand_shapes(computation, instruction)
    if kind == "collective-permute":
        members, size = _longest_hop(instruction), 2
    else:
        members = tuple(replica_groups(instruction.attributes, devices)[0])
        size = len(members)
    payload = sum(shape.bytes for shape in given)
    if kind == "all-reduce" and _scatters(computation, instruction):
        kind = "reduce-scatter"
    received = {
        "all-gather": payload * (size - 1),
        "reduce-scatter": payload * (size - 1) / size,
        "all-reduce": 2 * payload * (size - 1) / size,
        "all-to-all": payload * (size - 1) / size,
        "collective-permute": payload,
        "collective-broadcast": payload,
    }[kind]
    hidden = role == "begun" or instruction.opcode.endswith("-start") or bool(computation.thread)
    return Collective(kind, given, received, 1.0, members, False, hidden, instruction.source)


def _role(computation: Computation, instruction: Instruction) -> str:
    """Whether a fusion does this collective at once ("whole"), begins it, or continues one that another began.

    The TPU compiler spreads one collective over several fusions, and prints it in each of them.
    """
    users = [one for one in computation.instructions.values() if instruction.name in one.operands]
    targets = {target for one in users if (target := one.attribute("custom_call_target"))}
    if '"AsyncCollectiveStart"' in targets:
        return "begun"
    spread = '"AsyncCollectiveDone"' in targets or "async_collective_fusion_config" in instruction.attributes
    return "continued" if spread else "whole"


def _scatters(computation: Computation, instruction: Instruction) -> bool:
    """Whether each device keeps only its part of an all-reduce: the TPU's form of a reduce-scatter."""
    return computation.name.startswith("all-reduce-scatter")


def _longest_hop(instruction: Instruction) -> tuple[int, ...]:
    listed = re.search(r"source_target_pairs=\{(.*?\})\}", instruction.attributes)
    pairs = [tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)\}", listed.group(1) if listed else "")]
    return max(pairs, key=lambda pair: abs(pair[0] - pair[1])) if pairs else (0,)


def _between_slices(instruction: Instruction) -> Collective:
    """A send to the host, whose shape is the part of the array that this device gives to the other slices' devices."""
    kind = re.search(rf"{_BETWEEN_SLICES}=\"(\w+)\"", instruction.attributes)
    target = re.search(r"_xla_megascale_target=\"\{([\d,:]*)\}", instruction.attributes)
    slices = len(_numbers(target.group(1))) if target else 2
    payload = instruction.shapes[0].bytes
    name = kind.group(1).lower().replace("_", "-") if kind else "collective-permute"
    received = payload * {"all-reduce": 2 * (slices - 1) / slices, "all-gather": slices - 1}.get(name, 1.0)
    members = tuple(range(slices))
    return Collective(name, instruction.shapes[:1], received, 1.0, members, True, True, instruction.source)


def _numbers(text: str) -> list[int]:
    """The numbers of "1,2" or "0:3"."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition(":")
        found += range(int(first), int(last or first) + 1) if first else []
    return found


def replica_groups(attributes: str, devices: int) -> list[list[int]]:
    """Groups of devices that communicate, in any of the three notations of HLO.

    >>> replica_groups("replica_groups={{0,2},{1,3}}", 4)
    [[0, 2], [1, 3]]
    >>> replica_groups("replica_groups=[2,2]<=[2,2]T(1,0)", 4)
    [[0, 2], [1, 3]]
    >>> replica_groups("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}", 4)
    [[0, 2], [1, 3]]
    """
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, dims = _ints(iota.group(1)), _ints(iota.group(2))
        ids = np.arange(math.prod(dims)).reshape(dims)
        order = _ints(iota.group(3)) if iota.group(3) else list(range(len(dims)))
        return ids.transpose(order).reshape(shape).tolist()
    mesh = re.search(
        r"replica_groups=(?:@?\w*)?mesh\['([^\]]*)\](?:, device_ids=\(?\[[^\]]*\]\)?)? \{([^}]*)\}", attributes
    )
    if mesh:
        return _mesh_groups(f"'{mesh.group(1)}", mesh.group(2))
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes)
    groups = [_ints(group) for group in re.findall(r"\{([\d,]+)\}", listed.group(1))] if listed else []
    return groups or [list(range(devices))]


def _mesh_groups(mesh: str, axes: str) -> list[list[int]]:
    """Groups along some axes of a mesh; an axis such as "'axis_0':(2)4" is a part of one."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    # Each axis is cut into parts (before, chosen, after), so that a part of an axis can be moved like an axis.
    parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    chosen = {name: (int(before or 1), int(size or sizes[name])) for name, before, size in parts}
    shape: list[int] = []
    moved: dict[str, int] = {}
    for name, size in sizes.items():
        before, picked = chosen.get(name, (size, 1))
        moved[name] = len(shape) + 1
        shape += [before, picked, size // (before * picked)]
    ids = np.arange(math.prod(shape)).reshape(shape)
    last = [moved[name] for name, _, _ in parts]
    order = [axis for axis in range(len(shape)) if axis not in last] + last
    group = math.prod(size for _, size in chosen.values())
    return ids.transpose(order).reshape(-1, group).tolist()


def _ints(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def crosses_slices(one: Collective, devices: Sequence[Any]) -> bool:
    """Whether a collective uses the data-centre network."""
    slices = {getattr(devices[member], "slice_index", 0) for member in one.members} if not one.slices else {0, 1}
    return len(slices) > 1
