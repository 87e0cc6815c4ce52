"""Everything that this folder reads from one compiled program, as one record."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from qrpo_jax.devices.chips import Chip, chip_of
from qrpo_jax.devices.program import hlo
from qrpo_jax.devices.program.collectives import Collective, collectives
from qrpo_jax.devices.program.compilation import Program
from qrpo_jax.devices.program.links import seconds as link_seconds
from qrpo_jax.devices.program.matmuls import matmul_flops
from qrpo_jax.devices.program.memory import LargeArray, Memory, large_arrays, memory
from qrpo_jax.devices.program.roofline import CAUSAL, Cost, Roofline, StepTime


class Traffic(NamedTuple):
    """What a device receives in one run through one kind of collective on one network.

    Attributes:
      network: "ici" (links of a slice or a host) or "dcn".
      calls: executions.
      hidden: bytes of asynchronous collectives, with which other work may overlap.
      seconds: on an idle network.
    """

    kind: str
    network: str
    calls: float
    bytes: float
    hidden: float
    seconds: float


class Analysis(NamedTuple):
    """One compiled program on one kind of chip; all figures are those of one device.

    Attributes:
      executed_flops: of the matrix products that the program executes, with recomputation and without kernels.
      costs: seconds of the core by instruction, longest first.
    """

    chip: Chip
    devices: int
    memory: Memory
    time: StepTime
    traffic: list[Traffic]
    executed_flops: float
    costs: list[Cost]
    module: hlo.Module

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.chip.hbm_bytes

    def mfu(self, useful_flops: float, seconds: float | None = None) -> float:
        """Share of the peak of all devices that `useful_flops` of one run need.

        Args:
          seconds: of one run; by default with the overlap that the compiler planned.
        """
        return useful_flops / (self.devices * self.chip.bf16_flops * (seconds or self.time.scheduled))

    def received(self, network: str) -> float:
        """Bytes that a device receives in one run over "ici" or "dcn"."""
        return sum(one.bytes for one in self.traffic if one.network == network)

    def seconds_by_kind(self) -> dict[str, float]:
        """Seconds of the core by kind of instruction, see `Cost`."""
        total: dict[str, float] = defaultdict(float)
        for cost in self.costs:
            total[cost.kind] += cost.seconds
        return dict(total)

    def large_arrays(self, elements: int) -> list[LargeArray]:
        """Arrays that the program stores and that have at least so many elements on one device."""
        return large_arrays(self.module, elements)


def analyse(program: Program, devices: Sequence[Any], *, visible: float = CAUSAL, chip: Chip | None = None) -> Analysis:
    """Reads a compiled program.

    Args:
      program: from `compile_program`.
      devices: that it was compiled for, in the order of its mesh: `mesh.devices.flatten()`.
      visible: see `Roofline`.
      chip: of the devices (default: `chip_of`).

    Raises:
      UserError: about "device": the chip's peaks are not known.
    """
    chip = chip or chip_of(devices[0])
    module = hlo.parse(program.text)
    roofline = Roofline(module, chip, devices, visible)
    return Analysis(
        chip,
        len(devices),
        memory(program.compiled),
        roofline.step_time(),
        traffic(collectives(module, len(devices)), chip, devices),
        matmul_flops(module),
        roofline.costs(),
        module,
    )


def traffic(found: Sequence[Collective], chip: Chip, devices: Sequence[Any]) -> list[Traffic]:
    """Collectives summed by kind and network, most bytes first."""
    sums: dict[tuple[str, str], Traffic] = {}
    for one in found:
        network, seconds = link_seconds(one, chip, devices)
        so_far = sums.get((one.kind, network), Traffic(one.kind, network, 0.0, 0.0, 0.0, 0.0))
        received = one.bytes * one.times
        sums[one.kind, network] = so_far._replace(
            calls=so_far.calls + one.times,
            bytes=so_far.bytes + received,
            hidden=so_far.hidden + received * one.hidden,
            seconds=so_far.seconds + seconds * one.times,
        )
    return sorted(sums.values(), key=lambda one: -one.bytes)
