"""The plots of a run's page with their captions: of its held-out completions, of its training, and of its speed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from markupsafe import Markup

from qrpo_jax import optimum, transforms
from qrpo_jax.evaluation.compare import SIDES
from qrpo_jax.evaluation.histogram import Spread
from qrpo_jax.evaluation.ranks import rank_density
from qrpo_jax.report import held_out_plots, training_plots
from qrpo_jax.report.held_out_plots import K1, Ranks
from qrpo_jax.report.optimum_rewards import frontier, weights
from qrpo_jax.report.picture import LOW, POLICY, REFERENCE
from qrpo_jax.report.run_record import HeldOut, TrainingData
from qrpo_jax.report.texts import number
from qrpo_jax.report.training_plots import Points

DENSITY_POINTS = 2000  # of the optimum's density, at midpoints of equal cells
BOUND = ("identity", 0.3)  # of objectives without an optimum: transform and β around which the frontier is drawn

Lines = Sequence[Mapping[str, float]]  # of a metrics file


class Picture(NamedTuple):
    """A plot with its title, and its caption."""

    image: Markup
    caption: str


def held_out_pictures(held_out: HeldOut, results: dict[str, Any]) -> list[Picture]:
    """Rewards, ranks, KL and length on held-out prompts; nothing if none were answered.

    Args:
      results: content of results.json.
    """
    if not held_out.rewards:
        return []
    rewards, curve = held_out.rewards, results.get("curve", [])
    pictures = [rewards_picture(rewards, results)]
    if len(rewards) == len(SIDES):
        if K1 in results["policy"]:
            pictures.append(kl_picture(rewards["reference"], results, curve))
        means = [[float(reward_S.mean()) for reward_S in rewards[side]] for side in SIDES]
        image = held_out_plots.prompt_means(*means)
        pictures.append(Picture(image, "One dot per prompt; prompts with the same two means share a larger dot."))
        pictures.append(ranks_picture(rewards, results))
    points = {side: one for side, one in held_out.lengths.items() if one["length"]}
    if points:
        pictures.append(length_picture(points, results))
    if curve:
        pictures.append(Picture(held_out_plots.held_out_curve(curve), curve_caption(results)))
    return pictures


def has_optimum(results: dict[str, Any]) -> bool:
    return results["optimum"].get("kl") is not None


def rewards_picture(rewards: dict[str, list[np.ndarray]], results: dict[str, Any]) -> Picture:
    every = {side: np.concatenate(of_side).tolist() for side, of_side in rewards.items()}
    caption, of_optimum = "Rewards of all held-out completions.", None
    if has_optimum(results) and "reference" in rewards:
        transform = transforms.parse(results["settings"]["transform"])
        found = weights(rewards["reference"], results["optimum"]["beta"][1], transform)
        of_optimum = np.concatenate(rewards["reference"]), np.concatenate(found)
        mean = float(of_optimum[0] @ of_optimum[1]) / len(found)
        caption += (
            " The optimum's are those of the reference's completions, each with the optimum's probability of its rank; "
            f"their mean is {number(mean)}."
        )
    return Picture(held_out_plots.reward_histogram(every, of_optimum), caption)


def kl_picture(references: list[np.ndarray], results: dict[str, Any], curve: Lines) -> Picture:
    """Reward against KL, beside the optimum of the run's transform, or the one that no policy exceeds."""
    caption = "Bars are 95 % intervals. "
    if has_optimum(results):
        line = frontier(references, results["settings"]["transform"], results["optimum"]["beta"][1])
        asked = {"kl": results["optimum"]["kl"]}
        caption += "The line is the closed-form optimum for every β of this transform, the star the one asked for."
    else:
        line, asked = frontier(references, *BOUND), None
        caption += "The line is the optimum of identity, which no policy of the same KL exceeds in mean quantile."
    counts = [len(reward_N) for reward_N in references]
    each = " to ".join(f"{count}" for count in sorted({min(counts), max(counts)}))
    caption += f" Rewards of the line come from {each} reference completions a prompt."
    return Picture(held_out_plots.reward_by_kl(line, results, asked, curve), caption)


def ranks_picture(rewards: dict[str, list[np.ndarray]], results: dict[str, Any]) -> Picture:
    """Where completions of the policy rank, and, as a check, those of the reference among each other."""
    found = [Ranks("policy", rank_density(rewards["reference"], rewards["policy"]), POLICY)]
    caption = "Ranks among the reference's completions of the same prompt; a tie is spread over its ranks."
    if (halves := halved(rewards["reference"])) is not None:
        found.append(Ranks("reference, half among half", halves, REFERENCE))
        caption += " The reference's own completions, one half ranked among the other, should be flat at 1."
    title = "Quantiles of held-out completions"
    return Picture(held_out_plots.quantile_density("quantiles", title, found, *optimum_density(results)), caption)


def halved(references: Sequence[np.ndarray]) -> np.ndarray | None:
    """Density of the ranks of the second half of each prompt's references among the first; None if they are too few."""
    enough = [reward_N for reward_N in references if len(reward_N) > 1]
    if not enough:
        return None
    halves = [np.split(reward_N, [len(reward_N) // 2]) for reward_N in enough]
    return rank_density([first for first, _ in halves], [second for _, second in halves])


def length_picture(points: Mapping[str, Mapping[str, Any]], results: dict[str, Any]) -> Picture:
    """Implicit rewards against length, with Spearman's ρ."""
    beta = results["settings"].get("beta")
    what = "β (log π − log π_ref)" if beta is not None else "log π − log π_ref"
    parts = []
    for side in points:
        if "length_correlation" in results[side]:
            low, high = results[side]["intervals"]["length_correlation"]
            rho = number(results[side]["length_correlation"], sign=True)
            parts.append(f"{side} ρ = {rho} ({number(low, sign=True)} to {number(high, sign=True)})")
    text = f"{what} of held-out completions. Spearman’s ρ with length, and its 95 % interval: {'; '.join(parts)}. "
    text += "ρ near 0: the policy prefers neither long nor short completions."
    text += f" The plot may leave out {held_out_plots.FAR_SHARE:.1%} of the points at either end."
    some = [f"{len(one['length']):,} of {one['completions']:,}" for one in points.values()]
    if any(len(one["length"]) < one["completions"] for one in points.values()):
        text += f" Shown: {' and '.join(some)}."
    return Picture(held_out_plots.implicit_rewards(points, beta), text)


def curve_caption(results: dict[str, Any]) -> str:
    text, best = "Step 0 is the reference. All steps draw with the same random numbers.", results["best"]
    if best is None:
        return text
    reward = best["reporting"]["mean_reward"]
    return f"{text} Best on the selection half: step {best['step']}, with mean reward {reward:.3f} on the other half."


def optimum_density(results: dict[str, Any]) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """Quantiles with the optimum's density there, and a label; None where no optimum is known."""
    if not has_optimum(results):
        return None, ""
    name, beta = results["settings"]["transform"], results["optimum"]["beta"][1]
    t = (np.arange(DENSITY_POINTS) + 0.5) / DENSITY_POINTS
    with jax.enable_x64(True):
        density = np.asarray(optimum.density(t, beta, transforms.parse(name)))
    return (t, density), f"optimum of {name}, β = {beta:.3g}"


def data_pictures(found: Spread | None, data: TrainingData | None) -> list[Picture]:
    """Rewards and ranks of training completions; none of what is not known."""
    pictures = []
    if found is not None:
        caption = f"Stage score: {found.completions:,} completions, mean reward {number(found.mean)}."
        pictures.append(Picture(training_plots.reward_bins(found.bins), caption))
    if data is not None:
        pictures += check_pictures(data)
    return pictures


def check_pictures(data: TrainingData) -> list[Picture]:
    """The quantiles of training data, a check: the reference's own should be flat."""
    curves, caption = [], f"The first {len(data.references):,} rows. "
    if (halves := halved(data.references)) is not None:
        curves.append(Ranks("reference, half among half", halves, REFERENCE))
        caption += (
            "Completions of the reference, one half ranked among the other: flat, if they are draws of one policy. "
        )
    pairs = [(r, b) for r, b in zip(data.references, data.brought, strict=True) if len(r) and len(b)]
    if pairs:
        density = rank_density([r for r, _ in pairs], [b for _, b in pairs])
        curves.append(Ranks("completions of the data set", density, LOW))
        caption += "Completions of the data set are flat only if the reference policy could have written them."
    title = "Quantiles of training completions"
    return [Picture(held_out_plots.quantile_density("training-quantiles", title, curves), caption)] if curves else []


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
        lines = metrics["sft"]
        image = training_plots.loss("sft-loss", "SFT loss", points(lines, "loss"), points_of(lines, "held_out_loss"))
        caption = f"Nats per token in stage sft, which trained the reference policy. {density(lines)}"
        pictures.append(Picture(image, caption))
    if metrics:
        rates = {stage: points(lines, "learning_rate") for stage, lines in metrics.items()}
        pictures.append(Picture(training_plots.learning_rate(rates), "Learning rate of each update."))
    return pictures


def train_pictures(lines: Lines, results: dict[str, Any], loss_unit: str) -> list[Picture]:
    steps, pictures = column(lines, "step"), []
    if has(lines, "log_ratio_high") or has(lines, "log_ratio_low"):
        sides = {side: column(lines, f"log_ratio_{side}") for side in ("high", "low")}
        unseen = {side: points_of(lines, f"held_out_log_ratio_{side}") for side in sides}
        held_out = {side: found for side, found in unseen.items() if found is not None}
        image = training_plots.log_ratios(steps, sides, predicted_log_ratios(lines), held_out)
        pictures.append(Picture(image, log_ratio_caption(results)))
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
