"""The page of a run: from its results and records to HTML. Text, tables and examples; `run_pictures` has the plots."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from qrpo_jax.data.rows import Row
from qrpo_jax.report import compile_page, harness_table, run_plots, speed
from qrpo_jax.report.evaluation_pictures import sentence
from qrpo_jax.report.headline import headline, sides_of
from qrpo_jax.report.page import number, render
from qrpo_jax.report.run_pictures import Picture
from qrpo_jax.training.host_skew import Summary
from qrpo_jax.training.time_sheet import Goodput

TEMPLATE = "report.html"
SHOWN_COMPLETIONS = 4  # of each side, in an example


class HeldOut(NamedTuple):
    """Held-out completions of both sides; prompts are in the same order on both.

    Attributes:
      rewards: for each side the rewards [S] of each prompt.
      examples: for each side the rows of the first few prompts.
    """

    rewards: dict[str, list[np.ndarray]]
    examples: dict[str, list[Row]]


class Verdicts(NamedTuple):
    """What a stage, or one of its sides, found about completions.

    Attributes:
      title: the stage, and the side if it has two.
      completions: their number by verdict.
      first_lines: for some failing verdicts the most frequent first lines, and their numbers. Untrusted text.
    """

    title: str
    completions: dict[str, int]
    first_lines: dict[str, dict[str, int]]


class StageRows(NamedTuple):
    """Rows of a stage, or of one of its sides.

    Attributes:
      rows_in, rows_out: read and written.
      cut: completions that the length limit cut, and `cut_share` their share; None where none were sampled.
    """

    title: str
    rows_in: int
    rows_out: int
    cut: int | None
    cut_share: float | None


class StagePace(NamedTuple):
    """Work of a stage, or of one of its sides.

    Attributes:
      amount: of `what` it got done.
      seconds: of work on all units; those of processes side by side add up.
      rate: of one process, in words.
      warm: the rate leaves out the first unit of each start.
    """

    title: str
    amount: int
    what: str
    seconds: float
    rate: str
    warm: bool


class Protections(NamedTuple):
    """How model-written code was kept apart.

    Attributes:
      level: of isolation.
      prevented, not_prevented: actions.
    """

    level: str
    prevented: list[str]
    not_prevented: list[str]


class RunRecord(NamedTuple):
    """What the stages of a run put on record besides results.json.

    Attributes:
      counts: for each stage its counts by name.
      rows: of the stages that write rows.
      verdicts: of the stages that scored completions with verdicts.
      padding: share of padding in each training stage's batches.
      comparisons: ties among the training rewards: compared, tied, prompts, flat; empty if unknown.
      protections: what model-written code was prevented from doing, and what not; None if no such code ran.
      settings: all settings of the run by name.
      speeds: tokens per second of each training stage.
      paces: of the stages that write rows.
      times: where the time of each training stage went.
      skews: between the processes in each training stage; empty for a job of one process.
      benchmark: content of benchmark.json; None for a run without this stage.
      compiled: content of compile.json, if stage `compile` ran in the same folder.
    """

    counts: list[tuple[str, list[tuple[str, int]]]]
    rows: list[StageRows]
    verdicts: list[Verdicts]
    padding: dict[str, float]
    comparisons: dict[str, float]
    protections: Protections | None
    settings: dict[str, Any]
    speeds: dict[str, float]
    paces: list[StagePace]
    times: dict[str, Goodput]
    skews: dict[str, Summary]
    benchmark: dict[str, Any] | None = None
    compiled: dict[str, Any] | None = None


def build(results: dict[str, Any], held_out: HeldOut, pictures: Sequence[Picture], record: RunRecord) -> str:
    """The page as HTML.

    Args:
      results: content of results.json.
      held_out: the completions behind it.
      pictures: plots with their captions.
      record: everything else that the page lists.
    """
    sides, found = sides_of(results), results.get("harnesses", {})
    rewards = [number(results[side]["mean_reward"]) for side in sides]
    what = f"{results['settings']['objective'].upper()} run" if "objective" in results["settings"] else "Evaluation"
    return render(
        TEMPLATE,
        title=f"{what}: held-out reward {' → '.join(rewards)}",
        results=results,
        sides=sides,
        verdict=verdict(results),
        headline=headline(results, held_out.rewards),
        intervals=Markup(run_plots.intervals({s: (results[s]["mean_reward"], results[s]["ci95"]) for s in sides})),
        optimum=optimum_table(results),
        benchmarks=[harness_table.columns(found), *harness_table.rows(found)] if found else [],
        achieved=sentence(results["achieved"]["verdict"]) if results.get("achieved") else "",
        plots=pictures,
        examples=examples(held_out),
        verdict_names=list(dict.fromkeys(name for one in record.verdicts for name in one.completions)),
        benchmark_columns=speed.COLUMNS,
        benchmark_about=speed.about(record.benchmark) if record.benchmark else "",
        benchmark_rows=speed.rows(record.benchmark) if record.benchmark else [],
        **record._asdict(),
        **(compile_page.parts(record.compiled) if record.compiled else {"programs": None}),
    )


def verdict(results: dict[str, Any]) -> str:
    """The result in a few sentences."""
    policy = results["policy"]
    sample = (
        f"On {policy['prompts']} held-out prompts, with {policy['completions'] / policy['prompts']:g} completions each "
        f"at temperature {results['settings']['temperature']:g}, the mean reward is"
    )
    if "reference" not in results:
        low, high = (number(end) for end in policy["ci95"])
        return f"{sample} {number(policy['mean_reward'])} (95 % interval {low} to {high})."
    reference, gain = results["reference"], results["gain"]
    policy_name = "trained policy" if "objective" in results["settings"] else "policy"
    low, high = gain["ci95"]
    if not (math.isfinite(low) and math.isfinite(high)):
        conclusion = "There are too few prompts for an interval."
    elif low > 0:
        conclusion = "The interval lies above zero: the policy improved by more than chance explains."
    elif high < 0:
        conclusion = "The interval lies below zero: the policy became worse."
    else:
        conclusion = "The interval contains zero: these prompts show no clear difference between policy and reference."
    return (
        f"{sample} {number(reference['mean_reward'])} "
        f"for the reference and {number(policy['mean_reward'])} for the {policy_name}: a change of "
        f"{number(gain['mean_reward'], sign=True)} (95 % interval {number(low, sign=True)} to "
        f"{number(high, sign=True)}). {conclusion} On average a completion of the policy ranks at quantile "
        f"{number(policy['mean_quantile'])} among the reference's completions of the same prompt; 0.5 means no change."
    )


def optimum_table(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of the table of the optimum: label, optimum, policy; none for objectives without a known optimum."""
    optimum, policy = results["optimum"], results["policy"]
    if optimum.get("kl") is None:
        return []
    quantile = policy["mean_quantile"]
    effective_n = quantile / (1 - quantile) if quantile < 1 else math.inf
    k1, k3 = (number(policy.get(f"kl_to_reference_{estimator}", math.nan)) for estimator in ("k1", "k3"))
    return [
        ("Expected quantile", number(optimum["expected_quantile"]), number(quantile)),
        ("KL(policy ‖ reference), nats", number(optimum["kl"]), f"{k1} (k1), {k3} (k3)"),
        ("Effective N of Best-of-N", number(optimum["effective_best_of_n"]), number(effective_n)),
    ]


def examples(held_out: HeldOut) -> list[dict[str, Any]]:
    """The first held-out prompts with the first completions of each side."""
    entries, sides = [], list(held_out.examples)
    for i, of_prompt in enumerate(zip(*held_out.examples.values(), strict=True)):
        rows = dict(zip(sides, of_prompt, strict=True))
        entries.append(
            {
                "messages": rows["policy"].messages,
                "completions": {side: row.completions[:SHOWN_COMPLETIONS] for side, row in rows.items()},
                "means": {side: float(held_out.rewards[side][i].mean()) for side in sides},
                "counts": {side: len(row.completions) for side, row in rows.items()},
            }
        )
    return entries
