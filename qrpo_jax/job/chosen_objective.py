"""The objective that a config chooses, and what a run needs for it."""

from qrpo_jax.job.job import Job
from qrpo_jax.job.source_check import is_on_policy
from qrpo_jax.training.objective import Objective
from qrpo_jax.training.objectives import OBJECTIVES


def chosen_objective(job: Job) -> Objective:
    """The record of the config's objective."""
    return OBJECTIVES[job.config.train.objective]


def reads_reference(job: Job) -> bool:
    """Whether an on-policy run computes log π_ref, from the base of adapters or from a copy beside what it trains."""
    config, objective = job.config.train, chosen_objective(job)
    if not is_on_policy(job.config) or not objective.needs_reference:
        return False
    return not objective.on_policy_only or bool(config.beta or config.kl_target)
