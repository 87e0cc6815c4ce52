"""The plots of a run's page with their captions: of its held-out completions, and of stored ones."""

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


def data_pictures(found: Spread | None, data: TrainingData | None, what: str = "training") -> list[Picture]:
    """Rewards and ranks of stored completions; none of what is not known.

    Args:
      what: the completions are called.
    """
    pictures = []
    if found is not None:
        caption = f"Stage score: {found.completions:,} completions, mean reward {number(found.mean)}."
        pictures.append(Picture(training_plots.reward_bins(found.bins, what), caption))
    if data is not None:
        pictures += check_pictures(data, what)
    return pictures


def check_pictures(data: TrainingData, what: str) -> list[Picture]:
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
    title = f"Quantiles of {what} completions"
    return [Picture(held_out_plots.quantile_density("training-quantiles", title, curves), caption)] if curves else []
