"""Stage `train` with `train.data="on_policy"`: iterations of sampling, scoring, log-probs, packing and steps."""

from collections import Counter
from typing import Any

import numpy as np

from qrpo_jax.data import row_files
from qrpo_jax.devices.dtypes import FLOATS
from qrpo_jax.devices.processes import is_first, wait
from qrpo_jax.job.job import Job
from qrpo_jax.job.scoring import describe, open_reward
from qrpo_jax.job.trainer import Feed, Training, train
from qrpo_jax.job.training_options import chosen_objective
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.on_policy.circle import Circle
from qrpo_jax.on_policy.prompt_order import STAGE, PromptOrder, open_prompt_order
from qrpo_jax.on_policy.roller import Roller
from qrpo_jax.on_policy.rollout import read_facts
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
        shape = choose_shape(job, prompt_lengths(job, order))
        circle = Circle(job, roller, shape, job.folder(STAGE) / FOLDER)
        say_plan(job, circle, shape, order, describe(reward))
        feed = Feed(
            circle,
            circle.iterations * circle.steps_each,
            shape.microbatches,
            circle.name,
            lambda: facts_of(job, circle, shape),
            circle.producer,
        )
        manifest = train(job, STAGE, training, feed)
    if is_first():
        row_files.finish(job.folder(STAGE) / FOLDER, circle.iterations)
    wait("rollouts finished")
    return manifest


def reference_of(job: Job, frozen: Parameters | None) -> Parameters | None:
    """Parameters of the reference policy for log π_ref: the base of adapters, or a copy beside what is trained."""
    if not chosen_objective(job).needs_reference:
        return None
    if frozen is not None:
        return frozen
    return stored_for_forward(job.reference_parameters(job.mesh), FLOATS[job.config.model.compute_dtype])


def prompt_lengths(job: Job, order: PromptOrder) -> np.ndarray:
    """Tokens of the first iteration's prompts, int [P]."""
    rows = order.rows(range(min(len(order), job.config.rollout.prompts)))
    lengths = [len(job.text.prompt(row.messages, f"row {row.id!r}")) for row in rows]
    return np.minimum(np.asarray(lengths, int), job.config.prompts.max_tokens)


def say_plan(job: Job, circle: Circle, shape: RowShape, order: PromptOrder, reward: str) -> None:
    """Prints what the run will do."""
    section, config = job.config.rollout, job.config.train
    kind = "completions" if job.config.select.units == "singles" else "pairs"
    job.say(
        f"{STAGE}: on-policy, {circle.iterations} iterations of {section.prompts} prompts x {section.completions} "
        f"completions ({section.prompts * units_per_prompt(job)} {kind}, {circle.steps_each} steps), "
        f"{circle.iterations * section.prompts / len(order):.1f} rounds over {len(order)} prompts; {reward}"
    )
    job.say(
        f"{STAGE}: batches of up to {config.batch_size} {kind} in rows of {shape.row_tokens} tokens, {shape.part_rows} "
        f"at a time, up to {shape.slots} completions a row"
    )


def facts_of(job: Job, circle: Circle, shape: RowShape) -> dict[str, Any]:
    """For the manifest: counts of all iterations together, and the shape of batches."""
    folder, counts = job.folder(STAGE) / FOLDER, Counter[str]()
    for iteration in range(circle.iterations):
        counts.update(read_facts(folder, iteration)["counts"])
    return {
        "counts": dict(counts),
        "iterations": circle.iterations,
        "rows": shape.rows,
        "row_tokens": shape.row_tokens,
    }
