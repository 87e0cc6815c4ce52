"""What a whole iteration takes, and holds in memory, from its compiled programs: sampling, log-probs and steps."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from qrpo_jax.devices.capacity import bytes_per_device
from qrpo_jax.devices.chips import Chip
from qrpo_jax.devices.mesh import axis_size
from qrpo_jax.devices.program.collectives import Collective, collectives
from qrpo_jax.devices.program.links import seconds as link_seconds
from qrpo_jax.job.chosen_objective import reads_reference
from qrpo_jax.job.estimates import Estimate
from qrpo_jax.job.job import Job
from qrpo_jax.job.memory import between_steps
from qrpo_jax.job.packing import shares_prompts
from qrpo_jax.job.programs import decode_steps, row_tokens
from qrpo_jax.job.trainer import stage_layout, stage_trainable
from qrpo_jax.job.training_room import copied_layout, training_room
from qrpo_jax.on_policy.programs import policy_layout
from qrpo_jax.sampling.sampler import LAYOUT

ASSUMPTIONS = (
    "An iteration samples all completions as long as they may be, computes log-probs of the policy and, where the "
    "objective needs them, of the reference, and trains on all of them. Scoring costs nothing: it runs on CPUs.",
    "Its packed rows are full, with prompts as long as they may be.",
)
PARTS = {"sample": "sampling", "reference": "log-probs", "train": "steps"}
FLOORS = {"products": "matrix products", "hbm": "reading weights and caches", "ici": "the network"}
# Of a part's predicted seconds: where no floor reaches it, the part waits for many small operations.
LIMIT = 0.5
SMALL = "small operations"


class Part(NamedTuple):
    """One part of an iteration.

    Attributes:
      times: runs of its program, not a whole number where it computes packed rows.
      seconds: of all of them.
      floors: seconds of all of them that each resource needs at least, by names of `FLOORS`.
    """

    times: float
    seconds: float
    floors: dict[str, float]

    @property
    def limit(self) -> str:
        """What the part waits for: the resource with the highest floor, if that is most of its time."""
        name = max(self.floors, key=lambda name: self.floors[name])
        return FLOORS[name] if self.floors[name] >= LIMIT * self.seconds else SMALL


def record(job: Job, mesh: Mesh, found: Mapping[str, Estimate]) -> dict[str, Any]:
    """What `compile.json` says of the iteration.

    Args:
      mesh: of training.
      found: the programs "train", "reference" and "sample" of `on_policy.programs`, which fit.
    """
    config, rows = job.config, iteration_rows(job)
    passes = {
        "sample": -(-config.rollout.prompts // found["sample"].described.rows),
        "reference": (1 + reads_reference(job)) * rows / found["reference"].described.rows,
        "train": config.train.epochs * rows / found["train"].described.rows,
    }
    parts = {PARTS[name]: part(found[name], times) for name, times in passes.items()}
    total = sum(one.seconds for one in parts.values())
    longest = max(parts, key=lambda name: parts[name].seconds)
    sampled = config.rollout.prompts * config.rollout.completions * config.rollout.max_new_tokens
    memory = memory_bytes(job, mesh, found)
    return {
        "fits": max(memory.values()) <= found["train"].analysis.chip.hbm_bytes,
        "seconds": {name: digits(one.seconds) for name, one in parts.items()} | {"total": digits(total)},
        "limits": {name: one.limit for name, one in parts.items()},
        "bottleneck": f"{longest}, {parts[longest].seconds / total:.0%} of an iteration, by {parts[longest].limit}",
        "floors": {name: {f: digits(s) for f, s in one.floors.items()} for name, one in parts.items()},
        "sampled_tokens": sampled,
        "tokens_per_second": digits(sampled / total),
        "sampling_tokens_per_second": digits(sampled / parts["sampling"].seconds),
        "prompts": config.rollout.prompts,
        "completions": config.rollout.completions,
        "rows": digits(rows),
        "memory_gb": {name: round(size / 1e9, 3) for name, size in memory.items()}
        | {"hbm": round(found["train"].analysis.chip.hbm_bytes / 1e9, 3)},
        "decoding": decoding(job, mesh, found["sample"]),
    }


def digits(value: float) -> float:
    """Five of them."""
    return float(f"{value:.5g}")


def iteration_rows(job: Job) -> float:
    """Packed rows of an iteration's completions, all as long as they may be."""
    rollout, prompt = job.config.rollout, job.config.prompts.max_tokens
    copies = 1 if shares_prompts(job) else rollout.completions
    return rollout.prompts * (prompt * copies + rollout.completions * rollout.max_new_tokens) / row_tokens(job)


def part(found: Estimate, times: float) -> Part:
    """So many runs of a program."""
    described, analysis = found.described, found.analysis
    floors = {
        "products": described.flops.total / (analysis.devices * analysis.chip.bf16_flops),
        "hbm": described.read_bytes / analysis.chip.hbm_bandwidth,
        "ici": analysis.time.ici + analysis.time.dcn,
    }
    return Part(times, times * analysis.time.scheduled, {name: times * each for name, each in floors.items()})


def memory_bytes(job: Job, mesh: Mesh, found: Mapping[str, Estimate]) -> dict[str, float]:
    """Bytes on one device: of what is there all the while, and with each program while it runs."""
    state, held = bytes_per_device(stage_trainable(job, "train", mesh).abstract()), between_steps(job, "train", mesh)
    total = {name: one.analysis.memory.total for name, one in found.items()}
    policy = bytes_per_device(policy_layout(job, mesh))
    base = policy - bytes_per_device(stage_layout(job, "train", mesh))  # of adapters; the step has it, too
    return {
        "between": held,
        "sampling": held + total["sample"] - policy,
        "log-probs": held + total["reference"] - policy,
        "steps": held - state - base + total["train"],
    }


def decoding(job: Job, mesh: Mesh, found: Estimate) -> dict[str, Any]:
    """How the weights come to lie as decoding needs them, and what a step of it moves."""
    room = training_room(job, mesh)
    analysis, devices = found.analysis, list(mesh.devices.flat)
    moved = collectives(analysis.module, len(devices))
    once = [one for one in moved if LAYOUT in one.source]
    steps = decode_steps(job, job.config.rollout, room, found.described.rows)
    in_steps = [one for one in moved if one.times >= steps]
    copy = bytes_per_device(copied_layout(job, room.mesh)) if room.stored is not None else 0.0
    return {
        "devices_of_a_copy": axis_size(room.mesh, "vocab") if copy else 0,
        "copy_gb": digits(copy / 1e9),
        "layout_gb": digits(received(once) / 1e9),
        "layout_seconds": digits(seconds_of(once, analysis.chip, devices)),
        "steps": steps,
        "step_bytes": digits(received(in_steps) / steps),
        "step_seconds_on_links": digits(seconds_of(in_steps, analysis.chip, devices) / steps),
    }


def received(moved: Sequence[Collective]) -> float:
    """Bytes of one run."""
    return sum(one.bytes * one.times for one in moved)


def seconds_of(moved: Sequence[Collective], chip: Chip, devices: Sequence[Any]) -> float:
    """Seconds on idle links, one after the other."""
    return sum(link_seconds(one, chip, devices)[1] * one.times for one in moved)
