"""What compiled programs of a job need and how fast they are, and the largest batch that fits."""

import time
from typing import Any, NamedTuple

from jax.sharding import Mesh

from qrpo_jax.devices.chips import Chip, chip_of
from qrpo_jax.devices.program.analysis import Analysis, analyse
from qrpo_jax.devices.program.compilation import DoesNotFitError, compile_program
from qrpo_jax.devices.program.roofline import CAUSAL, KERNEL_SHARE
from qrpo_jax.job.job import Job
from qrpo_jax.job.programs import PROGRAMS, Described, Programs, row_multiple

ASSUMPTIONS = (
    "Rows are full: each packed row is one sequence of row_tokens tokens without padding.",
    "FLOPs are those that must be computed: 6 a trained parameter and token (4 where only adapters are trained, 2 "
    "forward), the unembedding included and the embedding not, and attention for the keys that a query sees. "
    "Recomputation earns no credit.",
    "Seconds of the core are the compiler's own estimates of cycles, at the clock that gives the published peak.",
    f"Attention kernels, which the compiler does not estimate, compute {CAUSAL:.0%} of all pairs of a row, at "
    f"{KERNEL_SHARE:.0%} of the peak that the head size allows.",
    "Collectives take what a device receives over the links that their group spans, two a dimension of the torus where "
    "it closes to a ring and one where it does not, plus 1 microsecond a hop.",
    "step_seconds and mfu have the overlap that the compiler's schedule has. Their ranges go from no overlap of "
    "communication and computation to full overlap.",
    "Reading seconds are what a device needs at its memory's published bandwidth to read, in each step of the sampler, "
    "all weights, and keys and values of prompts and of completions, which are half as long as they may become.",
    "The input pipeline, the host and stragglers cost nothing. Estimates of this kind are good to about 30 %.",
)
# Batches are not searched beyond so many rows a device, where nothing is gained any more.
MOST = 256
TRIES = 4  # compilations of a search, at most


class Estimate(NamedTuple):
    """One program that fits."""

    described: Described
    analysis: Analysis
    compile_seconds: float


class Search(NamedTuple):
    """The largest batch of a program that fits, or why not even the smallest does.

    Attributes:
      searched: larger batches were tried.
      error: of the smallest batch, if that does not fit.
    """

    estimate: Estimate | None
    searched: bool
    error: DoesNotFitError | None


def estimate(job: Job, mesh: Mesh, name: str, rows: int, programs: Programs = PROGRAMS) -> Estimate:
    """Compiles one program for so many rows.

    Args:
      programs: of which it is one.

    Raises:
      DoesNotFitError: it needs more memory than a device has.
    """
    described, devices, began = programs[name](job, mesh, rows), list(mesh.devices.flat), time.monotonic()
    program = compile_program(described.lowered, devices[0].platform)
    seconds = time.monotonic() - began
    found = analyse(program, devices)
    if not found.fits:  # compilers for CPU and GPU do not check
        raise DoesNotFitError(found.memory.total, found.chip.hbm_bytes, [])
    return Estimate(described, found, seconds)


def largest(job: Job, mesh: Mesh, name: str, rows: int, programs: Programs = PROGRAMS) -> Search:
    """The program for so many rows; for 0 the largest multiple of the mesh that fits. See `estimate`."""
    unit = row_multiple(job, mesh, name)
    if rows:
        try:
            return Search(estimate(job, mesh, name, rows, programs), False, None)
        except DoesNotFitError as error:
            return Search(None, False, error)
    capacity = chip_of(mesh.devices.flat[0]).hbm_bytes
    needed: dict[int, float] = {}
    best: Estimate | None = None
    times: int | None = 1
    for _ in range(TRIES):
        if times is None:
            break
        try:
            best = estimate(job, mesh, name, times * unit, programs)
            needed[times] = best.analysis.memory.total
        except DoesNotFitError as error:
            if times == 1:
                return Search(None, True, error)
            needed[times] = max(error.needed, 1.01 * capacity)
        fits = "fit" if needed[times] <= capacity else "do not fit"
        memory = f"{needed[times] / 1e9:.1f} of {capacity / 1e9:.1f} GB a device"
        job.say(f"compile: {name}: {times * unit} rows {fits}: {memory}")
        times = next_try(needed, best.analysis.memory.arguments if best else 0, capacity)
    return Search(best, True, None)


def next_try(needed: dict[int, float], fixed: float, capacity: float) -> int | None:
    """The next batch to try, in units of rows; None if the largest is known.

    Memory is taken as a straight line through the two batches nearest to the limit, or, while there is only one, as
    `fixed` plus a multiple. That overestimates, because temporaries have a fixed part too.

    Args:
      needed: bytes for each batch tried so far.
    """
    fitting = max(times for times, size in needed.items() if size <= capacity)
    failing = min((times for times, size in needed.items() if size > capacity), default=MOST + 1)
    if fitting + 1 >= failing:
        return None
    known = sorted(needed, key=lambda times: abs(needed[times] - capacity))[:2]
    if len(known) == 1:
        slope = max((needed[fitting] - fixed) / fitting, 1.0)
    else:
        low, high = sorted(known)
        slope = max((needed[high] - needed[low]) / (high - low), 1.0)
    guess = fitting + int((capacity - needed[fitting]) / slope)
    if guess == fitting and failing > MOST:
        return fitting + 1 if len(known) == 1 else None
    return min(max(guess, fitting + 1), failing - 1)


def record(search: Search, chip: Chip) -> dict[str, Any]:
    """What `compile.json` says of a program."""
    if search.estimate is None:
        assert search.error is not None
        needed = {"total": round(search.error.needed / 1e9, 3)} if search.error.needed else {}
        return {
            "fits": False,
            "mfu": None,
            "step_seconds": None,
            "memory_gb": needed | {"hbm": round(chip.hbm_bytes / 1e9, 3)},
            "largest_arrays": search.error.largest,
            "error": str(search.error),
        }
    described, found, compile_seconds = search.estimate
    time, useful = found.time, described.flops.total
    reading = described.read_bytes / found.chip.hbm_bandwidth

    def digits(value: float) -> float:
        return float(f"{value:.5g}")

    return {
        "fits": True,
        "mfu": digits(found.mfu(useful)),
        "mfu_range": [digits(found.mfu(useful, time.serial)), digits(found.mfu(useful, time.overlapped))],
        "step_seconds": digits(time.scheduled),
        "step_seconds_range": [digits(time.overlapped), digits(time.serial)],
        "tokens_per_second": digits(described.tokens / time.scheduled),
        "rows": described.rows,
        "row_tokens": described.row_tokens,
        "tokens": described.tokens,
        "largest_batch": search.searched,
        "memory_gb": found.memory.gigabytes() | {"hbm": round(chip.hbm_bytes / 1e9, 3)},
        "flops": {"matmul": described.flops.matmul, "attention": described.flops.attention, "total": useful},
        "executed_matmul_flops": found.executed_flops * found.devices,
        "seconds": {name: digits(value) for name, value in found.seconds_by_kind().items()}
        | {"ici": digits(time.ici), "dcn": digits(time.dcn)},
        "received_gb": {
            network: {one.kind: digits(one.bytes / 1e9) for one in found.traffic if one.network == network}
            for network in ("ici", "dcn")
        },
        "compile_seconds": round(compile_seconds, 1),
        "devices": found.devices,
    } | ({"reading_seconds": digits(reading)} if reading else {})
