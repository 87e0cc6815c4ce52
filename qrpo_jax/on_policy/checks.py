"""What can be wrong with the settings of an on-policy run, before anything is computed."""

from typing import Any

from qrpo_jax import quantiles, transforms
from qrpo_jax.config.keys import refuse
from qrpo_jax.data.sources import kind_of
from qrpo_jax.data.views import VIEWS
from qrpo_jax.errors import UserError, located
from qrpo_jax.job.chosen_objective import chosen_objective
from qrpo_jax.job.completions import check_sampling
from qrpo_jax.job.job import Job
from qrpo_jax.job.reward_checks import check_reward
from qrpo_jax.job.source_check import sampled_completions
from qrpo_jax.job.training_options import check_count, check_objective
from qrpo_jax.job.training_room import training_room
from qrpo_jax.on_policy.roller import SECTION
from qrpo_jax.on_policy.row_shape import units_per_prompt

COMPARED = ("group", "leave_one_out")  # advantages that compare completions of one prompt


def check_on_policy(job: Job) -> None:
    """Refuses settings with which a policy cannot sample, score or learn from its own completions.

    Raises:
      UserError: naming the key.
    """
    check_objective(job)
    check_sampling(job, SECTION)
    check_reward(job)
    check_distribution(job.config)
    check_unused(job.config)
    check_groups(job)
    check_ahead(job)
    training_room(job)


def check_distribution(config: Any) -> None:
    """Refuses to sample from another distribution than the one whose log-probs training takes."""
    section, temperature = config.rollout, config.log_probs.temperature
    if section.temperature != temperature:
        raise refuse(
            "rollout.temperature",
            f"{section.temperature:g}, but log-probs are taken at {temperature:g}; the policy that samples must be "
            "the one that is trained: set config.log_probs.temperature to the same",
        )


def check_unused(config: Any) -> None:
    """Refuses keys that other data need."""
    if config.train.reference_log_probs != "stored":
        raise refuse(
            "train.reference_log_probs",
            f"{config.train.reference_log_probs!r}; an on-policy run stores log π_ref with its rollouts: leave it out",
        )
    if config.train.evaluate_every:
        raise refuse(
            "train.evaluate_every",
            f"{config.train.evaluate_every}; on-policy there are no rows to hold out: set 0, and config.watch.every",
        )


def check_groups(job: Job) -> None:
    """Refuses groups that are too small for pairs or quantiles, and quantiles without references."""
    config, objective = job.config, chosen_objective(job)
    section, select = config.rollout, config.select
    if VIEWS[select.units].references:
        raise refuse("select.units", f"{select.units!r} takes stored completions; use singles or pairs of a group")
    if objective.pairwise and VIEWS[select.units].pairing is None:
        raise refuse(
            "select.units",
            f"{select.units!r}, but objective {config.train.objective!r} compares two completions: use best_worst, "
            "random_pairs or all_pairs",
        )
    if objective.advantage is not None and VIEWS[select.units].pairing is not None:
        raise refuse("select.units", f"{select.units!r}; objective {config.train.objective!r} takes singles")
    if objective.advantage in COMPARED and section.completions < 2:
        raise refuse("rollout.completions", f"{section.completions}; the others of a group say what one is worth: 2")
    if units_per_prompt(job) < 1:
        raise refuse("rollout.completions", f"{section.completions}; pairs need two completions of a prompt")
    if not objective.ranked:
        return
    if section.quantiles == "group":
        with located("rollout.completions", "train.transform", "select.estimator", "select.exclude_own"):
            count = section.completions - select.exclude_own
            quantiles.check_references(count, transforms.parse(config.train.transform), select.estimator)
        return
    if "score" not in config.stages and not kind_of(config.prompts.source).listed:
        raise UserError(
            "rollout.quantiles is 'reference', and no stage before 'train' has scored completions of the reference "
            "policy: put 'sample' and 'score' before it in config.stages, or set config.rollout.quantiles='group'"
        )
    if sampled := sampled_completions(config):
        check_count(job, sampled, excluded=False)
    if config.train.partition == "empirical":
        job.note(
            "train: WARNING: train.partition 'empirical' takes a completion's own reward for one more draw of the "
            "reference policy, which on-policy it is not: log Z is too high (config.train.partition)"
        )


def check_ahead(job: Job) -> None:
    """Refuses to fill up groups from a policy that is gone."""
    section = job.config.rollout
    if section.ahead and section.refill:
        raise refuse(
            "rollout.refill",
            f"{section.refill}; with rollout.ahead the policy that sampled has moved on when rewards are known: set "
            "one of the two to 0 or False",
        )
    if section.ahead and any(":" in name for name in job.rewards):
        job.note("train: with rollout.ahead a Python function that scores has no time limit (config.reward.seconds)")
