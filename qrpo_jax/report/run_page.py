"""The page of a run: from its results, pictures and records to HTML, and its tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qrpo_jax.report import compile_page, harness_table, rollout_table, run_tables, samples, speed, training_plots
from qrpo_jax.report.headline import curve_table, headline, optimum_table, sides_of
from qrpo_jax.report.page import render, script
from qrpo_jax.report.run_pictures import Picture
from qrpo_jax.report.run_record import HeldOut, RunRecord
from qrpo_jax.report.tables import Table
from qrpo_jax.report.texts import number

TEMPLATE = "run.html"


class Pictures(NamedTuple):
    """The plots of the sections of a page."""

    held_out: Sequence[Picture]
    rollouts: Sequence[Picture]
    training: Sequence[Picture]
    data: Sequence[Picture]
    speed: Sequence[Picture]


def tables(results: dict[str, Any], held_out: HeldOut, record: RunRecord) -> dict[str, Table]:
    """All tables of a run by name; those without rows are left out."""
    optional = {"optimum": optimum_table(results), "curve": curve_table(results)}
    found = {"headline": headline(results, held_out.rewards)} if "policy" in results else {}
    found |= {name: table for name, table in optional.items() if table is not None}
    if harnesses := results.get("harnesses"):
        found["benchmarks"] = harness_table.table(harnesses)
    if record.on_policy is not None:
        found["iterations"] = rollout_table.table(record.on_policy)
    return found | run_tables.run_tables(record)


def build(
    results: dict[str, Any], held_out: HeldOut, pictures: Pictures, record: RunRecord, found: Mapping[str, Table]
) -> str:
    """The page as HTML.

    Args:
      results: content of results.json.
      held_out: the completions behind it.
      pictures: plots with their captions.
      record: everything else that the page lists.
      found: from `tables`.
    """
    sides = sides_of(results)
    trained = "objective" in results["settings"]
    own = "On-policy " if record.on_policy is not None else ""
    what = f"{own}{results['settings']['objective'].upper()} run" if trained else "Evaluation"
    rewards = " → ".join(number(results[side]["mean_reward"]) for side in sides)
    title = f"{what}: held-out reward {rewards}" if sides else what if trained else "Rows"
    means = {side: [float(reward_S.mean()) for reward_S in of_side] for side, of_side in held_out.rewards.items()}
    return render(
        TEMPLATE,
        script("search.js"),
        title=title,
        eyebrow=eyebrow(record),
        results=results,
        sides=sides,
        conclusion=conclusion(results),
        sample_size=sample_size(results) if sides else "",
        achieved=sentence(results["achieved"]["verdict"]) if results.get("achieved") else "",
        tables=found,
        pictures=pictures,
        samples=samples.samples(held_out.places, means, held_out.examples),
        dropped=run_tables.dropped(record),
        drawn=rollout_table.drawn(record),
        iterations=rollout_table.shortened(found["iterations"]) if "iterations" in found else None,
        smoothed_from=training_plots.SMOOTHED_FROM,
        most_points=training_plots.MOST_POINTS,
        provenance=run_tables.provenance(record.starts),
        benchmark_about=speed.about(record.benchmark) if record.benchmark else "",
        **record._asdict(),
        **(compile_page.parts(record.compiled) if record.compiled else {"programs": None}),
    )


def sentence(clause: str) -> str:
    """A clause as a sentence.

    >>> sentence("asked for KL 1")
    'Asked for KL 1.'
    """
    return f"{clause[:1].upper()}{clause[1:]}."


def eyebrow(record: RunRecord) -> list[str]:
    """What stands above the title: model, source of the prompts, and when."""
    settings = record.settings
    parts = [str(settings["model.path"]) if settings.get("model.path") else "a model trained from scratch"]
    if settings.get("prompts.source"):
        parts.append(str(settings["prompts.source"]))
    started = [one["started"] for several in record.starts.values() for one in several]
    return [*parts, *([run_tables.time_of(max(started))[:10]] if started else [])]


def sample_size(results: dict[str, Any]) -> str:
    """What the figures are of."""
    policy = results["policy"]
    each = policy["completions"] / policy["prompts"]
    return (
        f"{policy['prompts']} held-out prompts, {each:g} completions each at temperature "
        f"{results['settings']['temperature']:g}"
    )


def conclusion(results: dict[str, Any]) -> str:
    """The result in a sentence or two."""
    if "policy" not in results:
        return "No stage of this run evaluates a policy, so there are no held-out figures."
    policy = results["policy"]
    if "reference" not in results:
        low, high = (number(end) for end in policy["ci95"])
        return f"The mean reward is {number(policy['mean_reward'])} (95 % interval {low} to {high})."
    gain = results["gain"]
    low, high = gain["ci95"]
    name = "trained policy" if "objective" in results["settings"] else "policy"
    if not (math.isfinite(low) and math.isfinite(high)):
        found = "There are too few prompts for an interval."
    elif low > 0:
        found = f"The {name} is better than the reference: the interval of the gain lies above zero."
    elif high < 0:
        found = f"The {name} became worse than the reference: the interval of the gain lies below zero."
    else:
        found = f"No clear difference between {name} and reference here: the interval of the gain contains zero."
    return (
        f"{found} On average one of its completions ranks at quantile {number(policy['mean_quantile'])} among the "
        "reference’s completions of the same prompt; 0.5 is no change."
    )
