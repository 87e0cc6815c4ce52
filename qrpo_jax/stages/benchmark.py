"""Stage `benchmark`: the speed of training, of the reference's log-probs and of sampling on this machine.

It needs no data and no weights: completions are synthetic, of a named length mix, and parameters are random. Programs,
batches, mesh and planner are those of the other stages.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qrpo_jax.config.keys import refuse
from qrpo_jax.data.batch import Batch
from qrpo_jax.data.examples import Examples
from qrpo_jax.data.loader import assemble, batches
from qrpo_jax.data.mixes import LengthMix, choose_mix, synthetic
from qrpo_jax.data.packing import Plan
from qrpo_jax.devices.dtypes import FLOATS
from qrpo_jax.devices.mesh import axis_size, own_rows, place, place_rows, round_up, row_sharding
from qrpo_jax.devices.peaks import SIZE, matrix_product, peak_bytes, published_peak
from qrpo_jax.devices.processes import is_first
from qrpo_jax.errors import located
from qrpo_jax.files import write_json
from qrpo_jax.job.bounds import check_least
from qrpo_jax.job.chosen_objective import chosen_objective
from qrpo_jax.job.completions import jitted_sampler, padded_prompts
from qrpo_jax.job.job import Job
from qrpo_jax.job.log_probs import jitted_log_probs
from qrpo_jax.job.packing import make_plan, plan_log_probs
from qrpo_jax.job.stopwatch import Load, Program, Timing, measure
from qrpo_jax.job.trainer import configured_optimizer, memory_keys, policy_step, trainable
from qrpo_jax.job.training_options import KEYS, configured_objective
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.model.flops import Pairs, forward_flops, layout_pairs, step_flops
from qrpo_jax.report import speed
from qrpo_jax.sampling.keys import prompt_keys
from qrpo_jax.stages.train import make_training
from qrpo_jax.training.fit import jitted
from qrpo_jax.training.logbook import LOSSES
from qrpo_jax.training.state import stored_for_forward

NUMBERS = "benchmark.json"
NO_TOKEN = -1  # as the end token it lets every sample have the full length


def run(job: Job) -> dict[str, Any]:
    config, mesh = job.config.benchmark, job.mesh
    mix = choose_mix(config.mix)
    examples = make_examples(job, mix)
    peak = published_peak(mesh)
    product = None if peak else matrix_product(mesh, FLOATS[job.config.model.compute_dtype])
    makers: dict[str, Callable[[Job, Examples], Program]] = {
        "train": training_program,
        "reference": reference_program,
        "sample": sampling_program,
    }
    record: dict[str, Any] = {
        "mix": config.mix,
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "compute_dtype": job.config.model.compute_dtype,
        "peak": peak.name if peak else f"product of {SIZE} x {SIZE} matrices, timed in turn with the program",
        "peak_source": peak.source if peak else "",
    }
    for name, make in makers.items():
        timing = measure(make(job, examples), rounds=config.rounds, calls=config.calls, product=product)
        record[name] = figures(timing, peak.flops if peak else timing.peak_flops, peak_bytes(mesh))
    if is_first():
        write_json(job.folder("benchmark") / NUMBERS, record)
    for line in speed.lines(record):
        job.say(f"benchmark: {line}")
    return record


def figures(timing: Timing, peak_flops: float, memory: int) -> dict[str, float]:
    """A program's entry of `benchmark.json`."""
    return {
        "tokens_per_second": timing.tokens_per_second,
        "seconds": timing.seconds,
        "host_share": timing.host_share,
        "tokens": timing.tokens,
        "model_tflops": timing.flops / 1e12,
        "model_tflops_per_second": timing.flops_per_second / 1e12,
        "peak_tflops_per_second": peak_flops / 1e12,
        "mfu": timing.flops_per_second / peak_flops,
        "compile_seconds": timing.compile_seconds,
        "peak_memory_gb": memory / 1e9,
    }


def calls_needed(config: Any) -> int:
    """Calls of a program: one to warm up, and those of all rounds."""
    return 1 + config.rounds * (1 + config.calls)


def make_examples(job: Job, mix: LengthMix) -> Examples:
    """Synthetic completions for as many batches as training is measured on, and prompts for sampling."""
    config = job.config.benchmark
    units_per_prompt = mix.siblings // (2 if mix.pairs else 1)
    prompts = -(-job.config.train.batch_size * calls_needed(config) // units_per_prompt)
    return synthetic(mix, max(prompts, config.prompts), vocab=job.shape.settings.vocab_size, seed=job.config.seed)


def training_program(job: Job, examples: Examples) -> Program:
    """Stage `train`'s step, with its planner, loader and optimizer."""
    plan = make_plan(job, "train", examples, folder="benchmark")
    training = make_training(job, job.random_parameters)
    optimizer, _ = configured_optimizer(job.config, "train", plan.steps)
    run = trainable(job, training, optimizer)
    update = jitted(policy_step(job, training, optimizer, plan.microbatches), run)
    state, frozen, rows = run.fresh(), training.frozen or {}, own_rows(job.mesh, plan.rows)

    def compile() -> None:
        with located(**memory_keys("train")):
            update.compiled(state, place_rows(assemble(examples, plan, 0, rows), job.mesh), frozen)

    def call(batch: Batch) -> Any:
        nonlocal state
        state, metrics = update(state, batch, frozen)
        return {name: value for name, value in metrics.items() if name != LOSSES}

    def flops(batch: Batch) -> float:
        return step_flops(
            job.shape.settings,
            **work(job, batch),
            lora=job.shape.lora,
            with_reference=training.reference_on_the_fly,
        ).total

    loads = batch_loads(job, examples, plan, batches(examples, plan, rows), flops)
    return Program(compile, loads, lambda batch: place_rows(batch, job.mesh), call)


def forward_parameters(job: Job) -> Parameters:
    """Random parameters on the unit mesh, as stages hold them there."""
    return stored_for_forward(job.random_parameters(job.unit_mesh), FLOATS[job.config.model.compute_dtype])


def reference_program(job: Job, examples: Examples) -> Program:
    """Stage `reference`'s forward pass over packed rows."""
    mesh = job.unit_mesh
    plan = plan_log_probs(job, mesh, examples.packing_units())
    parameters, log_probs = (
        forward_parameters(job),
        jitted_log_probs(job),
    )
    rows = own_rows(mesh, plan.rows)

    def compile() -> None:
        with located("log_probs.batch_rows"):
            log_probs.compiled(parameters, place_rows(assemble(examples, plan, 0, rows), mesh))

    steps = min(plan.steps, calls_needed(job.config.benchmark))
    hosts = (assemble(examples, plan, index, rows) for index in itertools.cycle(range(steps)))
    loads = batch_loads(
        job, examples, plan, hosts, lambda batch: forward_flops(job.shape.settings, **work(job, batch)).total
    )
    return Program(compile, loads, lambda batch: place_rows(batch, mesh), lambda batch: log_probs(parameters, batch))


def sampling_program(job: Job, examples: Examples) -> Program:
    """Stage `sample`'s decoding of all completions of some prompts, each as long as the config allows."""
    mesh, section, settings = job.unit_mesh, job.config.sample, job.shape.settings
    count, most = job.config.benchmark.prompts, settings.max_positions - section.max_new_tokens
    _, firsts_P = np.unique(examples.prompts_C, return_index=True)
    prompts = [examples.prompt(c)[:most] for c in firsts_P[:count].tolist()]
    tokens_PxL, lengths_P = padded_prompts(prompts, round_up(len(prompts), axis_size(mesh, "rows")))
    parameters, sampler = (
        forward_parameters(job),
        jitted_sampler(job, section, "reference", (NO_TOKEN,)),
    )
    keys_Px2 = prompt_keys(job.config.seed, "benchmark", range(len(prompts)), len(tokens_PxL))
    inputs = tokens_PxL, lengths_P, keys_Px2
    load = Load(
        inputs,
        len(prompts) * section.completions * section.max_new_tokens,
        sampling_flops(job, lengths_P[: len(prompts)]),
    )

    def compile() -> None:
        with located("benchmark.prompts"):
            sampler.compiled(parameters, *place(inputs, row_sharding(mesh)))

    return Program(
        compile,
        itertools.repeat(load),
        lambda inputs: place(inputs, row_sharding(mesh)),
        lambda inputs: sampler(parameters, *inputs),
    )


def batch_loads(
    job: Job, examples: Examples, plan: Plan, hosts: Iterator[Batch], flops: Callable[[Batch], float]
) -> Iterator[Load]:
    """Loads of the plan's batches. Work is counted ahead, of whole batches, and takes none of the loop's time.

    Args:
      hosts: the rows of each batch that this process assembles.
    """
    total_C = examples.prompt_lengths_C + examples.completions_C.length

    def counts(batch: Batch) -> tuple[int, float]:
        return int(total_C[batch.example_BxS[batch.present_BxS]].sum()), flops(batch)

    indices = range(min(plan.steps, calls_needed(job.config.benchmark)))
    counted = [counts(assemble(examples, plan, index)) for index in indices]
    return (Load(batch, *counts) for batch, counts in zip(hosts, itertools.cycle(counted), strict=False))


def work(job: Job, batch: Batch) -> dict[str, Any]:
    """What a batch holds, as `model.flops` takes it."""
    return {
        "tokens": int((batch.layout.groups_BxL > 0).sum()),
        "pairs": layout_pairs(batch.layout, job.shape.settings.sliding_window),
        "targets": int((batch.targets_BxL >= 0).sum()),
    }


def sampling_flops(job: Job, lengths_P: np.ndarray) -> float:
    """FLOPs of sampling from prompts of these lengths: each prompt once, then every token but the last of a completion.

    The logits of a prompt are those of its last token alone.
    """
    settings, section = job.shape.settings, job.config.sample
    decoded = section.max_new_tokens - 1
    tokens = int(lengths_P.sum()) + len(lengths_P) * section.completions * decoded
    targets = len(lengths_P) * (1 + section.completions * decoded)

    def pairs(window: int | None) -> float:
        total = 0
        for length in lengths_P.tolist():
            seen = np.arange(1, length + decoded + 1)
            seen = seen if window is None else np.minimum(seen, window)
            total += int(seen[:length].sum()) + section.completions * int(seen[length:].sum())
        return float(total)

    return forward_flops(settings, tokens, Pairs(pairs(None), pairs(settings.sliding_window)), targets=targets).total


def check(job: Job) -> None:
    """Refuses a mix that the model or the objective cannot take, and options that no program can have.

    Raises:
      UserError: naming the key.
    """
    config, settings = job.config, job.shape.settings
    mix = choose_mix(config.benchmark.mix)
    check_least(config, {"sample.completions": 1})
    if mix.most > settings.max_positions:
        raise refuse(
            "benchmark.mix",
            f"{config.benchmark.mix!r}, whose completions have up to {mix.most} tokens with their prompts; the model "
            f"was made for {settings.max_positions} positions",
        )
    if config.sample.max_new_tokens >= settings.max_positions:
        raise refuse(
            "sample.max_new_tokens",
            f"{config.sample.max_new_tokens}; the model was made for {settings.max_positions} positions",
        )
    with located(**KEYS):
        configured_objective(job)
    if chosen_objective(job).pairwise and not mix.pairs:
        raise refuse("benchmark.mix", f"{config.benchmark.mix!r}, which has no pairs for {config.train.objective!r}")
    if config.train.reference_log_probs == "on_the_fly" and not config.lora.rank:
        raise refuse("train.reference_log_probs", "'on_the_fly', which needs LoRA; set config.lora.rank")
