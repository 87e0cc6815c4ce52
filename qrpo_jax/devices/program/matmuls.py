"""FLOPs of the matrix products that a compiled program executes, recomputation and padding included."""

import math
import re

import numpy as np

from qrpo_jax.devices.program.hlo import Computation, Instruction, Module, executions


def matmul_flops(module: Module) -> float:
    """FLOPs of all matrix products of one run on one device. Kernels that XLA does not see into count as 0."""
    steps, fused = executions(module)
    total = 0.0
    for name, times in [*steps.items(), *fused.items()]:
        computation = module.computations[name]
        total += times * sum(flops(computation, one) for one in computation.instructions.values())
    return total


def has_matmul(computation: Computation) -> bool:
    return any(one.opcode in ("dot", "convolution") for one in computation.instructions.values())


def flops(computation: Computation, instruction: Instruction) -> float:
    """2 m n k of a matrix product, in either form in which XLA has it; 0 for other instructions."""
    if instruction.opcode == "dot":
        left = computation.instructions[instruction.operands[0]].shapes[0]
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        axes = [int(axis) for axis in contracted.group(1).split(",") if axis] if contracted else []
        return 2.0 * instruction.shapes[0].elements * math.prod(left.dims[axis] for axis in axes)
    if instruction.opcode == "convolution":
        return _convolution_flops(computation, instruction)
    return 0.0


def _convolution_flops(computation: Computation, instruction: Instruction) -> float:
    """The TPU compiler turns products into convolutions: batch axes become windows in which most places are holes."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        return 0.0
    sizes = [
        dict(zip(axes, shape, strict=True))
        for axes, shape in zip(
            labels.groups(),
            (
                computation.instructions[instruction.operands[0]].shapes[0].dims,
                computation.instructions[instruction.operands[1]].shapes[0].dims,
                instruction.shapes[0].dims,
            ),
            strict=True,
        )
    ]
    given, kernel, out = sizes
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    options = dict(re.findall(r"(\w+)=([\dx_\-]+)", window.group(1))) if window else {}
    spatial = sorted(axis for axis in out if axis.isdigit())
    products = 1
    for place, axis in enumerate(spatial):

        def option(name: str, default: str, place: int = place) -> str:
            return options[name].split("x")[place] if name in options else default

        products *= _products(
            given[axis],
            kernel[axis],
            out[axis],
            stride=int(option("stride", "1")),
            before=int(option("pad", "0_0").split("_")[0]),
            holes=int(option("lhs_dilate", "1")),
            spread=int(option("rhs_dilate", "1")),
        )
    return 2.0 * out["b"] * out["f"] * kernel["i"] * products


def _products(given: int, kernel: int, out: int, *, stride: int, before: int, holes: int, spread: int) -> int:
    """Pairs of an output and a kernel position that read an input, neither padding nor a hole between inputs."""
    read_OxK = np.arange(out)[:, None] * stride - before + np.arange(kernel)[None] * spread
    inside = (read_OxK >= 0) & (read_OxK <= (given - 1) * holes) & (read_OxK % holes == 0)
    return int(inside.sum())
