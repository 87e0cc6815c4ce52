"""The plots of a run's training stages with their captions: curves of every step, and speed."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from qrpo_jax.report import training_plots
from qrpo_jax.report.run_pictures import Lines, Picture
from qrpo_jax.report.run_record import OnPolicy
from qrpo_jax.report.training_plots import Points


def training_pictures(
    metrics: Mapping[str, Lines], results: dict[str, Any], loss_unit: str, on_policy: OnPolicy | None = None
) -> list[Picture]:
    """Curves of stage `train`, and of stage `sft` if it ran.

    Args:
      metrics: for each of these stages the lines of its metrics file; stages without lines have no plots.
      results: content of results.json.
      loss_unit: of the training loss.
    """
    metrics = {stage: lines for stage, lines in metrics.items() if lines}
    pictures = []
    if "train" in metrics:
        pictures += train_pictures(metrics["train"], results, loss_unit, on_policy)
    if "sft" in metrics:
        lines = metrics["sft"]
        image = training_plots.loss("sft-loss", "SFT loss", points(lines, "loss"), points_of(lines, "held_out_loss"))
        caption = f"Nats per token in stage sft, which trained the reference policy. {density(lines)}"
        pictures.append(Picture(image, caption))
    if metrics:
        rates = {stage: points(lines, "learning_rate") for stage, lines in metrics.items()}
        pictures.append(Picture(training_plots.learning_rate(rates), "Learning rate of each update."))
    return pictures


def train_pictures(lines: Lines, results: dict[str, Any], loss_unit: str, on_policy: OnPolicy | None) -> list[Picture]:
    steps, pictures = column(lines, "step"), []
    there = [has(lines, f"log_ratio_{side}") for side in ("high", "low")]
    # An objective of tokens ranks nothing, so all of its completions are on one side.
    if any(there) if on_policy is None else all(there):
        sides = {side: column(lines, f"log_ratio_{side}") for side in ("high", "low")}
        unseen = {side: points_of(lines, f"held_out_log_ratio_{side}") for side in sides}
        held_out = {side: found for side, found in unseen.items() if found is not None}
        image = training_plots.log_ratios(steps, sides, predicted_log_ratios(lines), held_out)
        pictures.append(Picture(image, log_ratio_caption(results, on_policy)))
    image = training_plots.loss("loss", "Training loss", points(lines, "loss"), points_of(lines, "held_out_loss"))
    caption = f"Objective {results['settings']['objective']}: {loss_unit}. {density(lines)}"
    pictures.append(Picture(image, caption))
    if (rewards := points_of(lines, "held_out_reward")) is not None:
        caption = "Of the prompts of config.watch, in the selection half: few, and sampled anew at each point."
        pictures.append(Picture(training_plots.sampled_reward(rewards), caption))
    if has(lines, "quantile"):
        target = column(lines, "calibrated_target") if has(lines, "calibrated_target") else None
        image = training_plots.targets(steps, column(lines, "quantile"), target)
        pictures.append(Picture(image, target_caption(target is not None)))
    image = training_plots.gradient_norm(steps, column(lines, "gradient_norm"))
    pictures.append(Picture(image, "Stage train, before clipping."))
    return pictures


def speed_pictures(
    metrics: Mapping[str, Lines], times: Mapping[str, Any], seconds: Mapping[str, float]
) -> list[Picture]:
    """Wall time, goodput and throughput.

    Args:
      times: a `Goodput` of each training stage.
      seconds: of each stage that has its time on record.
    """
    pictures = []
    if seconds:
        pictures.append(Picture(training_plots.stage_seconds(seconds), "All starts of a stage, without this page."))
    if times:
        shares = {stage: one.shares for stage, one in times.items()}
        caption = "Shares of the time from the first start of a stage to its end."
        pictures.append(Picture(training_plots.goodput(shares), caption))
    rates = {stage: points_of(lines, "tokens_per_second") for stage, lines in metrics.items()}
    found = {stage: one for stage, one in rates.items() if one is not None}
    if found:
        caption = "Tokens of batches a second, without compilation; each point is the mean since the one before."
        if any(time.shares["rollout"] for time in times.values()):
            caption += " Time of rollouts is left out."
        pictures.append(Picture(training_plots.throughput(found), caption))
    return pictures


def predicted_log_ratios(lines: Lines) -> dict[str, float] | None:
    """Mean log-ratios of the optimum for high- and for low-reward completions, over all lines that know them."""
    found = {side: np.asarray(column(lines, f"predicted_log_ratio_{side}")) for side in ("high", "low")}
    if not all(np.isfinite(values).any() for values in found.values()):
        return None
    return {side: float(np.nanmean(values)) for side, values in found.items()}


def column(lines: Lines, name: str) -> list[float]:
    """One metric by line, NaN where it is missing."""
    return [line.get(name, math.nan) for line in lines]


def points(lines: Lines, name: str) -> Points:
    """Steps, and a metric there, NaN where it is missing."""
    return column(lines, "step"), column(lines, name)


def points_of(lines: Lines, name: str) -> Points | None:
    """Steps that have a metric, and its values; None if no step has it."""
    known = [line for line in lines if math.isfinite(line.get(name, math.nan))]
    return points(known, name) if known else None


def has(lines: Lines, name: str) -> bool:
    return any(name in line for line in lines)


def density(lines: Lines) -> str:
    """How many of the steps a curve has."""
    last = int(lines[-1]["step"])
    return f"All {last:,} steps." if len(lines) == last else f"{len(lines):,} of {last:,} steps, a batch each."


def log_ratio_caption(results: dict[str, Any], on_policy: OnPolicy | None) -> str:
    text = "The two curves should separate, towards the dotted lines of the optimum if they are known. "
    text += "High: the chosen completion of a pair, or a quantile above one half."
    if on_policy is not None:
        text += " Completions are the policy's own, so more and more of them are likely ones."
        if on_policy.by_group:
            text += " Here π_ref is the policy that sampled them, as their quantiles are within their group."
        return text
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
