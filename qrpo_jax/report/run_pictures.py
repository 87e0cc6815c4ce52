"""The plots of a run's page with their captions: of its held-out completions, and of its training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from qrpo_jax import optimum, transforms
from qrpo_jax.evaluation.compare import SIDES
from qrpo_jax.evaluation.histogram import Spread
from qrpo_jax.evaluation.ranks import rank_density
from qrpo_jax.report import run_plots
from qrpo_jax.report.page import number

DENSITY_POINTS = 2000  # of the optimum's density, at midpoints of equal cells

Lines = Sequence[Mapping[str, float]]  # of a metrics file


class Picture(NamedTuple):
    """A plot as SVG, and its caption."""

    svg: Markup
    caption: str


def held_out_pictures(rewards: dict[str, list[np.ndarray]], results: dict[str, Any]) -> list[Picture]:
    """Rewards of each side, and prompts and ranks of both.

    Args:
      rewards: for each side the rewards [S] of each held-out prompt; of a policy alone, for this side.
      results: content of results.json.
    """
    every = {side: np.concatenate(of_side).tolist() for side, of_side in rewards.items()}
    histogram = Picture(Markup(run_plots.reward_histogram(every)), "Rewards of all held-out completions.")
    if len(rewards) < len(SIDES):
        return [histogram]
    means = [[float(reward_S.mean()) for reward_S in rewards[side]] for side in SIDES]
    achieved = rank_density(rewards["reference"], rewards["policy"])
    return [
        histogram,
        Picture(
            Markup(run_plots.prompt_means(*means)),
            "One dot per prompt; prompts with the same two means share a larger dot.",
        ),
        Picture(
            Markup(run_plots.quantile_density(achieved, *optimum_density(results))),
            "Ranks among the reference's completions of the same prompt. A tie is spread evenly over the ranks that "
            "it may take, so the reference itself would be flat at 1.",
        ),
    ]


def score_pictures(found: Spread | None) -> list[Picture]:
    """The rewards of the training completions; none if they are not known."""
    if found is None:
        return []
    caption = f"Stage score: {found.completions:,} completions, mean reward {number(found.mean)}."
    return [Picture(Markup(run_plots.reward_bins(found.bins)), caption)]


def optimum_density(results: dict[str, Any]) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """Quantiles with the optimum's density there, and a label; None where no optimum is known."""
    if results["optimum"].get("kl") is None:
        return None, ""
    name, beta = results["settings"]["transform"], results["optimum"]["beta"][1]
    t = (np.arange(DENSITY_POINTS) + 0.5) / DENSITY_POINTS
    density = np.asarray(optimum.density(t, beta, transforms.parse(name)))
    return (t, density), f"optimum of {name}, β = {beta:.3g}"


def training_pictures(metrics: Mapping[str, Lines], results: dict[str, Any], loss_unit: str) -> list[Picture]:
    """Curves of stage `train`, and of stage `sft` if it ran.

    Args:
      metrics: for each of these stages the lines of its metrics file; stages without lines have no plots.
      results: content of results.json.
      loss_unit: of the training loss.
    """
    metrics = {stage: lines for stage, lines in metrics.items() if lines}
    pictures = []
    if "train" in metrics:
        pictures += train_pictures(metrics["train"], results, loss_unit)
    if "sft" in metrics:
        steps, losses = column(metrics["sft"], "step"), column(metrics["sft"], "loss")
        svg = run_plots.loss(steps, losses, name="sft-loss", title="SFT loss", unit="nats per token")
        pictures.append(Picture(Markup(svg), "Stage sft, which trained the reference policy."))
    if metrics:
        rates = {stage: (column(lines, "step"), column(lines, "learning_rate")) for stage, lines in metrics.items()}
        pictures.append(Picture(Markup(run_plots.learning_rate(rates)), "Learning rate of each update."))
    return pictures


def train_pictures(lines: Lines, results: dict[str, Any], loss_unit: str) -> list[Picture]:
    steps, pictures = column(lines, "step"), []
    if has(lines, "log_ratio_high") or has(lines, "log_ratio_low"):
        high, low = (column(lines, f"log_ratio_{side}") for side in ("high", "low"))
        svg = run_plots.log_ratios(steps, high, low, predicted_log_ratios(lines))
        pictures.append(Picture(Markup(svg), log_ratio_caption(results)))
    svg = run_plots.loss(steps, column(lines, "loss"), name="loss", title="Training loss", unit=loss_unit)
    objective = results["settings"]["objective"]
    pictures.append(Picture(Markup(svg), f"Stage train, objective {objective}: mean over each batch."))
    if has(lines, "quantile"):
        target = column(lines, "calibrated_target") if has(lines, "calibrated_target") else None
        svg = run_plots.targets(steps, column(lines, "quantile"), target)
        pictures.append(Picture(Markup(svg), target_caption(target is not None)))
    svg = run_plots.gradient_norm(steps, column(lines, "gradient_norm"))
    pictures.append(Picture(Markup(svg), "Stage train, before clipping."))
    return pictures


def predicted_log_ratios(lines: Lines) -> tuple[float, float] | None:
    """Mean log-ratios of the optimum for high- and for low-reward completions, over all lines that know them."""
    high, low = (np.asarray(column(lines, f"predicted_log_ratio_{side}")) for side in ("high", "low"))
    if not (np.isfinite(high).any() and np.isfinite(low).any()):
        return None
    return float(np.nanmean(high)), float(np.nanmean(low))


def column(lines: Lines, name: str) -> list[float]:
    """One metric by line, NaN where it is missing."""
    return [line.get(name, math.nan) for line in lines]


def has(lines: Lines, name: str) -> bool:
    return any(name in line for line in lines)


def log_ratio_caption(results: dict[str, Any]) -> str:
    text = "The two curves should separate, towards the dotted lines of the optimum if they are known. "
    text += "High: the chosen completion of a pair, or a quantile above one half."
    share = results["optimum"].get("losing_share")
    if share is None:
        return text
    text += f" At the optimum {share:.0%} of reference completions lose probability, so the low curve should fall"
    return text + (" and the high curve may fall too." if share > 0.5 else ".")


def target_caption(calibrated: bool) -> str:
    if not calibrated:
        return "Mean quantile of the completions in each batch."
    return (
        "Means over each batch: the quantile, and the regression target f(R_q) − β log Z. The optimum raises the "
        "probability of completions whose target is above zero."
    )
