"""Times a compiled program as its stage runs it: compilation, the loop with the host's work, and the devices alone."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np


class Load(NamedTuple):
    """One call of a program.

    Attributes:
      inputs: on the host.
      tokens: that it processes or samples, without padding; a prompt counts once for each of its completions.
      flops: that it must compute, see `model.flops`.
    """

    inputs: Any
    tokens: int
    flops: float


class Program(NamedTuple):
    """A program and what it is given.

    Attributes:
      compile: compiles it.
      loads: its calls, endless.
      place: puts the inputs of a call onto the devices.
      call: starts a call and returns what the host reads of its result.
    """

    compile: Callable[[], None]
    loads: Iterator[Load]
    place: Callable[[Any], Any]
    call: Callable[[Any], Any]


class Timing(NamedTuple):
    """Medians over rounds.

    Attributes:
      compile_seconds: tracing and compiling.
      seconds: a call in the loop of its stage.
      tokens, flops: of a call in the loop, on average.
      tokens_per_second: in the loop.
      flops_per_second: in the loop, on all devices together.
      device_flops_per_second: of a call whose inputs are on the devices already.
      peak_flops: median of the products measured in turn with the calls; NaN without.
    """

    compile_seconds: float
    seconds: float
    tokens: float
    flops: float
    tokens_per_second: float
    flops_per_second: float
    device_flops_per_second: float
    peak_flops: float

    @property
    def host_share(self) -> float:
        """Share of the loop's time in which the devices wait for the host."""
        return max(0.0, 1.0 - self.flops_per_second / self.device_flops_per_second)


def measure(program: Program, *, rounds: int, calls: int, product: Callable[[], float] | None) -> Timing:
    """Times a program in rounds: a matrix product, one call alone, `calls` calls in a loop.

    The loop reads the result of each call when the next one is dispatched, as the training loop does.

    Args:
      product: see `devices.peaks.matrix_product`; None where the peak is published.
    """
    start = time.perf_counter()
    program.compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(program.call(program.place(next(program.loads).inputs)))
    peaks, alone, loops, loads = [], [], [], []
    for _ in range(rounds):
        peaks.append(product() if product else np.nan)
        load = next(program.loads)
        inputs = jax.block_until_ready(program.place(load.inputs))
        start = time.perf_counter()
        jax.block_until_ready(program.call(inputs))
        alone.append(load.flops / (time.perf_counter() - start))
        seconds, some = _loop(program, calls)
        loops.append(seconds)
        loads.append(some)
    tokens, flops = (
        np.asarray([[getattr(load, name) for load in some] for some in loads], float) for name in ("tokens", "flops")
    )
    return Timing(
        compile_seconds=compile_seconds,
        seconds=float(np.median(loops)) / calls,
        tokens=float(tokens.mean()),
        flops=float(flops.mean()),
        tokens_per_second=float(np.median(tokens.sum(axis=1) / loops)),
        flops_per_second=float(np.median(flops.sum(axis=1) / loops)),
        device_flops_per_second=float(np.median(alone)),
        peak_flops=float(np.median(peaks)),
    )


def _loop(program: Program, calls: int) -> tuple[float, list[Load]]:
    """Seconds of so many calls one after the other, and what they were given."""
    loads, pending = [], None
    start = time.perf_counter()
    for _ in range(calls):
        load = next(program.loads)
        result = program.call(program.place(load.inputs))
        if pending is not None:
            jax.device_get(pending)
        pending = result
        loads.append(load)
    jax.device_get(pending)
    return time.perf_counter() - start, loads
