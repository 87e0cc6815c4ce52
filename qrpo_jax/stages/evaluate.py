"""Stage `evaluate`: held-out prompts answered by reference and policy at one temperature, scored and compared."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qrpo_jax.data.rows import Row
from qrpo_jax.job.accounting import SIDES, held_out
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import read_manifest, write_json
from qrpo_jax.job.prompts import open_prompts
from qrpo_jax.job.units import Counts, add_counts, run_units
from qrpo_jax.model.decoder import Parameters
from qrpo_jax.stages.reference import LogProbs, make_log_probs
from qrpo_jax.stages.sample import make_completer
from qrpo_jax.stages.score import describe, open_reward, score_rows, tell_dropped

Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution


def run(job: Job) -> dict[str, Any] | None:
    folder = job.folder("evaluate")
    reference = job.reference_parameters(job.local_mesh)
    parameters = {"reference": reference, "policy": job.policy_parameters(job.local_mesh, reference)}
    prompts = open_prompts(job, "eval", reference)
    config = job.config.evaluate
    # KL is about the distributions that were sampled from, and greedy or cut ones have no log-ratio to average.
    whole = config.temperature > 0 and config.top_k == 0 and config.top_p == 1
    log_probs = {side: make_log_probs(job, side, temperature=config.temperature) for side in SIDES} if whole else None
    counts: dict[str, Counts] = {}
    with open_reward(job) as reward:
        job.say(describe(reward).replace("score:", "evaluate:"))
        for side in SIDES:
            complete = make_completer(job, job.config.evaluate, source=side, purpose=f"evaluate {side}")

            def work(unit: int, side: str = side, complete: Callable = complete) -> tuple[list[Row], Counts]:
                rows, sampled = complete(parameters[side], prompts.rows(unit), list(prompts.indices(unit)))
                rows, scored = score_rows(reward, drawn_only(rows, side))
                return rows, add_counts([sampled, scored])

            made = run_units(job, folder / side, prompts.units, work, title=f"evaluate {side}")
            if made is None:
                return None
            counts[side] = made
    rows = {side: list(kept) for side, kept in held_out(job).items()}
    if not rows["policy"]:
        raise ValueError(
            "no held-out prompt has completions of both sides that the reward model could score: they were too long "
            "(config.reward.max_tokens, config.evaluate.max_new_tokens)"
        )
    results = compare(rows["reference"], rows["policy"])
    for side in SIDES:
        results[side]["not_scored"] = tell_dropped(job, f"evaluate, {side}", counts[side])
    # KL from samples of each side, both log-probabilities by the function that training uses.
    for side in SIDES:
        if log_probs is not None:
            results[side] |= kl_estimates(side, rows[side], parameters, log_probs)
    results["settings"] = summary(job)
    results["optimum"] = asked_for(job)
    write_json(folder / "results.json", results)
    write_json(job.workdir / "results.json", results)
    announce(job, results)
    return {"units": prompts.units, "counts": counts, "results": results}


def drawn_only(rows: list[Row], side: str) -> list[Row]:
    """Rows without completions that came with the prompt."""
    return [dataclasses.replace(row, completions=tuple(c for c in row.completions if c.source == side)) for row in rows]


def interval(values: np.ndarray) -> tuple[float, list[float]]:
    """Mean and 95 % normal interval of independent values (one a prompt: its completions are not independent)."""
    mean = float(values.mean())
    half = Z95 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return mean, [mean - half, mean + half]


def compare(reference: list[Row], policy: list[Row]) -> dict[str, Any]:
    """Held-out figures of both sides, and of their difference prompt by prompt."""
    results: dict[str, Any] = {}
    means = {}
    for side, rows in (("reference", reference), ("policy", policy)):
        means[side] = np.asarray([np.mean([c.reward for c in row.completions]) for row in rows])
        mean, ci95 = interval(means[side])
        completions = [c for row in rows for c in row.completions]
        results[side] = {
            "mean_reward": mean,
            "ci95": ci95,
            "prompts": len(rows),
            "completions": len(completions),
            "mean_tokens": float(np.mean([len(c.tokens) for c in completions])),
            "share_finished": float(np.mean([c.finished for c in completions])),
            "share_full_reward": float(np.mean([c.reward >= 1.0 for c in completions])),
        }
    quantile = [
        np.mean([_quantile(c.reward, [r.reward for r in before.completions]) for c in after.completions])
        for before, after in zip(reference, policy, strict=True)
    ]
    gain, ci95 = interval(means["policy"] - means["reference"])
    results["gain"] = {"mean_reward": gain, "ci95": ci95}
    results["policy"]["mean_quantile"] = float(np.mean(quantile))
    return results


def _quantile(reward: float, references: list[float]) -> float:
    """Mid-rank quantile, which is 1/2 on average for the reference itself, ties or not."""
    values = np.asarray(references)
    return float(np.mean(values < reward) + 0.5 * np.mean(values == reward))


def kl_estimates(
    side: str, rows: list[Row], parameters: dict[str, Parameters], log_probs: dict[str, LogProbs]
) -> dict[str, float]:
    """KL in nats per completion from this side to the other, by the k1 and k3 estimators (Schulman 2020).

    For samples of p against q with r = log q − log p: k1 = −r, k3 = e^r − 1 − r; both have mean KL(p‖q).
    """
    other = SIDES[1 - SIDES.index(side)]
    own_values, _ = log_probs[side](parameters[side], rows)
    other_values, _ = log_probs[other](parameters[other], rows)
    ratio = np.concatenate(other_values) - np.concatenate(own_values)
    ratio = ratio[np.isfinite(ratio)]
    return {f"kl_to_{other}_k1": float(np.mean(-ratio)), f"kl_to_{other}_k3": float(np.mean(np.expm1(ratio) - ratio))}


def summary(job: Job) -> dict[str, Any]:
    config = job.config
    names = ("objective", "beta", "transform", "loss", "learning_rate")
    named = {name: config.train[name] for name in names}
    return named | {"seed": config.seed, "temperature": config.evaluate.temperature}


def asked_for(job: Job) -> dict[str, Any]:
    """What the settings asked of the policy on the training data, as stage train put it on record."""
    made = read_manifest(job.folder("train"))
    assert made is not None, "evaluate runs after train"
    return made["asked"] or {}


def announce(job: Job, results: dict[str, Any]) -> None:
    config = job.config.evaluate
    job.say(
        f"\nHeld-out mean reward, {results['policy']['prompts']} prompts x {config.completions} completions, "
        f"temperature {config.temperature:g}:"
    )
    for side in SIDES:
        low, high = results[side]["ci95"]
        job.say(f"  {side:<10} {results[side]['mean_reward']:.3f}   95 % interval {low:.3f} to {high:.3f}")
    low, high = results["gain"]["ci95"]
    job.say(f"  {'gain':<10} {results['gain']['mean_reward']:+.3f}   95 % interval {low:+.3f} to {high:+.3f}\n")
