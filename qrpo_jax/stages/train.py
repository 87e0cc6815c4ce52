"""Stage `train`: the policy is fitted to scored completions with the objective of the config."""

import math
from typing import Any

import numpy as np
from jax import Array

from qrpo_jax import losses, transforms
from qrpo_jax.data import row_files
from qrpo_jax.data.batch import Batch
from qrpo_jax.data.examples import Examples, build_examples
from qrpo_jax.data.views import View
from qrpo_jax.job.job import Job, before
from qrpo_jax.job.trainer import train
from qrpo_jax.report import forecast
from qrpo_jax.training.objectives import OBJECTIVES, Length, LossFunction, make_objective


def run(job: Job) -> dict[str, Any]:
    config, lora = job.config.train, job.policy.lora
    source = before(job.config.stages, "train", ("sample", "score", "reference"))
    assert source is not None, "checked before anything ran"
    rows = row_files.read(job.folder(source))
    ranked = OBJECTIVES[config.objective].ranked
    # Baselines do not use quantiles: theirs are shown where there are references, and need no clamp.
    transform = transforms.parse(config.transform) if ranked else transforms.identity
    examples = build_examples(
        rows,
        job.policy.text,
        view(job),
        transform,
        beta=(lambda length_C: length(job).beta(config.beta, length_C)) if ranked else None,
        need_references=ranked,
    )
    if config.reference == "stored":
        check_reference(examples, config.objective)
    told = tell(job, examples, transform) if examples.units else None

    if ranked and job.config.sample.completions and job.config.sample.temperature != job.config.reference.temperature:
        job.say(
            f"train: WARNING: references were sampled at temperature {job.config.sample.temperature:g}, log-probs are "
            f"taken at {job.config.reference.temperature:g}; quantiles and log-ratios are then about different policies"
        )

    def target(batch: Batch) -> Array:
        c = batch.completions_BxS
        beta = length(job).beta(config.beta, c.length)
        return losses.calibrated_target(c.quantile, beta, transforms.scale_by(transform, c.reward_scale), log_z=c.log_z)

    def on_first(batch: Batch, metrics: dict[str, float]) -> None:
        # Policy and reference are the same model on the same code path, so before the first update every
        # log-ratio is 0 up to rounding and QRPO's loss is the mean of the regressed targets.
        expected = length(job).divide(losses.REGRESSION[config.loss](target(batch)), batch.completions_BxS.length)
        weight = batch.completions_BxS.weight * batch.present_BxS
        job.say(
            f"train: before the first update the mean log-ratio is {metrics['log_ratio_high']:.1e} (high) and "
            f"{metrics['log_ratio_low']:.1e} (low); loss {metrics['loss']:.6f}, of the targets alone "
            f"{float((expected * weight).sum() / weight.sum()):.6f}"
        )

    made = train(
        job,
        "train",
        config,
        examples,
        objective(job),
        job.precision(),
        (lambda: job.fresh_adapters(job.mesh)) if lora else (lambda: job.reference_parameters(job.mesh)),
        lora=lora,
        frozen=job.reference_parameters(job.mesh) if lora else None,
        reference_on_the_fly=config.reference == "on_the_fly",
        calibrated_target=target if ranked else None,
        on_first=on_first if ranked else None,
    )
    return made | {"asked": told}


REFERENCES = ("stored", "on_the_fly")


def tell(job: Job, examples: Examples, transform: transforms.Transform) -> dict[str, Any] | None:
    """Says what the settings ask for on these examples, and returns it for the record, where an optimum is known."""
    config = job.config.train
    if not OBJECTIVES[config.objective].ranked:
        for line in forecast.baseline_lines(examples, config.objective):
            job.say(f"train: {line}")
        return None
    length_C = examples.completions_C.length
    beta_C = np.broadcast_to(length(job).beta(config.beta, length_C), length_C.shape)
    # A scaled transform is shown for the prompt of average spread.
    figures = forecast.figures(
        examples, transform, beta_C, partition_name=config.partition, estimator=job.config.select.estimator
    )
    for line in forecast.lines(figures, transform, job.config.select.ties):
        job.say(f"train: {line}")
    return figures


def length(job: Job) -> Length:
    """What a completion's length changes, as configured."""
    config = job.config.train
    return Length(config.length_normalised, config.beta_cap or math.inf, config.loss_over_length)


def view(job: Job) -> View:
    select, pack, objective = job.config.select, job.config.pack, OBJECTIVES[job.config.train.objective]
    return View(
        units=select.units,
        first=select.first,
        references=select.references,
        exclude_own=select.exclude_own,
        estimator=select.estimator,
        ties=select.ties,
        partition=job.config.train.partition,
        selector="both" if objective.pairwise else select.selector,
        tied_pairs=not objective.drops_ties,
        max_tokens=pack.max_tokens,
        over_long=pack.over_long,
        seed=job.config.seed,
    )


def objective(job: Job) -> LossFunction:
    """The config's objective with the options it takes."""
    config = job.config.train
    options = {option: config[option] for option in OBJECTIVES[config.objective].options}
    return make_objective(config.objective, length(job), **options)


def check_reference(examples: Examples, objective: str) -> None:
    """Refuses completions without log π_ref where the objective needs it.

    Raises:
      ValueError: naming the first such completion.
    """
    if not OBJECTIVES[objective].needs_reference:
        return
    missing = np.flatnonzero(~np.isfinite(examples.completions_C.reference_log_prob))
    if len(missing):
        raise ValueError(
            f"completion {examples.names[missing[0]]} has no reference log-prob ({len(missing)} have none); "
            f"objective {objective!r} needs it: put 'reference' before 'train' in config.stages"
        )
