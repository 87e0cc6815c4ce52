"""Stage `report`: one self-contained page on what a run did, made of what the stages before it left on disk."""

import json
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from markupsafe import Markup

from qrpo_jax import optimum, transforms
from qrpo_jax.data.rows import Row
from qrpo_jax.job import accounting
from qrpo_jax.job.accounting import SIDES
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import flatten
from qrpo_jax.report import run_plots
from qrpo_jax.report.page import PAGE, number, render
from qrpo_jax.training.metrics import read_metrics
from qrpo_jax.training.objectives import OBJECTIVES

SHOWN_COMPLETIONS = 4  # of each side, an example
MOST_RANKS = 21

REGRESSIONS = {"mse": "squared", "mae": "absolute"}


class Plot(NamedTuple):
    """An SVG and what is to be said about it."""

    svg: Markup
    caption: str


class Held(NamedTuple):
    """The held-out rows of both sides, prompt by prompt: the rewards of all, the texts of the first few."""

    rewards: dict[str, list[np.ndarray]]
    first: dict[str, list[Row]]


def run(job: Job) -> dict[str, Any]:
    results = json.loads((job.folder("evaluate") / "results.json").read_text())
    held = read_held(job)
    pictures = [*held_out_plots(job, held, results), *training_plots(job, results)]
    page = render(
        title=f"{job.config.train.objective.upper()} run: held-out reward "
        f"{number(results['reference']['mean_reward'])} → {number(results['policy']['mean_reward'])}",
        results=results,
        verdict=verdict(results),
        headline=headline(results, held),
        intervals=Markup(run_plots.intervals({s: (results[s]["mean_reward"], results[s]["ci95"]) for s in SIDES})),
        optimum=optimum_table(results),
        plots=pictures,
        examples=examples(held),
        counts=accounting.stage_counts(job),
        padding=accounting.paddings(job),
        comparisons=accounting.comparisons(job),
        protections=accounting.protections(job),
        settings=flatten(job.config.to_dict()),
        speeds=accounting.speeds(job),
    )
    path = job.folder("report") / PAGE
    if jax.process_index() == 0:
        temporary = path.with_name(f".tmp-{PAGE}-{os.getpid()}")
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, path)
    job.say(f"report: {path}")
    return {"page": PAGE, "plots": len(pictures) + 1, "examples": len(held.first["policy"])}


def read_held(job: Job) -> Held:
    rewards: dict[str, list[np.ndarray]] = {}
    first: dict[str, list[Row]] = {}
    for side, rows in accounting.held_out(job).items():
        rewards[side], first[side] = [], []
        for row in rows:
            rewards[side].append(np.asarray([c.reward for c in row.completions]))
            if len(first[side]) < job.config.report.examples:
                first[side].append(row)
    return Held(rewards, first)


def verdict(results: dict[str, Any]) -> str:
    reference, policy, gain = results["reference"], results["policy"], results["gain"]
    low, high = gain["ci95"]
    text = (
        f"On {policy['prompts']} held-out prompts, sampled {policy['completions'] / policy['prompts']:g} times each at "
        f"temperature {results['settings']['temperature']:g}, the reference earns a mean reward of "
        f"{number(reference['mean_reward'])} and the trained policy {number(policy['mean_reward'])}, a change of "
        f"{number(gain['mean_reward'], sign=True)} (95 % interval "
        f"{number(low, sign=True)} to {number(high, sign=True)}). "
    )
    if not (math.isfinite(low) and math.isfinite(high)):
        text += "There are too few prompts for an interval."
    elif low > 0:
        text += "The interval lies above zero: the policy improved by more than the luck of the draw explains."
    elif high < 0:
        text += "The interval lies below zero: the policy became worse."
    else:
        text += "The interval contains zero: these prompts do not tell the policy from the reference."
    return text + (
        " Among the reference's own completions of a prompt, the policy's stand at quantile "
        f"{number(policy['mean_quantile'])} on average; 0.5 would be no change."
    )


def headline(results: dict[str, Any], held: Held) -> list[tuple[str, ...]]:
    """Rows of the table: what, of the reference, of the policy."""
    names = {
        "mean_quantile": "Mean quantile among reference completions",
        "mean_tokens": "Mean tokens a completion",
        "share_finished": "Share that ended by itself",
        "share_full_reward": "Share with full reward (1)",
    }
    every = np.concatenate([r for side in SIDES for r in held.rewards[side]])
    if not (every.min() >= 0 and every.max() <= 1):
        del names["share_full_reward"]  # of an unbounded reward 1 is no special value
    # The reference's own completions stand at quantile 1/2, by definition.
    figures = {side: {"mean_quantile": 0.5} | results[side] for side in SIDES}
    table: list[tuple[str, ...]] = [("Mean reward", *(number(results[side]["mean_reward"]) for side in SIDES))]
    table.append(("95 % interval", *(" to ".join(map(number, results[side]["ci95"])) for side in SIDES)))
    gain = results["gain"]
    low, high = (number(end, sign=True) for end in gain["ci95"])
    table.append(("Gain, with 95 % interval", "", f"{number(gain['mean_reward'], sign=True)} ({low} to {high})"))
    for name, label in names.items():
        written = "{:.1%}".format if name.startswith("share") else number
        table.append((label, *(written(figures[side][name]) for side in SIDES)))
    for estimator in ("k1", "k3"):
        values = (
            results["reference"].get(f"kl_to_policy_{estimator}", math.nan),
            results["policy"].get(f"kl_to_reference_{estimator}", math.nan),
        )
        table.append((f"KL to the other side, {estimator} estimate (nats)", *map(number, values)))
    return table


def optimum_table(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of the table: what, as the optimum has it, as achieved; none for objectives without a known optimum."""
    asked, policy = results["optimum"], results["policy"]
    if asked.get("kl") is None:
        return []
    quantile = policy["mean_quantile"]
    achieved_n = quantile / (1 - quantile) if quantile < 1 else math.inf
    k1, k3 = (number(policy.get(f"kl_to_reference_{estimator}", math.nan)) for estimator in ("k1", "k3"))
    kl = f"{k1} (k1), {k3} (k3)"
    return [
        ("Expected quantile", number(asked["expected_quantile"]), number(quantile)),
        ("KL(policy ‖ reference), nats", number(asked["kl"]), kl),
        ("Effective N of Best-of-N", number(asked["effective_best_of_n"]), number(achieved_n)),
    ]


def training_plots(job: Job, results: dict[str, Any]) -> list[Plot]:
    """Plots of the metrics of SFT, if it ran, and of training."""
    config = job.config.train
    curves = {stage: read_metrics(job.folder(stage) / "metrics.jsonl") for stage in ("sft", "train")}
    curves = {stage: lines for stage, lines in curves.items() if lines}

    def column(stage: str, name: str) -> list[float]:
        return [line.get(name, math.nan) for line in curves[stage]]

    def known(*names: str) -> bool:
        return any(name in line for line in curves["train"] for name in names)

    made: list[tuple[str, str]] = []
    if "train" in curves:
        steps = column("train", "step")
        unit = OBJECTIVES[config.objective].unit.format(loss=REGRESSIONS[config.loss])
        ratios = [column("train", f"log_ratio_{side}") for side in ("high", "low")]
        if known("log_ratio_high", "log_ratio_low"):
            made.append((run_plots.log_ratios(steps, *ratios), log_ratio_caption(results)))
        losses = run_plots.loss(steps, column("train", "loss"), name="loss", title="Training loss", unit=unit)
        made.append((losses, f"Loss of the batches of stage train ({config.objective})."))
        target = column("train", "calibrated_target") if known("calibrated_target") else None
        caption = "What training regresses on: the quantile of the batches' completions"
        caption += (
            " and f(R_q) − β log Z, which is above zero where a completion is to gain probability." if target else "."
        )
        if known("quantile"):
            made.append((run_plots.targets(steps, column("train", "quantile"), target), caption))
        made.append((run_plots.gradient_norm(steps, column("train", "gradient_norm")), "Before clipping, stage train."))
    if "sft" in curves:
        sft = column("sft", "step"), column("sft", "loss")
        picture = run_plots.loss(*sft, name="sft-loss", title="SFT loss", unit="nats a token")
        made.append((picture, "Stage sft, which made the reference policy."))
    rates = {stage: (column(stage, "step"), column(stage, "learning_rate")) for stage in curves}
    if rates:
        made.append((run_plots.learning_rate(rates), "As applied at each update."))
    return [Plot(Markup(svg), caption) for svg, caption in made]


def log_ratio_caption(results: dict[str, Any]) -> str:
    text = "The curves should part. High means: the chosen of a pair, or a quantile above one half."
    share = results["optimum"].get("losing_share")
    if share is not None:
        text += f" At the optimum {share:.0%} of reference completions lose probability, so the low curve is to fall"
        text += " and the high one may fall too." if share > 0.5 else "."
    return text


def held_out_plots(job: Job, held: Held, results: dict[str, Any]) -> list[Plot]:
    config = job.config.train
    each = [np.concatenate(held.rewards[side]).tolist() for side in SIDES]
    means = [[float(r.mean()) for r in held.rewards[side]] for side in SIDES]
    asked, label = None, ""
    if results["optimum"].get("kl") is not None:
        t, beta = (np.arange(2000) + 0.5) / 2000, results["optimum"]["beta"][1]
        asked = t, np.asarray(optimum.density(t, beta, transforms.parse(config.transform)))
        label = f"optimum of {config.transform}, β = {beta:.3g}"
    achieved = rank_density(held.rewards["reference"], held.rewards["policy"])
    made = (
        (run_plots.reward_histogram(*each), "One reward a completion."),
        (run_plots.prompt_means(*means), "A dot a prompt; dots that coincide are one larger dot."),
        (
            run_plots.quantile_density(achieved, asked, label),
            "Ranks among the reference's completions of the same prompt. A tie is spread evenly over the ranks that it "
            "leaves open, so that the reference itself would be flat at 1, and the mean is the mid-rank quantile.",
        ),
    )
    return [Plot(Markup(svg), caption) for svg, caption in made]


def rank_density(references: Sequence[np.ndarray], samples: Sequence[np.ndarray]) -> np.ndarray:
    """Density of the samples' quantiles in equal bins of (0, 1), one bin a rank where prompts have few references.

    A sample above `below` and tied with `tied` of a prompt's n references takes one of tied + 1 of the n + 1 ranks;
    its mass is spread over them evenly, which makes the density of the reference policy 1 everywhere.
    """
    low, high = [], []
    for own, drawn in zip(references, samples, strict=True):
        below = (own[None, :] < drawn[:, None]).sum(1)
        tied = (own[None, :] == drawn[:, None]).sum(1)
        low.append(below / (len(own) + 1))
        high.append((below + tied + 1) / (len(own) + 1))
    starts, ends = np.concatenate(low)[:, None], np.concatenate(high)[:, None]
    count = min(max(len(own) for own in references) + 1, MOST_RANKS)
    edges = np.linspace(0, 1, count + 1)
    return np.diff(np.clip((edges - starts) / (ends - starts), 0, 1).mean(0)) * count


def examples(held: Held) -> list[dict[str, Any]]:
    """The first held-out prompts with the first completions of each side."""
    shown = []
    for i, (reference, policy) in enumerate(zip(*(held.first[side] for side in SIDES), strict=True)):
        rows = {"reference": reference, "policy": policy}
        shown.append(
            {
                "messages": policy.messages,
                "sides": {side: row.completions[:SHOWN_COMPLETIONS] for side, row in rows.items()},
                "means": {side: float(held.rewards[side][i].mean()) for side in SIDES},
                "drawn": {side: len(row.completions) for side, row in rows.items()},
            }
        )
    return shown
