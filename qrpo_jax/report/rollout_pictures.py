"""The plots of an on-policy run's iterations with their captions, each where its figures are there."""

from typing import Any

from qrpo_jax.report import rollout_plots
from qrpo_jax.report.optimum_rewards import frontier
from qrpo_jax.report.rollout_plots import KL, REWARD, Iterations, Line, Panel, line_of
from qrpo_jax.report.run_pictures import Lines, Picture, has_optimum
from qrpo_jax.report.run_record import OnPolicy
from qrpo_jax.report.training_pictures import points_of

OVER_PROMPTS = "Bands are 95 % intervals over the prompts of an iteration."


def rollout_pictures(found: OnPolicy | None, lines: Lines, results: dict[str, Any]) -> list[Picture]:
    """Reward, KL, entropy, signal, length, staleness and clipping over training; none of a run on stored data.

    Args:
      lines: of the metrics of stage `train`.
      results: content of results.json.
    """
    if found is None:
        return []
    iterations = found.iterations
    some = [
        kl_picture(found, results),
        reward_picture(iterations),
        signal_picture(iterations),
        length_picture(iterations),
        sampler_picture(iterations),
        clip_picture(lines),
        value_picture(lines),
        beta_picture(iterations),
    ]
    return [one for one in some if one is not None]


def kl_picture(found: OnPolicy, results: dict[str, Any]) -> Picture | None:
    known = [one for one in found.iterations if {KL, REWARD} <= one["figures"].keys()]
    if not known:
        return None
    caption = (
        "A dot for each iteration, with its own prompts; bars are 95 % intervals over these. KL by k1, which may fall "
        "below 0 by chance."
    )
    if not (found.references and has_optimum(results)):
        return Picture(rollout_plots.reward_by_kl(known, None, None), caption)
    optimum = results["optimum"]
    line = frontier(found.references, results["settings"]["transform"], optimum["beta"][1])
    counts = sorted({len(reward_N) for reward_N in found.references})
    each = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    caption += (
        " The line is the closed-form optimum for every β of this transform, the star the one asked for; their rewards "
        f"come from the stored reference completions of {len(found.references):,} prompts, {each} each."
    )
    return Picture(rollout_plots.reward_by_kl(known, line, optimum["kl"]), caption)


def reward_picture(iterations: Iterations) -> Picture | None:
    line = line_of(iterations, REWARD, x="samples")
    if line is None:
        return None
    title, x_label = "Reward against samples drawn", "completions drawn in training"
    image = rollout_plots.panels("rollout-reward", title, [Panel("mean reward", [line])], x_label)
    text = f"Of the policy's own completions of training prompts, before the steps that learn from them. {OVER_PROMPTS}"
    return Picture(image, f"{text} Completions that were drawn and replaced, or have no reward, count as drawn.")


def panel(iterations: Iterations, name: str, label: str, **options: bool) -> list[Panel]:
    line = line_of(iterations, name)
    return [] if line is None else [Panel(label, [line], **options)]


def signal_picture(iterations: Iterations) -> Picture | None:
    several = panel(iterations, "entropy", "entropy (nats)")
    several += panel(iterations, "groups_with_signal", "with signal", zero=True)
    text = (
        "Entropy of what is sampled from, in nats a token: the mean of −log π. A prompt has a signal if the rewards of "
        "its completions differ; without one, methods that compare them learn nothing from it."
    )
    if not several:
        return None
    image = rollout_plots.panels("rollout-signal", "Entropy, and prompts with a signal", several)
    return Picture(image, f"{text} {OVER_PROMPTS}")


def length_picture(iterations: Iterations) -> Picture | None:
    several = panel(iterations, "tokens", "tokens")
    several += panel(iterations, "share_finished", "finished", zero=True)
    text = f"Mean tokens of a completion, and the share that ended before the length limit. {OVER_PROMPTS}"
    return Picture(rollout_plots.panels("rollout-length", "Length of completions", several), text) if several else None


def sampler_picture(iterations: Iterations) -> Picture | None:
    steps, updates = [one["step"] for one in iterations], [one["staleness"] for one in iterations]
    several = [Panel("staleness", [Line("", (steps, updates))], zero=True)]
    gaps = {"mean": "sampler_gap", "largest": "largest_sampler_gap"}
    found = (line_of(iterations, name, label=label) for label, name in gaps.items())
    lines = [line for line in found if line is not None]
    if lines:
        several.append(Panel("gap (nats)", lines, log=True))
    text = (
        "Staleness: updates between the policy that sampled and the first step that learns from it. Gap: the absolute "
        "difference between log-probs of tokens by the sampler and by the trainer, for the same policy."
    )
    return Picture(rollout_plots.panels("rollout-sampler", "Staleness, and sampler against trainer", several), text)


def clip_picture(lines: Lines) -> Picture | None:
    """What each step makes of the ratio to the policy that sampled."""

    def line(name: str, label: str = "") -> list[Line]:
        found = points_of(lines, name)
        return [] if found is None else [Line(label, found)]

    kl = line("kl_to_old", "to the policy that sampled") + line("kl_to_reference", "to the reference")
    clipped, ratio = line("clip_share"), line("ratio_mean")
    panels = [Panel("clip share", clipped, zero=True), Panel("ratio", ratio), Panel("KL (nats)", kl, zero=True)]
    several = [one for one in panels if one.lines]
    if not several:
        return None
    text = "Each step, on its batch."
    if clipped:
        text += " Clip share: tokens whose gradient the clipping takes away."
    text += " Ratio: mean of π / π_old, where π_old sampled. KL by k3, in nats a token, from the completions of π_old."
    return Picture(rollout_plots.panels("clipping", "Clipping and moving away", several), text)


def value_picture(lines: Lines) -> Picture | None:
    found = points_of(lines, "value_error")
    if found is None:
        return None
    image = rollout_plots.panels(
        "value-error", "Error of the value head", [Panel("squared error", [Line("", found)], log=True)]
    )
    return Picture(image, "Mean squared difference between value and return of tokens, each step, on its batch.")


def beta_picture(iterations: Iterations) -> Picture | None:
    """Of β that adapts."""
    betas = [one["beta"] for one in iterations]
    if len(set(betas)) < 2:
        return None
    line = Line("", ([one["step"] for one in iterations], betas))
    image = rollout_plots.panels("rollout-beta", "Strength of the KL term", [Panel("β", [line], log=True)])
    return Picture(image, "β of each iteration, which follows train.kl_target.")
