"""The options of stage `train` as the lower folders take them, and what can be wrong with them."""

import math
from collections.abc import Callable

import numpy as np
from jax import Array

from qrpo_jax import losses, quantiles, transform_checks, transforms
from qrpo_jax.data.batch import Batch
from qrpo_jax.data.sources import kind_of
from qrpo_jax.data.sources.listed import ListedRows
from qrpo_jax.data.views import View
from qrpo_jax.errors import UserError, located
from qrpo_jax.job.brought_log_probs import brings_log_probs, note_brought
from qrpo_jax.job.chosen_objective import chosen_objective
from qrpo_jax.job.job import Job
from qrpo_jax.job.prompts import open_listed
from qrpo_jax.job.source_check import sampled_completions
from qrpo_jax.training.objective import BoundObjective
from qrpo_jax.training.objectives import OBJECTIVES, Length, having, make_objective
from qrpo_jax.training.step import Prediction

# Config keys of the arguments that errors of objectives and transforms are about.
KEYS = {
    "name": "train.objective",
    "beta": "train.beta",
    "cap": "train.beta_cap",
    "normalised": "train.length_normalised",
    "divides_loss": "train.loss_over_length",
    "transform": "train.transform",
    "loss": "train.loss",
    "gamma_beta_ratio": "train.gamma_beta_ratio",
    "kl_strength": "train.beta",
    "clip_low": "train.clip_low",
    "clip_high": "train.clip_high",
    "token_average": "train.token_average",
    "token_limit": "rollout.max_new_tokens",
    "correction_cap": "train.correction_cap",
    "value_coefficient": "train.value_coefficient",
    "value_clip": "train.value_clip",
}


def make_length(job: Job) -> Length:
    """The config's options that use completion lengths."""
    config = job.config.train
    return Length(config.length_normalised, config.beta_cap or math.inf, config.loss_over_length)


def make_view(job: Job) -> View:
    """The completions of a row that the config selects."""
    select, pack, objective = job.config.select, job.config.pack, OBJECTIVES[job.config.train.objective]
    return View(
        units=select.units,
        first=select.first,
        reference_count=select.reference_count,
        exclude_own=select.exclude_own,
        estimator=select.estimator,
        ties=select.ties,
        partition=job.config.train.partition,
        side="both" if objective.pairwise else select.side,
        tied_pairs=not objective.drops_ties,
        max_tokens=pack.max_tokens,
        over_long=pack.over_long,
        seed=job.config.seed,
    )


def configured_objective(job: Job) -> BoundObjective:
    """The objective of the config with its options."""
    config = job.config.train
    values = {**config, "kl_strength": config.beta, "token_limit": job.config.rollout.max_new_tokens}
    options = {option: values[option] for option in OBJECTIVES[config.objective].options}
    return make_objective(config.objective, make_length(job), **options)


def calibrated_target(job: Job) -> Callable[[Batch], Array]:
    """f(R_q) − β log Z of each completion of a batch [B, S], which QRPO regresses β log π/π_ref on."""
    config, transform = job.config.train, transforms.parse(job.config.train.transform)

    def target(batch: Batch) -> Array:
        c = batch.completions_BxS
        beta = make_length(job).beta(config.beta, c.length)
        return losses.calibrated_target(c.quantile, beta, transforms.scale_by(transform, c.reward_scale), log_z=c.log_z)

    return target


def prediction(job: Job) -> Callable[[Batch], Prediction]:
    """The calibrated targets of a batch, and the log-ratios at which the loss of QRPO is 0."""
    target = calibrated_target(job)

    def predict(batch: Batch) -> Prediction:
        target_BxS, beta = target(batch), make_length(job).beta(job.config.train.beta, batch.completions_BxS.length)
        return Prediction(target_BxS, target_BxS / beta)

    return predict


def check_training(job: Job) -> None:
    """Refuses options of stage `train` that do not go together, or that data and stages have no place for.

    Raises:
      UserError: naming the key.
    """
    check_objective(job)
    check_data(job)
    check_reference_log_probs(job)
    check_units(job)
    check_reference_count(job)


def check_objective(job: Job) -> None:
    """Refuses options that the objective does not take, and a transform that it cannot use.

    Raises:
      UserError: naming the key.
    """
    with located(**KEYS):
        configured_objective(job)  # first: no transform has a log Z at a β of 0
        check_transform(job)


def check_data(job: Job) -> None:
    """Refuses stored completions for an objective of fresh samples."""
    config = job.config.train
    if OBJECTIVES[config.objective].on_policy_only:
        others = ", ".join(name for name in OBJECTIVES if name not in having("on_policy_only"))
        raise UserError(
            f"objective {config.objective!r} learns only from what the policy itself has just sampled: set "
            f"config.train.data='on_policy', or train on stored completions with {others} (config.train.objective)"
        )


def check_transform(job: Job) -> None:
    """Refuses a transform that does not exist, that cannot order completions, or whose Z is infinite at this β."""
    config = job.config.train
    transform = transforms.parse(config.transform)
    if not OBJECTIVES[config.objective].ranked:
        return
    with located(transform="train.transform", estimator="select.estimator"):
        falling = transform_checks.check_values(transform, job.config.select.estimator)
    if falling:
        job.note(
            f"train: WARNING: transform {config.transform!r} falls on {falling:.0%} of all quantiles, where a higher "
            "reward gives a lower target (config.train.transform)"
        )
    if config.partition != "population":
        return
    # A completion of one token has the largest β.
    largest = min(config.beta, config.beta_cap or math.inf) if config.length_normalised else config.beta
    with located("train.transform", "train.beta", "train.partition"):
        transforms.check_beta(largest, transform.smallest_beta, transform.name)


def check_reference_log_probs(job: Job) -> None:
    """Refuses a source of log π_ref that the stages or LoRA do not provide, or that the objective does not use."""
    config, stages = job.config.train, job.config.stages
    needs_reference = OBJECTIVES[config.objective].needs_reference
    if config.reference_log_probs == "stored":
        if needs_reference and "reference" not in stages:
            if brings_log_probs(job):
                note_brought(job)
                return
            raise UserError(
                f"objective {config.objective!r} needs log π_ref: put 'reference' before 'train' in config.stages, or "
                "with LoRA set config.train.reference_log_probs='on_the_fly'"
            )
        return
    if not job.config.lora.rank:
        raise UserError(
            "train.reference_log_probs 'on_the_fly' needs LoRA, whose base is the reference policy: set "
            "config.lora.rank, or config.train.reference_log_probs='stored'"
        )
    if "reference" in stages:
        raise UserError(
            "train.reference_log_probs 'on_the_fly' has no use for what stage 'reference' stores: remove the stage "
            "from config.stages, or set config.train.reference_log_probs='stored'"
        )
    if not needs_reference:
        raise UserError(
            f"objective {config.objective!r} uses no log π_ref: set config.train.reference_log_probs='stored'"
        )


def check_units(job: Job) -> None:
    """Refuses singles for a pairwise objective, and pairs that packed rows or rows of one completion cannot hold."""
    config, select, pack = job.config.train, job.config.select, job.config.pack
    if select.units == "singles":
        if OBJECTIVES[config.objective].pairwise:
            singles = ", ".join(name for name in OBJECTIVES if name not in having("pairwise"))
            raise UserError(
                f"objective {config.objective!r} compares two completions; set config.select.units to best_worst or "
                f"random_pairs, or use an objective for single ones ({singles})"
            )
        return
    if 0 < pack.row_tokens < 2 * pack.max_tokens:
        raise UserError(
            f"pack.row_tokens is {pack.row_tokens}; pairs of up to {pack.max_tokens} tokens each need at least "
            f"{2 * pack.max_tokens} (config.pack.row_tokens)"
        )
    if select.first == 1:
        raise UserError(
            "select.first is 1; pairs need two completions a row (config.select.first, config.select.units)"
        )


def check_reference_count(job: Job) -> None:
    """Refuses prompts without rewards, or with too few references for the transform and estimator."""
    config, select, sampled = job.config, job.config.select, sampled_completions(job.config)
    ranked, scored = chosen_objective(job).ranked, "score" in config.stages
    if not kind_of(config.prompts.source).listed:
        if not scored:
            raise UserError("sampled completions have no reward: put 'score' before 'train' in config.stages")
        if select.units != "singles" and sampled < 2:
            raise UserError(
                "sample.completions is below 2; pairs need two completions a row (config.sample.completions)"
            )
        if ranked:
            check_count(job, sampled, excluded=select.exclude_own)
        return
    source = open_listed(job, "train")
    unscored = source.where("unscored")
    if not scored and not sampled and unscored and order_suffices(job, source):
        return
    if not scored and (sampled or unscored):
        which = unscored.line("rows") if unscored else "those that are sampled"
        raise UserError(f"some completions have no reward, {which}: put 'score' before 'train' in config.stages")
    if ranked:
        check_counts(job, source, sampled)
    own_rows = source.where("own references") if ranked and not sampled else None
    if own_rows:
        what = "rows bring no references, so that each completion is ranked among the others of its row"
        job.note(f"train: {own_rows.line(what)}; quantiles are those of the reference policy only if it wrote them")


def order_suffices(job: Job, source: ListedRows) -> bool:
    """Whether the objective can do with the order of pairs, and each row without all rewards has one.

    Raises:
      UserError: the objective needs rewards, and rows have only an order.
    """
    objective = job.config.train.objective
    ordered = source.where("ordered only")
    if ordered and OBJECTIVES[objective].needs_rewards:
        without = ", ".join(name for name in OBJECTIVES if name not in having("needs_rewards"))
        raise UserError(
            f"objective {objective!r} needs rewards, and {ordered.line('rows say only which completion is better')}: "
            f"put 'score' before 'train' in config.stages, or train with {without} (config.train.objective)"
        )
    return not (source.listing.has("unscored") & ~source.listing.has("ordered only")).any()


def check_counts(job: Job, source: ListedRows, sampled: int) -> None:
    """Refuses listed rows with too few references, naming the first.

    Args:
      sampled: completions of each prompt that will be sampled.
    """
    listing = source.listing
    brought_R = listing.sampled_R
    if not sampled:  # all will have rewards
        brought_R = np.where(listing.has("own references"), listing.completions_R, brought_R)
    among_R = sampled + brought_R + listing.references_R
    excluded_R = job.config.select.exclude_own & (sampled + brought_R > 0)
    _, firsts = np.unique(2 * among_R + excluded_R, return_index=True)
    for first in np.sort(firsts).tolist():
        try:
            check_count(job, int(among_R[first]), excluded=bool(excluded_R[first]))
        except UserError as error:
            (row,) = source.rows([first])
            error.message = f"{source.place(row)}: row {row.id!r}: {error.message}"
            raise


def check_count(job: Job, references: int, *, excluded: bool) -> None:
    """Refuses too few references of a prompt.

    Args:
      references: number of rewards to rank among, with that of the completion itself if it is a reference.
      excluded: a completion is not ranked against itself, which leaves one reference fewer.
    """
    config, most = job.config, job.config.select.reference_count
    count = (min(references, most) if most else references) - excluded
    with located(
        "sample.completions",
        "select.reference_count",
        "select.exclude_own",
        "select.estimator",
        "train.transform",
    ):
        quantiles.check_references(count, transforms.parse(config.train.transform), config.select.estimator)
