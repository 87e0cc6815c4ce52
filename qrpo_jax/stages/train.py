"""Stage `train`: trains the policy on scored completions with the objective of the config."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from qrpo_jax import losses, transforms
from qrpo_jax.config.keys import refuse
from qrpo_jax.data.batch import Batch
from qrpo_jax.data.examples import Examples, select
from qrpo_jax.data.held_rows import part
from qrpo_jax.errors import UserError, located
from qrpo_jax.evaluation.ties import tied_shares
from qrpo_jax.job.brought_log_probs import gap_warning
from qrpo_jax.job.chosen_objective import chosen_objective
from qrpo_jax.job.corpus import discard_corpus, open_corpus
from qrpo_jax.job.held_out_reward import check_watch, open_watch
from qrpo_jax.job.job import Job
from qrpo_jax.job.listed_units import check_units
from qrpo_jax.job.optimum_forecast import say_forecast
from qrpo_jax.job.source_check import is_on_policy, sampled_completions
from qrpo_jax.job.stage_rows import rows_in_blocks
from qrpo_jax.job.trainer import Training, planned_feed, train
from qrpo_jax.job.training_options import (
    KEYS,
    calibrated_target,
    check_training,
    configured_objective,
    make_length,
    make_view,
    prediction,
)
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.on_policy.checks import check_on_policy
from qrpo_jax.on_policy.run import train_on_policy
from qrpo_jax.report import forecast


def run(job: Job) -> dict[str, Any]:
    if is_on_policy(job.config):
        with open_watch(job) as watch:
            return train_on_policy(job, make_training(job)._replace(watch=watch))
    # Baselines use quantiles only for the metrics, if there are references; identity needs no clamp.
    transform = transforms.parse(job.config.train.transform) if chosen_objective(job).ranked else transforms.identity
    examples, held_out = parted_examples(job, read_examples(job, transform))
    figures = print_forecast(job, examples) if len(examples.sizes_U) else None
    warn_of_temperature(job)
    facts = {"forecast": figures, "comparisons": tied_shares(examples.corpus)}
    with open_watch(job) as watch:
        training = make_training(job)._replace(held_out=held_out, watch=watch)
        result = train(job, "train", training, planned_feed(job, "train", examples)) | facts
    discard_corpus(job, "train")
    return result


def parted_examples(job: Job, examples: Examples) -> tuple[Examples, Examples | None]:
    """What is trained on, and the rows that are held out if their loss is asked for.

    Raises:
      UserError: nothing is left to train on.
    """
    config = job.config.train
    if not config.evaluate_every:
        return examples, None
    parts = part(examples, config.held_out)
    if len(examples.sizes_U) and not len(parts.trained.sizes_U):
        raise refuse("train.held_out", f"{config.held_out}, all of the rows; hold out fewer, or set evaluate_every=0")
    return parts.trained, parts.held_out


def make_training(job: Job, reference: Callable[[Mesh], Parameters] | None = None) -> Training:
    """The training of the policy as the config describes it.

    Args:
      reference: makes the parameters of the reference policy; by default `job.reference_parameters`.
    """
    reference = reference or job.reference_parameters
    config, lora = job.config.train, job.shape.lora
    ranked = chosen_objective(job).ranked
    target = calibrated_target(job)

    @jax.jit
    def loss_of_targets(batch: Batch) -> Array:
        """The loss of a policy whose log-ratios are all 0."""
        loss_BxS = make_length(job).divide(losses.REGRESSION[config.loss](target(batch)), batch.completions_BxS.length)
        weight_BxS = batch.completions_BxS.weight * batch.present_BxS
        return (loss_BxS * weight_BxS).sum() / weight_BxS.sum()

    def on_first(batch: Batch, metrics: dict[str, float]) -> None:
        if "reference" not in job.config.stages and (warning := gap_warning(metrics)):
            job.say(f"train: WARNING: {warning}")
        if not ranked:
            return
        # Policy and reference are the same model on the same code path. Before the first update every log-ratio is
        # therefore 0 up to rounding, and the loss of QRPO is the mean of the regressed targets.
        expected = float(jax.device_get(loss_of_targets(batch)))
        means = {
            side: metrics[f"log_ratio_{side}"] for side in ("high", "low")
        }  # NaN if a batch has no such completion
        shown = " and ".join(f"{mean:.1e} ({side})" for side, mean in means.items() if math.isfinite(mean))
        job.say(
            f"train: before the first update the mean log-ratio is {shown}; loss {metrics['loss']:.6f}, "
            f"of the targets alone {expected:.6f}"
        )

    return Training(
        configured_objective(job),
        job.log_prob_settings(job.mesh, backward=True),
        start=(lambda: job.fresh_adapters(job.mesh)) if lora else (lambda: reference(job.mesh)),
        frozen=reference(job.mesh) if lora else None,
        reference_on_the_fly=config.reference_log_probs == "on_the_fly",
        predict=prediction(job) if ranked else None,
        on_first=on_first,
        value_head=chosen_objective(job).needs_value,
    )


def read_examples(job: Job, transform: transforms.Transform) -> Examples:
    """The completions to train on, ranked among their references.

    Raises:
      UserError: naming the first completion that lacks what the objective needs.
    """
    config = job.config.train
    ranked = chosen_objective(job).ranked
    with located(**KEYS, references="sample.completions"):
        tokenized = open_corpus(job, "train", rows_in_blocks(job, "train"))
        examples = select(
            tokenized.corpus,
            make_view(job),
            transform,
            beta=(lambda length_C: make_length(job).beta(config.beta, length_C)) if ranked else None,
            need_references=ranked,
        )
    if config.reference_log_probs == "stored" and chosen_objective(job).needs_reference:
        missing = np.flatnonzero(~np.isfinite(examples.completions_C.reference_log_prob))
        if len(missing):
            raise UserError(
                f"completion {examples.name(missing[0])} has no reference log-prob ({len(missing)} have none); "
                f"objective {config.objective!r} needs it: put 'reference' before 'train' in config.stages"
            )
    return examples._replace(counts=examples.counts | tokenized.left_out)


def print_forecast(job: Job, examples: Examples) -> dict[str, Any] | None:
    """Prints the forecast for these examples; returns its figures, or None for a baseline, which has no forecast."""
    if chosen_objective(job).ranked:
        return say_forecast(job, examples)
    for line in forecast.baseline_lines(examples, job.config.train.objective):
        job.say(f"train: {line}")
    return None


def warn_of_temperature(job: Job) -> None:
    sample, log_probs = job.config.sample, job.config.log_probs
    ranked = chosen_objective(job).ranked
    if ranked and sampled_completions(job.config) and sample.temperature != log_probs.temperature:
        job.say(
            f"train: WARNING: references were sampled at temperature {sample.temperature:g}, log-probs are taken at "
            f"{log_probs.temperature:g}; quantiles and log-ratios then describe different policies"
        )


def check(job: Job) -> None:
    if is_on_policy(job.config):
        check_on_policy(job)
    else:
        check_training(job)
        check_units(job, "train", make_view(job))
    check_watch(job)
