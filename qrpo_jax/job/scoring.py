"""The job's reward, and scores for the completions that have none yet."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from qrpo_jax.data.rows import Completion, Row, check_scored
from qrpo_jax.devices.processes import is_first
from qrpo_jax.errors import located
from qrpo_jax.job import verdicts
from qrpo_jax.job.code_sandbox import make_sandbox
from qrpo_jax.job.job import Job
from qrpo_jax.job.judge import open_judge
from qrpo_jax.job.units import Counts
from qrpo_jax.rewards import models
from qrpo_jax.rewards.failures import Failures
from qrpo_jax.rewards.model_reward import ModelReward
from qrpo_jax.rewards.parts import SUM, read_parts
from qrpo_jax.rewards.reward import Reward
from qrpo_jax.rewards.rewards import JUDGE, MATH_VERIFY, MODEL, RUN_CODE, make_reward
from qrpo_jax.rewards.scores import FAILED, TOO_LONG, Components, Scores
from qrpo_jax.rewards.weighted import WeightedReward

ROWS_DROPPED = "rows dropped: no completion left"
PAIRS_DROPPED = "rows dropped: one of a pair has no reward"


def open_reward(job: Job, failures: Failures) -> Reward:
    """The job's reward, as a context manager: inside it, what it needs is open.

    Args:
      failures: of the stage.
    """
    config = job.config.reward
    if config.name != SUM:
        return _open_one(job, config.name, failures)
    parts = [(part, _open_one(job, part.reward, failures)) for part in read_parts(config.parts)]
    return WeightedReward(parts, failures, alone=lambda: is_first() or not job.together)


def _open_one(job: Job, name: str, failures: Failures) -> Reward:
    config = job.config.reward
    if name == MODEL:
        scorer = models.ModelScorer(
            job.reward_model, job.unit_mesh, batch_rows=config.batch_rows, compute=job.compute(job.unit_mesh)
        )
        return ModelReward(scorer)
    if name == JUDGE:
        return open_judge(job, failures)

    def tokens(completion: Completion) -> int:
        """Those of a data set have none yet."""
        return len(completion.tokens) or len(job.text.completion(completion.text, completion.finished))

    return make_reward(
        name,
        failures=failures,
        block=config.block,
        max_tests=config.max_tests,
        sandbox=make_sandbox(config, mathematics=name == MATH_VERIFY) if name in RUN_CODE else None,
        tokens=tokens,
        seconds=config.seconds,
        concurrency=config.concurrency,
        batch=config.batch_rows,
    )


def describe(reward: Reward) -> str:
    """One line on what the reward is, and on the limits that this machine puts on model-written code."""
    clauses = reward.describe()
    if not reward.protections and not any("reward model" in clause for clause in clauses):
        clauses.append("the reward runs no model-written code")
    return "; ".join(clauses)


def written(job: Job, counts: Sequence[Mapping[str, int]]) -> Failures:
    """The failures of a stage, with those in the counts of its units that are there."""
    failures = Failures(job.config.reward.failures)
    for of_unit in counts:
        failures.add(verdicts.all_verdicts(of_unit))
    return failures


def report_dropped(job: Job, title: str, counts: Counts) -> int:
    """Prints and returns the number of completions that have no reward.

    Args:
      counts: of `score_rows`.
    """
    every = verdicts.all_verdicts(counts)
    long, failed = every.get(TOO_LONG, 0), {name: n for name, n in every.items() if name.startswith(FAILED)}
    with_them = (
        f"were dropped, and with them {counts.get(ROWS_DROPPED, 0)} rows without another completion and "
        f"{counts.get(PAIRS_DROPPED, 0)} with the other one of a pair"
    )
    if failed:
        reasons = ", ".join(f"{name} {number:,}" for name, number in sorted(failed.items()))
        reasons += f", {TOO_LONG.partition(': ')[2]} {long:,}" if long else ""
        total = sum(failed.values()) + long
        job.say(f"{title}: {total:,} completions have no reward ({reasons}) and {with_them} (config.reward.failures)")
    elif long:
        job.say(
            f"{title}: {long} completions were too long for the reward model and {with_them} (config.reward.max_tokens)"
        )
    return long + sum(failed.values())


def score_rows(
    reward: Reward, rows: list[Row], replace: bool = False, failures: Failures | None = None
) -> tuple[list[Row], Counts]:
    """Rows with the missing rewards filled in, and counts.

    Completions that cannot be scored are dropped and counted. So are rows without another completion, and pairs of a
    data set that lost one, as in the published pipeline.

    Args:
      replace: rewards that are there are replaced; else they stay.
      failures: those that `reward` counts, if it can fail.

    Raises:
      UserError: a row that the reward cannot read.
      FailuresError: too many completions have no reward.
    """

    def is_pending(completion: Completion) -> bool:
        return replace or math.isnan(completion.reward)

    pending = [dataclasses.replace(row, completions=tuple(c for c in row.completions if is_pending(c))) for row in rows]
    if failures is not None:
        failures.begin(sum(len(row.completions) for row in pending))
    name = "reward.parts" if isinstance(reward, WeightedReward) else "reward.name"
    place = "reward.path" if isinstance(reward, ModelReward) else name
    keys = {"name": name, "judge": "judge.servers", "prompt": "judge.prompt"}
    with located(place, batch_rows="reward.batch_rows", max_tokens="reward.max_tokens", **keys):
        scores = reward.score(pending)
    scored, pairs_dropped = [], 0
    for index, row in enumerate(rows):
        fresh = iter(_scored(pending[index].completions, index, scores))
        found = [next(fresh) if is_pending(c) else c for c in row.completions]
        completions = tuple(completion for completion in found if completion is not None)
        if row.completions and not completions:
            continue
        if brought(row.completions) == 2 > brought(completions):
            pairs_dropped += 1
            continue
        # Indices of an order would be those of other completions, and rewards decide now.
        preferences = row.preferences if len(completions) == len(row.completions) else ()
        filled = dataclasses.replace(row, completions=completions, preferences=preferences)
        with located(name):
            check_scored(filled)
        scored.append(filled)
    counts = verdicts.counts_of(scores)
    dropped = {ROWS_DROPPED: len(rows) - len(scored) - pairs_dropped, PAIRS_DROPPED: pairs_dropped}
    if reward.collective:  # a reward model, whose counts are there also where nothing was too long
        return scored, {f"{verdicts.COMPLETIONS}{TOO_LONG}": 0} | counts | dropped
    return scored, counts | dict(+Counter(dropped))


def _scored(completions: Sequence[Completion], index: int, scores: Scores) -> list[Completion | None]:
    """The completions of one row with their rewards and components; None for one without a reward."""
    rewards = scores.rewards[index]
    parts: Sequence[Components] = scores.components[index] if scores.components else [()] * len(rewards)
    return [
        None if reward is None else dataclasses.replace(completion, reward=reward, components=of_parts)
        for completion, reward, of_parts in zip(completions, rewards, parts, strict=True)
    ]


def brought(completions: Sequence[Completion]) -> int:
    """Number of completions that the data set brought."""
    return sum(completion.source == "dataset" for completion in completions)
