"""Sampling and scoring of prompts, policy by policy: the work of stages `evaluate` and `harness`."""

import dataclasses
from typing import Any, NamedTuple

from qrpo_jax.data.rows import Row
from qrpo_jax.devices.processes import is_first
from qrpo_jax.evaluation.answers import Answers
from qrpo_jax.evaluation.compare import POLICY, REFERENCE
from qrpo_jax.evaluation.histogram import Spread
from qrpo_jax.evaluation.kl import LogRatios
from qrpo_jax.job import reward_counts, verdicts
from qrpo_jax.job.completions import make_completer
from qrpo_jax.job.held_out import answers_by_seed, folder_of, graded_by, rows_by_seed
from qrpo_jax.job.job import Job
from qrpo_jax.job.log_ratios import describes_samples, make_log_ratios
from qrpo_jax.job.pace import SAMPLED
from qrpo_jax.job.policies import Policy, same_tokens
from qrpo_jax.job.prompts import Prompts
from qrpo_jax.job.scoring import describe, open_reward, score_rows, written
from qrpo_jax.job.units import Counts, Work, add_counts, run_units, written_counts
from qrpo_jax.job.verdicts import FirstLines
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.rewards.failures import Failures
from qrpo_jax.rewards.reward import Reward


class Answered(NamedTuple):
    """What the policies answered. Folders are those of a policy and seed, such as "policy" or "policy-seed-1".

    Attributes:
      policies: the answers by name of the policy, seed and id of the row.
      counts, first_lines: of each folder, first lines by verdict.
      rewards: of each folder.
      held: how model-written code was kept apart: isolation, protections.
    """

    policies: dict[str, dict[int, dict[str, Answers]]]
    counts: dict[str, Counts]
    first_lines: dict[str, FirstLines]
    rewards: dict[str, Spread | None]
    held: dict[str, Any]


def answer(
    job: Job,
    prompts: Prompts,
    policies: list[Policy],
    base: Parameters,
    *,
    title: str = "evaluate",
    kl: bool = True,
) -> Answered | None:
    """Writes the scored rows of each policy and seed; None while other shards have units to write.

    Args:
      base: parameters of the model that the job starts from.
      title: of what is printed.
      kl: compute log-ratios for the KL between two policies.
    """
    seeds, counts = job.config.evaluate.seeds, dict[str, Counts | None]()
    ratios: dict[str, dict[int, list[LogRatios]]] = {}
    folders = [folder_of(job, policy.name, seed) for policy in policies for seed in seeds]
    failures = written(job, [counts for folder in folders for counts in written_counts(folder, prompts.units)])
    reference: tuple[Policy, Parameters] | None = None
    with open_reward(job, failures) as reward:
        job.say(f"{title}: {describe(reward)}")
        for policy in policies:
            parameters = policy.load(base)
            for seed in seeds:
                folder = folder_of(job, policy.name, seed)
                work = make_work(policy, seed, prompts, parameters, (reward, failures))
                bar = f"{title} {folder.name}"
                counts[folder.name] = run_units(
                    job, folder, prompts.units, work, title=bar, measure=SAMPLED, together=job.together
                )
            if policy.name == REFERENCE:
                reference = policy, parameters
            elif kl and reference is not None and None not in counts.values():
                ratios |= log_ratios(job, (policy, parameters), reference)
        held = {"isolation": reward.isolation, "protections": reward.protections}
    whole = {name: found for name, found in counts.items() if found is not None}
    if len(whole) < len(counts):
        return None
    parts = {name: reward_counts.parted(found) for name, found in whole.items()}
    of_verdicts = {name: verdicts.parted(found) for name, (found, _) in parts.items()}
    names = [policy.name for policy in policies]
    return Answered(
        {name: answers_by_seed(rows_by_seed(job, name), ratios.get(name, {}), graded_by(job)) for name in names},
        {name: found for name, (found, _) in of_verdicts.items()},
        {name: lines for name, (_, lines) in of_verdicts.items()},
        {name: spread for name, (_, spread) in parts.items()},
        held,
    )


def make_work(
    policy: Policy, seed: int, prompts: Prompts, parameters: Parameters, scoring: tuple[Reward, Failures]
) -> Work:
    """The work of one unit: sample completions of its prompts from one policy, and score them.

    All policies draw with the same random numbers, which makes their differences vary less.
    """
    (reward, failures), job, side = scoring, policy.job, policy.side
    purpose = f"evaluate {side}" + (f", seed {seed}" if seed else "")
    complete = make_completer(job, job.config.evaluate, parameters, side=side, purpose=purpose, most=prompts.size)

    def work(unit: int) -> tuple[list[Row], Counts]:
        rows, sampled = complete(prompts.rows(unit), prompts.indices(unit))
        if job.together and not is_first() and not reward.collective:
            return rows, sampled  # the first process scores and writes what all have sampled together
        rows, scored = score_rows(reward, [only_from(side, row) for row in rows], failures=failures)
        return rows, add_counts([sampled, scored, reward_counts.counts_of(rows)])

    return work


def only_from(source: str, row: Row) -> Row:
    """The row without completions of other sources, such as those that came with the prompt."""
    return dataclasses.replace(row, completions=tuple(c for c in row.completions if c.source == source))


def log_ratios(
    job: Job, own: tuple[Policy, Parameters], reference: tuple[Policy, Parameters]
) -> dict[str, dict[int, list[LogRatios]]]:
    """Log-ratios of the rows of a policy for its KL to the reference, and for that of the reference to the policy.

    Log-probabilities come from the function that training uses. There are none where they do not describe what was
    sampled, or where the two models have other tokens.
    """
    config = job.config.evaluate
    if not describes_samples(config):
        return {}
    if not same_tokens(own[0], reference[0]):
        job.say_once("evaluate: no KL between the two models, because their tokens differ")
        return {}
    pairs = [(own, reference)] + ([(reference, own)] if own[0].name == POLICY else [])
    found: dict[str, dict[int, list[LogRatios]]] = {}
    for (sampled, parameters), (other, other_parameters) in pairs:
        of_rows = make_log_ratios(sampled.job, sampled.side, other.job, other.side, temperature=config.temperature)
        rows = rows_by_seed(job, sampled.name)
        found[sampled.name] = {seed: of_rows(parameters, other_parameters, rows[seed]) for seed in rows}
    return found
