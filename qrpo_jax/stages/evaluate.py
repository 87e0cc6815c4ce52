"""Stage `evaluate`: compares reference and policy on held-out prompts, sampled at the same temperature."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.data.rows import Row
from qrpo_jax.devices.processes import is_first
from qrpo_jax.errors import UserError, located
from qrpo_jax.evaluation import kl
from qrpo_jax.evaluation.compare import SIDES, Answers, compare
from qrpo_jax.evaluation.histogram import Spread
from qrpo_jax.files import write_json
from qrpo_jax.job import reward_counts, summary, verdicts
from qrpo_jax.job.accounting import held_out
from qrpo_jax.job.completions import check_sampling, make_completer
from qrpo_jax.job.job import Job
from qrpo_jax.job.log_probs import make_log_probs
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.pace import SAMPLED
from qrpo_jax.job.prompts import Prompts, check_held_out, open_prompts
from qrpo_jax.job.reward_checks import check_reward
from qrpo_jax.job.scoring import describe, open_reward, report_dropped, score_rows, written
from qrpo_jax.job.units import Counts, Work, add_counts, run_units, written_counts
from qrpo_jax.job.verdicts import FirstLines
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.rewards.failures import Failures
from qrpo_jax.rewards.reward import Reward
from qrpo_jax.stages import RESULTS


def run(job: Job) -> dict[str, Any] | None:
    parameters = dict(zip(SIDES, job.unit_parameters("reference", "policy"), strict=True))
    prompts = open_prompts(job, "evaluate", parameters["reference"])
    found = sample_and_score(job, prompts, parameters)
    if found is None:
        return None
    counts = {side: side_counts for side, (side_counts, _) in found.sides.items()}

    rows = {side: list(side_rows) for side, side_rows in held_out(job).items()}
    check_any_scored(rows)
    results = compare({side: [answers(row) for row in rows[side]] for side in SIDES})
    written = {}
    for side in SIDES:
        title, folder, rows_in = f"evaluate, {side}", job.folder("evaluate") / side, prompts.source.count
        written[side] = summary.close(
            job, title, folder, units=prompts.units, rows_in=rows_in, counts=counts[side], measure=SAMPLED
        )
        results[side]["not_scored"] = report_dropped(job, title, counts[side])
        verdicts.say(job, title, *found.sides[side])
        summary.say_rewards(job, title, found.rewards[side])
    for side, estimates in kl_estimates(job, rows, parameters).items():
        results[side] |= estimates
    results |= {"settings": shown_settings(job), "optimum": training_forecast(job)}

    for folder in (job.folder("evaluate"), job.workdir):
        write_json(folder / RESULTS, results)
    say_results(job, results)
    dropped = {"held out": prompts.counts} if prompts.counts else {}
    lines = {side: side_lines for side, (_, side_lines) in found.sides.items()}
    completions = {"counts": counts | dropped, "row_flow": written, "first_lines": lines}
    return {"units": prompts.units, "results": results} | completions | found.held


class Scored(NamedTuple):
    """What scoring found.

    Attributes:
      sides: of each side the counts, and first lines by verdict.
      rewards: of each side.
      held: how model-written code was kept apart: isolation, protections.
    """

    sides: dict[str, tuple[Counts, FirstLines]]
    rewards: dict[str, Spread | None]
    held: dict[str, Any]


def sample_and_score(job: Job, prompts: Prompts, parameters: dict[str, Parameters]) -> Scored | None:
    """Writes the scored rows of each side; None while other shards have units to write."""
    sides: dict[str, tuple[Counts, FirstLines]] = {}
    rewards: dict[str, Spread | None] = {}
    folders = [job.folder("evaluate") / side for side in SIDES]
    failures = written(job, [counts for folder in folders for counts in written_counts(folder, prompts.units)])
    with open_reward(job, failures) as reward:
        job.say(f"evaluate: {describe(reward)}")
        for side in SIDES:
            work = make_work(job, side, prompts, parameters, (reward, failures))
            side_counts = run_units(
                job,
                job.folder("evaluate") / side,
                prompts.units,
                work,
                title=f"evaluate {side}",
                measure=SAMPLED,
                together=job.together,
            )
            if side_counts is None:
                return None
            side_counts, rewards[side] = reward_counts.parted(side_counts)
            sides[side] = verdicts.parted(side_counts)
        return Scored(sides, rewards, {"isolation": reward.isolation, "protections": reward.protections})


def make_work(
    job: Job, side: str, prompts: Prompts, parameters: dict[str, Parameters], scoring: tuple[Reward, Failures]
) -> Work:
    """The work of one unit: sample completions of its prompts from one side, and score them."""
    reward, failures = scoring
    complete = make_completer(
        job, job.config.evaluate, parameters[side], side=side, purpose=f"evaluate {side}", most=prompts.size
    )

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


def check_any_scored(rows: dict[str, list[Row]]) -> None:
    """Refuses an evaluation that has no prompt left.

    Raises:
      UserError: naming the limits that completions exceeded.
    """
    with located("reward.max_tokens", "evaluate.max_new_tokens"):
        if not rows["policy"]:
            raise UserError(
                "no held-out prompt has completions of both sides that the reward could score: they were too long, or "
                "their reward failed"
            )


def answers(row: Row) -> Answers:
    return Answers(
        np.asarray([c.reward for c in row.completions]),
        np.asarray([len(c.tokens) for c in row.completions]),
        np.asarray([c.finished for c in row.completions]),
    )


def kl_estimates(
    job: Job, rows: dict[str, list[Row]], parameters: dict[str, Parameters]
) -> dict[str, dict[str, float]]:
    """KL in nats per completion from each side to the other, estimated from samples of the first.

    Log-probabilities come from the function that training uses. Greedy and truncated sampling have no estimate,
    because they do not draw from the distribution that the log-probabilities describe.
    """
    config = job.config.evaluate
    if not (config.temperature > 0 and config.top_k == 0 and config.top_p == 1 and config.min_p == 0):
        return {}
    log_probs = {side: make_log_probs(job, side, temperature=config.temperature) for side in SIDES}
    estimates = {}
    for side, other in (SIDES, SIDES[::-1]):
        log_prob_C, other_log_prob_C = (
            np.concatenate(log_probs[scorer](parameters[scorer], rows[side])[0]) for scorer in (side, other)
        )
        log_ratio_C = other_log_prob_C - log_prob_C
        estimates[side] = {f"kl_to_{other}_k1": kl.k1(log_ratio_C), f"kl_to_{other}_k3": kl.k3(log_ratio_C)}
    return estimates


def shown_settings(job: Job) -> dict[str, Any]:
    """The settings that results.json shows beside the figures."""
    config = job.config
    names = ("objective", "beta", "transform", "loss", "learning_rate")
    of_training = {name: config.train[name] for name in names}
    return of_training | {"seed": config.seed, "temperature": config.evaluate.temperature}


def training_forecast(job: Job) -> dict[str, Any]:
    """The forecast of the optimum that stage `train` recorded; empty for objectives without one."""
    manifest = read_manifest(job.folder("train"))
    assert manifest is not None, "evaluate runs after train"
    return manifest["forecast"] or {}


def say_results(job: Job, results: dict[str, Any]) -> None:
    config = job.config.evaluate
    job.say(
        f"\nHeld-out mean reward, {results['policy']['prompts']} prompts x {config.completions} completions, "
        f"temperature {config.temperature:g}:"
    )
    for side in SIDES:
        low, high = results[side]["ci95"]
        job.say(f"  {side:<10} {results[side]['mean_reward']:.3f}   95 % interval {low:.3f} to {high:.3f}")
    low, high = results["gain"]["ci95"]
    job.say(f"  {'gain':<10} {results['gain']['mean_reward']:+.3f}   95 % interval {low:+.3f} to {high:+.3f}\n")


def check(job: Job) -> None:
    check_held_out(job, 2)  # an interval needs two prompts
    check_sampling(job, "evaluate")
    check_reward(job)
