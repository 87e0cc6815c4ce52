"""How long a compiled program takes on a chip: the compiler's cycles, the bytes on the links, and what overlaps.

The compiler for TPUs prints an estimate of cycles with almost every instruction, which includes its reads and writes of
memory, and the order in which instructions run. This module walks through that order with one clock for the core, one
for the links inside of a slice and one for the network between slices. A collective that the core waits for adds its
time; one that runs beside other instructions adds what is left of it when its result is needed.

What the compiler does not estimate is filled in:

- Pallas kernels: FLOPs of attention from the shapes of queries and keys, at `KERNEL_SHARE` of what the matrix units do
  for that head size. A head smaller than a matrix unit leaves a part of it idle.
- any other instruction without an estimate, and all of them for CPU and GPU: the longer of its matrix products at the
  chip's peak and its bytes at the memory's bandwidth.
- collectives: bytes received over the links of all torus dimensions that the group spans, two links a dimension where
  it closes to a ring and one where it is a line, plus one microsecond a hop.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from qrpo_jax.devices.chips import Chip
from qrpo_jax.devices.program import hlo
from qrpo_jax.devices.program.collectives import Collective, collective, in_all, in_computation
from qrpo_jax.devices.program.hlo import FREE, Computation, Instruction, Module
from qrpo_jax.devices.program.links import seconds as link_seconds
from qrpo_jax.devices.program.matmuls import flops, has_matmul

# Share of the matrix units' rate that attention kernels reach, because exponentials and masks run between the products.
KERNEL_SHARE = 0.7
# Pairs of query and key for which a kernel computes a score in a causal row: half, and blocks on the diagonal whole.
CAUSAL = 0.55
# Instructions that only begin or end something, or whose cost is that of the computation they call.
_NOTHING = FREE | {"while", "conditional", "call", "copy-start", "copy-done", "send-done", "recv", "after-all"}
_ALLOCATIONS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "GatherScatterIndicesBitpacked")


class Cost(NamedTuple):
    """Seconds of the core for one instruction, of all its executions.

    Attributes:
      kind: "matmul", "kernel", "other" or "unestimated", which is what the compiler prints no cycles for.
    """

    seconds: float
    kind: str
    times: float
    name: str
    source: str


class StepTime(NamedTuple):
    """Seconds of one run of the program.

    Attributes:
      scheduled: with the overlap that the compiler has planned.
      overlapped: if all communication ran beside computation: the longest of the next three.
      serial: if none did: the sum of the next three.
      compute: of the core, with its memory.
      ici, dcn: of the links of a slice, and of the network between slices.
    """

    scheduled: float
    overlapped: float
    serial: float
    compute: float
    ici: float
    dcn: float


class _Clock:
    """Where the simulation is: the time of the core, and when each network is free again."""

    def __init__(self) -> None:
        self.now = 0.0
        self.free = {"ici": 0.0, "dcn": 0.0}
        self.busy = {"ici": 0.0, "dcn": 0.0}
        self.compute = 0.0
        self.pending: dict[str, float] = {}
        self.prepared: dict[str, list[Collective]] = {}

    def begin(self, network: str, duration: float) -> float:
        """Queues a transfer; returns when it ends."""
        self.free[network] = max(self.now, self.free[network]) + duration
        self.busy[network] += duration
        return self.free[network]


class Roofline:
    """Estimates for one program.

    Args:
      module: of the program.
      chip: that it was compiled for.
      devices: in the order of the program's mesh.
      visible: share of the pairs of a query and a key for which attention kernels compute a score: a little over 1/2
        for causal rows, and less where rows pack several sequences and the kernel skips blocks of others.
    """

    def __init__(self, module: Module, chip: Chip, devices: Sequence[Any], visible: float = CAUSAL) -> None:
        self.module, self.chip, self.devices, self.visible = module, chip, devices, visible

    def step_time(self) -> StepTime:
        """Seconds of one run."""
        clock = self._run(self.module.computations[self.module.entry])
        parts = (clock.compute, clock.busy["ici"], clock.busy["dcn"])
        return StepTime(clock.now, max(parts), sum(parts), *parts)

    def costs(self) -> list[Cost]:
        """Seconds of the core for each instruction, the longest first."""
        steps, _ = hlo.executions(self.module)
        found = []
        for name, times in steps.items():
            computation = self.module.computations[name]
            for one in computation.instructions.values():
                duration, kind = self.core_seconds(computation, one)
                if duration:
                    found.append(Cost(duration * times, kind, times, one.name, one.source))
        return sorted(found, reverse=True)

    def core_seconds(self, computation: Computation, instruction: Instruction) -> tuple[float, str]:
        """Seconds of the core for one execution of an instruction, and their kind as in `Cost`."""
        if computation.thread:
            return 0.0, "unestimated"
        cycles = instruction.number("estimated_cycles")
        callee = self.module.computations.get(hlo.called(instruction).get("fusion", ""))
        if cycles is not None and self.chip.clock:
            return cycles / self.chip.clock, "matmul" if callee and has_matmul(callee) else "other"
        opcode, target = instruction.opcode, instruction.attribute("custom_call_target") or ""
        if "tpu_custom_call" in target:
            # Passes over one layer's queries, such as that over shared prompts, share its visible pairs.
            kernels = [one.source for one in computation.instructions.values() if target in one.attributes]
            return self._kernel_seconds(computation, instruction) / kernels.count(instruction.source), "kernel"
        if opcode in _NOTHING or opcode.endswith(("-start", "-update", "-done")) or target.strip('"') in _ALLOCATIONS:
            return 0.0, "unestimated"
        if collective(computation, instruction, len(self.devices)) is not None or opcode == "send":
            return 0.0, "unestimated"
        if callee is not None and list(in_computation(callee, len(self.devices))):
            return 0.0, "unestimated"
        if _ends_collective(callee):
            return 0.0, "unestimated"
        return self._unestimated_seconds(computation, instruction, callee)

    def _unestimated_seconds(
        self, computation: Computation, instruction: Instruction, callee: Computation | None
    ) -> tuple[float, str]:
        products = flops(computation, instruction)
        if callee is not None:
            products += sum(flops(callee, one) for one in callee.instructions.values())
        operands = hlo.operand_shapes(computation, instruction)
        moved = instruction.bytes + sum(shape.bytes for shape in operands)
        if instruction.opcode == "dynamic-update-slice":  # in place: it reads and writes the tiles of what it puts in
            moved = 2 * operands[1].tiled_bytes
        duration = max(products / self.chip.bf16_flops, moved / self.chip.hbm_bandwidth)
        return duration, "matmul" if products else "unestimated"

    def _kernel_seconds(self, computation: Computation, instruction: Instruction) -> float:
        """Attention: queries [..., N, K] and keys [..., M, K] are the first two operands that end in the same K.

        The forward pass has two products a pair of query and key, the backward pass five: it computes scores again.
        With separate kernels the one for dQ has three and the one for dK and dV has four.

        Splash kernels take rows that are joined to one long one, and lists of the blocks to visit, int [1, I, W]: for
        each of I blocks of queries up to W blocks of keys. For dK and dV it is [1, U, J]: up to U blocks of queries
        for each of J blocks of keys.
        """
        shapes = hlo.operand_shapes(computation, instruction)
        heads = [one for one in shapes if len(one.dims) >= 3 and one.dtype in ("bf16", "f32", "f16")]
        found = [(q, k) for q, k in zip(heads, heads[1:], strict=False) if q.dims[-1] == k.dims[-1]]
        if not found:
            return self._unestimated_seconds(computation, instruction, None)[0]
        queries, keys = found[0]
        (length, size), key_length = queries.dims[-2:], keys.dims[-2]
        results = [one for one in instruction.shapes if one.dims[-1:] == (size,) and one.elements >= keys.elements]
        backward = re.search("dkv|dq|bwd|backward", instruction.name + instruction.source)
        products = 2 if not backward else {1: 3, 2: 4}.get(len(results), 5)
        pairs: float = length * key_length
        lists = [one.dims[1:] for one in shapes if one.dtype in ("s32", "s8", "s16") and one.dims[:-2] == (1,)]
        if lists and products < 4:
            blocks, visited = lists[0]
            pairs = min(pairs, length * visited * (length / blocks))
        elif lists:
            visited, blocks = lists[0]
            pairs = min(pairs, key_length * visited * (key_length / blocks))
        total = products * 2 * (queries.elements / length) * pairs * self.visible
        rate = self.chip.bf16_flops * KERNEL_SHARE * min(1.0, size / max(self.chip.matrix_size, 1))
        return total / rate

    def _run(self, computation: Computation) -> _Clock:
        clock = _Clock()
        for instruction in computation.instructions.values():
            for role, callee in hlo.called(instruction).items():
                if instruction.opcode != "async-start" and (role in ("body", "call") or role.startswith("branch")):
                    rounds = hlo.trip_count(self.module, computation, instruction) if role == "body" else 1
                    self._add(clock, self._run(self.module.computations[callee]), rounds or 1)
            self._step(clock, computation, instruction)
        # What a later round of a loop waits for keeps its network busy until then.
        clock.now = max(clock.now, *clock.busy.values())
        return clock

    def _add(self, clock: _Clock, inner: _Clock, rounds: int) -> None:
        clock.now = max(clock.now, *clock.free.values()) + inner.now * rounds
        clock.compute += inner.compute * rounds
        for network in clock.busy:
            clock.busy[network] += inner.busy[network] * rounds
            clock.free[network] = clock.now

    def _step(self, clock: _Clock, computation: Computation, instruction: Instruction) -> None:
        """Moves the clock over one instruction."""
        if instruction.opcode.startswith("async-"):
            self._step_beside(clock, instruction)
            return
        callee = self.module.computations.get(hlo.called(instruction).get("fusion", ""))
        inner = list(in_computation(callee, len(self.devices))) if callee is not None else []
        own = collective(computation, instruction, len(self.devices))
        for one in [*inner, *([own] if own is not None else [])]:
            network, duration = link_seconds(one, self.chip, self.devices)
            ends = clock.begin(network, duration)
            if one.hidden:
                for key in self._keys(instruction, callee):
                    clock.pending[key] = ends
            else:
                clock.now = ends
        if not inner and own is None:
            for key in self._waits(instruction, callee):
                clock.now = max(clock.now, clock.pending.pop(key, 0.0))
        duration, _ = self.core_seconds(computation, instruction)
        clock.now += duration
        clock.compute += duration

    def _step_beside(self, clock: _Clock, instruction: Instruction) -> None:
        """Moves the clock over the beginning, "async-start", or the end, "async-done", of what another thread does.

        Where it begins without operands, it is only prepared, and an "async-update" with operands begins it.
        """
        if instruction.opcode == "async-start":
            callee = self.module.computations.get(hlo.called(instruction)["call"])
            clock.prepared[instruction.name] = in_all(self.module, callee, len(self.devices)) if callee else []
        begun = instruction.name if instruction.opcode == "async-start" and instruction.operands else ""
        if instruction.opcode == "async-update":
            begun = instruction.operands[0]
        ends = clock.pending.pop(instruction.operands[0], clock.now) if instruction.operands else clock.now
        for one in clock.prepared.pop(begun, []):
            ends = max(ends, clock.begin(*link_seconds(one, self.chip, self.devices)))
        if instruction.opcode == "async-done":
            clock.now = max(clock.now, ends)
        else:
            clock.pending[instruction.name] = ends

    @staticmethod
    def _keys(instruction: Instruction, callee: Computation | None) -> list[str]:
        """Names under which what an instruction begins is waited for."""
        rendezvous = re.search(r'rendezvous="([^"]*)"', instruction.attributes)
        channels = [f"channel {one.attribute('channel_id')}" for one in _collectives(callee)]
        return [instruction.name, *([rendezvous.group(1)] if rendezvous else []), *channels]

    @staticmethod
    def _waits(instruction: Instruction, callee: Computation | None) -> list[str]:
        """Names of what must have ended before an instruction ends."""
        if instruction.opcode == "recv-done":
            rendezvous = re.search(r'rendezvous="([^"]*)"', instruction.attributes)
            return [rendezvous.group(1)] if rendezvous else []
        if instruction.opcode.endswith("-done"):
            return list(instruction.operands[:1])
        if _ends_collective(callee):
            return [f"channel {one.attribute('channel_id')}" for one in _collectives(callee)]
        return []


def _ends_collective(computation: Computation | None) -> bool:
    """Whether a fusion is the end of a collective that another fusion began."""
    instructions = computation.instructions.values() if computation is not None else ()
    return any(one.attribute("custom_call_target") == '"AsyncCollectiveDone"' for one in instructions)


def _collectives(computation: Computation | None) -> list[Instruction]:
    instructions = computation.instructions.values() if computation is not None else ()
    return [one for one in instructions if one.attribute("channel_id")]
