"""Stage `train`: the policy is fitted to scored completions with the objective of the config."""

import math
from typing import Any

import numpy as np
from jax import Array

from qrpo_jax import losses, transforms
from qrpo_jax.data import row_files
from qrpo_jax.data.batch import Batch
from qrpo_jax.data.examples import Examples, View, build_examples
from qrpo_jax.job.job import Job, before
from qrpo_jax.job.trainer import Training, train
from qrpo_jax.report import forecast
from qrpo_jax.training.objectives import PAIRWISE, REFERENCE_FREE, Length, Objective, make_objective


def run(job: Job) -> dict[str, Any]:
    config, lora = job.config.train, job.policy.lora
    source = before(job.config.stages, "train", ("sample", "score", "reference"))
    assert source is not None, "checked before anything ran"
    rows = row_files.read(job.folder(source))
    is_qrpo = config.objective == "qrpo"
    # Baselines do not use quantiles: theirs are shown where there are references, and need no clamp.
    transform = transforms.parse(config.transform) if is_qrpo else transforms.identity
    examples = build_examples(
        rows,
        job.policy.text,
        view(job),
        transform,
        beta=(lambda length_C: length(job).beta(config.beta, length_C)) if is_qrpo else None,
        need_references=is_qrpo,
    )
    if config.reference == "stored":
        check_reference(examples, config.objective)
    told = tell(job, examples, transform) if examples.units else None

    if is_qrpo and job.config.sample.completions and job.config.sample.temperature != job.config.reference.temperature:
        job.say(
            f"train: WARNING: references were sampled at temperature {job.config.sample.temperature:g}, log-probs are "
            f"taken at {job.config.reference.temperature:g}; quantiles and log-ratios are then about different policies"
        )

    def target(batch: Batch) -> Array:
        scaled = transforms.get(config.transform, reward_scale=batch.reward_scale_BxS)
        beta = length(job).beta(config.beta, batch.length_BxS)
        return losses.calibrated_target(batch.quantile_BxS, beta, scaled, log_z=batch.log_z_BxS)

    def on_first(batch: Batch, metrics: dict[str, float]) -> None:
        # Policy and reference are the same model on the same code path, so before the first update every
        # log-ratio is 0 up to rounding and QRPO's loss is the mean of the regressed targets.
        expected = length(job).divide(losses.REGRESSION[config.loss](target(batch)), batch.length_BxS)
        weight = batch.weight_BxS * batch.present_BxS
        job.say(
            f"train: before the first update the mean log-ratio is {metrics['log_ratio_high']:.1e} (high) and "
            f"{metrics['log_ratio_low']:.1e} (low); loss {metrics['loss']:.6f}, of the targets alone "
            f"{float((expected * weight).sum() / weight.sum()):.6f}"
        )

    training = Training(
        examples,
        objective(job),
        job.precision(),
        start=(lambda: job.fresh_adapters(job.mesh)) if lora else (lambda: job.reference_parameters(job.mesh)),
        frozen=job.reference_parameters(job.mesh) if lora else None,
        reference_on_the_fly=config.reference == "on_the_fly",
        calibrated_target=target if is_qrpo else None,
        on_first=on_first if is_qrpo else None,
    )
    return train(job, "train", training) | {"asked": told}


REFERENCES = ("stored", "on_the_fly")


def tell(job: Job, examples: Examples, transform: transforms.Transform) -> dict[str, Any] | None:
    """Says what the settings ask for on these examples, and returns it for the record, where an optimum is known."""
    config = job.config.train
    if config.objective != "qrpo":
        for line in forecast.baseline_lines(examples, config.objective):
            job.say(f"train: {line}")
        return None
    beta_C = np.broadcast_to(length(job).beta(config.beta, examples.lengths_C), examples.lengths_C.shape)
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
    select, pack = job.config.select, job.config.pack
    return View(
        units=select.units,
        first=select.first,
        references=select.references,
        exclude_own=select.exclude_own,
        estimator=select.estimator,
        ties=select.ties,
        partition=job.config.train.partition,
        selector=select.selector if job.config.train.objective not in PAIRWISE else "both",
        tied_pairs=job.config.train.objective not in ("dpo", "simpo"),
        max_tokens=pack.max_tokens,
        over_long=pack.over_long,
        seed=job.config.seed,
    )


def objective(job: Job) -> Objective:
    """The config's objective with the options it takes."""
    config = job.config.train
    options = {
        "qrpo": {"beta": config.beta, "transform": config.transform, "loss": config.loss},
        "dpo": {"beta": config.beta},
        "rebel": {"beta": config.beta},
        "simpo": {"beta": config.beta, "gamma_beta_ratio": config.gamma_beta_ratio},
        "sft": {},
    }
    return make_objective(config.objective, length(job), **options.get(config.objective, {}))


def check_reference(examples: Examples, objective: str) -> None:
    """Refuses completions without log π_ref where the objective needs it.

    Raises:
      ValueError: naming the first such completion.
    """
    if objective in REFERENCE_FREE:
        return
    missing = np.flatnonzero(~np.isfinite(examples.reference_log_prob_C))
    if len(missing):
        raise ValueError(
            f"completion {examples.names[missing[0]]} has no reference log-prob ({len(missing)} have none); "
            f"objective {objective!r} needs it: put 'reference' before 'train' in config.stages"
        )
