"""Stage `train` with `train.data="on_policy"`: iterations of sampling, scoring, log-probs, packing and steps."""

import functools
from collections.abc import Mapping
from typing import Any

from qrpo_jax.advantages import adapted_beta
from qrpo_jax.data import row_files
from qrpo_jax.devices.dtypes import FLOATS
from qrpo_jax.devices.processes import is_first, wait
from qrpo_jax.files import remove_folder
from qrpo_jax.job import verdicts
from qrpo_jax.job.chosen_objective import chosen_objective, reads_reference
from qrpo_jax.job.job import Job
from qrpo_jax.job.optimum_forecast import say_forecast
from qrpo_jax.job.scoring import describe, open_reward, report_dropped
from qrpo_jax.job.trainer import Feed, Training, first_parameters, train
from qrpo_jax.job.units import add_counts
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.on_policy.batches import rank
from qrpo_jax.on_policy.circle import Circle
from qrpo_jax.on_policy.iterations import NAME as ITERATIONS
from qrpo_jax.on_policy.iterations import write_iterations
from qrpo_jax.on_policy.prompt_order import STAGE, PromptOrder, open_prompt_order
from qrpo_jax.on_policy.roller import Roller
from qrpo_jax.on_policy.rollout import read_facts
from qrpo_jax.on_policy.rollout_figures import KL
from qrpo_jax.on_policy.rollouts import DRAWN, Rollouts
from qrpo_jax.on_policy.row_shape import RowShape, choose_shape, units_per_prompt
from qrpo_jax.rewards.failures import Failures
from qrpo_jax.training.state import stored_for_forward

FOLDER = "rollouts"  # in the stage's


def train_on_policy(job: Job, training: Training) -> dict[str, Any]:
    """Trains on completions of the policy itself, and returns the stage's manifest.

    prompts → complete → score → log-probs → batches → steps, again and again
    """
    by_references = chosen_objective(job).ranked and job.config.rollout.quantiles == "reference"
    order = open_prompt_order(job, with_references=by_references)
    failures = Failures(job.config.reward.failures)
    with open_reward(job, failures) as reward:
        roller = Roller(
            job, order, reward, failures, frozen=training.frozen, reference=reference_of(job, training.frozen)
        )
        iterations, next_beta = job.config.rollout.iterations, functools.partial(beta_after, job.config.train)
        rollouts = Rollouts(roller, job.folder(STAGE) / FOLDER, iterations, next_beta)
        first = functools.cache(lambda: rank(job, rollouts.at(0, lambda: first_parameters(job, training), 0)))
        shape = choose_shape(job, first)
        circle = Circle(job, rollouts, shape)
        say_plan(job, circle, shape, order, describe(reward))
        # The optimum of quantiles among stored references is the same, whoever wrote what is ranked.
        optimum = say_forecast(job, first()) if by_references else None
        facts = functools.partial(facts_of, job, shape)
        feed = Feed(circle, circle.steps, shape.microbatches, circle.name, facts, circle.producer)
        held = {"isolation": reward.isolation, "protections": reward.protections}
        manifest = train(job, STAGE, training, feed)
    if is_first():
        folder = job.folder(STAGE)
        row_files.finish(folder / FOLDER, iterations)
        remove_folder(folder / FOLDER / DRAWN)  # all of them have their scores
        write_iterations(folder / ITERATIONS, folder / FOLDER, iterations, circle.steps_each)
    wait("rollouts finished")
    return manifest | held | {"forecast": optimum, "stored_references": by_references}


def beta_after(config: Any, before: Mapping[str, Any] | None) -> float:
    """Strength of the KL term in the reward, which adapts if `train.kl_target` is set.

    Args:
      before: facts of the rollout before; None for the first.
    """
    if before is None or not config.kl_target or KL not in before["figures"]:
        return float(before["beta"] if before else config.beta)
    return adapted_beta(before["beta"], before["figures"][KL], config.kl_target)


def reference_of(job: Job, frozen: Parameters | None) -> Parameters | None:
    """Parameters of the reference policy for log π_ref: the base of adapters, or a copy beside what is trained."""
    if not reads_reference(job):
        return None
    if frozen is not None:
        return frozen
    return stored_for_forward(job.reference_parameters(job.mesh), FLOATS[job.config.model.compute_dtype])


def say_plan(job: Job, circle: Circle, shape: RowShape, order: PromptOrder, reward: str) -> None:
    """Prints what the run will do."""
    section, config = job.config.rollout, job.config.train
    kind = "completions" if job.config.select.units == "singles" else "pairs"
    job.say(
        f"{STAGE}: on-policy, {section.iterations} iterations of {section.prompts} prompts x {section.completions} "
        f"completions ({section.prompts * units_per_prompt(job)} {kind}, {circle.steps_each} steps), "
        f"{section.iterations * section.prompts / len(order):.1f} rounds over {len(order)} prompts; {reward}"
    )
    job.say(
        f"{STAGE}: batches of up to {config.batch_size} {kind} in rows of {shape.row_tokens} tokens, {shape.part_rows} "
        f"at a time, up to {shape.slots} completions a row"
    )


def facts_of(job: Job, shape: RowShape) -> dict[str, Any]:
    """For the manifest: counts of all iterations together, what failing completions said, and the shape of batches."""
    folder, iterations = job.folder(STAGE) / FOLDER, job.config.rollout.iterations
    counts, lines = verdicts.parted(add_counts([read_facts(folder, i)["counts"] for i in range(iterations)]))
    report_dropped(job, STAGE, counts)
    verdicts.say(job, STAGE, counts, lines)
    return {
        "counts": counts,
        "first_lines": lines,
        "iterations": iterations,
        "rows": shape.rows,
        "row_tokens": shape.row_tokens,
    }
