"""Stage `evaluate`: compares reference and policy, steps of training, or model folders on held-out prompts."""

from typing import Any

from qrpo_jax.devices.processes import is_first
from qrpo_jax.errors import UserError, located
from qrpo_jax.evaluation import length_bias
from qrpo_jax.evaluation.achieved import achieved
from qrpo_jax.evaluation.compare import POLICY, SIDES
from qrpo_jax.evaluation.halves import HALVES
from qrpo_jax.evaluation.results import held_out_results, shared_ids, together
from qrpo_jax.files import write_json
from qrpo_jax.job import results_file, summary, verdicts
from qrpo_jax.job.answering import Answered, answer
from qrpo_jax.job.completions import check_sampling
from qrpo_jax.job.held_out import folder_of
from qrpo_jax.job.job import Job
from qrpo_jax.job.kept_steps import check_steps, train_steps
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.pace import SAMPLED
from qrpo_jax.job.policies import Policy, check_policies, open_policies
from qrpo_jax.job.prompts import Prompts, check_held_out, open_prompts
from qrpo_jax.job.reward_checks import check_reward
from qrpo_jax.job.scoring import report_dropped
from qrpo_jax.stages import LENGTHS


def run(job: Job) -> dict[str, Any] | None:
    policies, base = open_policies(job), job.unit_reference()
    prompts = open_prompts(job, "evaluate", base)
    found = answer(job, prompts, policies, base)
    if found is None:
        return None
    check_any_scored(found)
    results = figures(job, policies, found)
    results |= {"settings": shown_settings(job), "optimum": training_forecast(job)}
    results["achieved"] = achieved(results["optimum"], results[POLICY])

    if is_first():
        write_json(job.folder("evaluate") / LENGTHS, lengths(found))
    row_flow = say_folders(job, policies, prompts, found, results)
    results_file.write_part(job, "evaluate", results)
    say_results(job, results)
    dropped = {"held out": prompts.counts} if prompts.counts else {}
    completions = {"counts": found.counts | dropped, "row_flow": row_flow, "first_lines": found.first_lines}
    return {"units": prompts.units, "results": results} | completions | found.held


def check_any_scored(found: Answered) -> None:
    """Refuses an evaluation that has no prompt left.

    Raises:
      UserError: naming the limits that completions exceeded.
    """
    every = [set(answers) for by_seed in found.policies.values() for answers in by_seed.values()]
    with located("reward.max_tokens", "evaluate.max_new_tokens"):
        if not set.intersection(*every):
            sides = "both sides" if len(found.policies) > 1 else "the policy"
            raise UserError(
                f"no held-out prompt has completions of {sides} that the reward could score: they were too long, or "
                "their reward failed"
            )


def figures(job: Job, policies: list[Policy], found: Answered) -> dict[str, Any]:
    """All figures of the answers; the curve has the last step too, which is the policy itself."""
    sides = {side: found.policies[side] for side in SIDES if side in found.policies}
    steps = {policy.step: found.policies[policy.name] for policy in policies if policy.step is not None}
    if job.config.evaluate.checkpoints != ("last",) and "train" in job.config.stages:
        steps |= {train_steps(job): sides[POLICY]}
    return held_out_results(sides, steps)


def lengths(found: Answered) -> dict[str, Any]:
    """What the report plots of lengths and log-ratios, for each side."""
    sides = {side: found.policies[side] for side in SIDES if side in found.policies}
    ids = shared_ids(list(sides.values()))
    return {side: length_bias.points(together(by_seed, ids), side) for side, by_seed in sides.items()}


def say_folders(
    job: Job, policies: list[Policy], prompts: Prompts, found: Answered, results: dict[str, Any]
) -> dict[str, dict[str, int]]:
    """Prints what became of the rows of each policy and seed; returns rows in and out, and puts into the results of
    each side how many completions have no reward."""
    row_flow = {}
    for side in SIDES:
        if side in results:
            results[side]["not_scored"] = 0
    for policy in policies:
        for seed in job.config.evaluate.seeds:
            folder = folder_of(job, policy.name, seed)
            name, counts = folder.name, found.counts[folder.name]
            title = f"evaluate, {name}"
            row_flow[name] = summary.close(
                job, title, folder, units=prompts.units, rows_in=prompts.source.count, counts=counts, measure=SAMPLED
            )
            not_scored = report_dropped(job, title, counts)
            if policy.name not in SIDES:
                continue  # the curve has a line for each step
            results[policy.name]["not_scored"] += not_scored
            verdicts.say(job, title, counts, found.first_lines[name])
            summary.say_rewards(job, title, found.rewards[name])
    return row_flow


def shown_settings(job: Job) -> dict[str, Any]:
    """The settings that results.json shows beside the figures."""
    config, trained = job.config, "train" in job.config.stages
    names = ("objective", "beta", "transform", "loss", "learning_rate") if trained else ()
    models = {"model": config.model.path} | ({"against": config.evaluate.against} if config.evaluate.against else {})
    of_run = {name: config.train[name] for name in names} if trained else models
    return of_run | {"seed": config.seed, "temperature": config.evaluate.temperature}


def training_forecast(job: Job) -> dict[str, Any]:
    """The forecast of the optimum that stage `train` recorded; empty without this stage, and where none is known."""
    manifest = read_manifest(job.folder("train")) if "train" in job.config.stages else None
    return (manifest or {}).get("forecast") or {}


def say_results(job: Job, results: dict[str, Any]) -> None:
    config = job.config.evaluate
    job.say(
        f"\nHeld-out mean reward, {results[POLICY]['prompts']} prompts x "
        f"{config.completions * len(config.seeds)} completions, temperature {config.temperature:g}:"
    )
    for name in (*SIDES, "gain"):
        if name in results:
            sign = "+" if name == "gain" else ""
            mean, low, high = (f"{x:{sign}.3f}" for x in (results[name]["mean_reward"], *results[name]["ci95"]))
            job.say(f"  {name:<10} {mean}   95 % interval {low} to {high}")
    for one in results.get("curve", ()):
        low, high = one["intervals"]["mean_reward"]
        job.say(f"  step {one['step']:<5} {one['mean_reward']:.3f}   95 % interval {low:.3f} to {high:.3f}")
    if best := results.get("best"):
        reward = best["reporting"]["mean_reward"]
        job.say(f"  best on the selection half: step {best['step']}, {reward:.3f} on the reporting half")
    for half in HALVES:
        if not results["halves"][half]:
            job.say(f"  no held-out prompt is in the {half} half: hold out more (config.prompts.held_out)")
    if results["achieved"]:
        job.say(f"  {results['achieved']['verdict']}")
    job.say("")


def check(job: Job) -> None:
    check_held_out(job, 2)  # an interval needs two prompts
    check_sampling(job, "evaluate")
    check_reward(job)
    check_steps(job)
    check_policies(job)
