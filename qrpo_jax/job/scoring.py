"""The job's reward: its checks, and scores for the completions that have none yet."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from qrpo_jax.data.rows import Completion, Row, check_scored
from qrpo_jax.data.sources import kind_of
from qrpo_jax.data.sources.listed import ListedRows
from qrpo_jax.errors import UserError, located
from qrpo_jax.job import verdicts
from qrpo_jax.job.code_sandbox import check_sandbox, make_sandbox
from qrpo_jax.job.job import Job
from qrpo_jax.job.prompts import open_listed
from qrpo_jax.job.stage_rows import reads_source
from qrpo_jax.job.units import Counts
from qrpo_jax.rewards import expressions, models
from qrpo_jax.rewards.answers import read_answer
from qrpo_jax.rewards.problems import read_problem
from qrpo_jax.rewards.rewards import (
    ANSWER,
    MATH_VERIFY,
    MODEL,
    RUN_CODE,
    TESTS,
    TOO_LONG,
    ModelReward,
    Reward,
    find_function,
)

PROBLEMS = 100_000  # rows whose payloads are read before a run
# What a reward needs of a source of prompts (`SourceKind`), and how it reads the payload of a row.
NEEDS = {TESTS: "tests", ANSWER: "answers", MATH_VERIFY: "answers"}
READERS: dict[str, Callable[[Row, str], object]] = {
    TESTS: read_problem,
    ANSWER: read_answer,
    MATH_VERIFY: expressions.read_expression,
}
ROWS_DROPPED = "rows dropped: no completion left"
PAIRS_DROPPED = "rows dropped: one of a pair is too long for the reward model"


def check_reward(job: Job) -> None:
    """Refuses a reward that does not exist or that cannot score this job's prompts.

    Raises:
      UserError: naming the key.
    """
    config = job.config.reward
    if config.name == MODEL:
        if not config.path:
            raise UserError("reward 'model' needs a Hugging Face folder of a reward model (config.reward.path)")
        with located("mesh"):
            models.check_mesh(job.reward_model, job.unit_mesh)
    elif config.path:
        raise UserError(
            f"reward.path is set, but reward {config.name!r} reads no folder: "
            "set config.reward.name='model', or unset config.reward.path"
        )
    elif config.name in NEEDS:
        what, source = NEEDS[config.name], job.config.prompts.source
        if not getattr(kind_of(source), what):
            raise UserError(
                f"reward {config.name!r} needs prompts with {what}, which prompts from {source!r} lack "
                "(config.reward.name)"
            )
        if config.name == MATH_VERIFY and not (config.python or config.command):
            with located("reward.name"):
                expressions.check_package()
        if config.name in RUN_CODE:
            check_sandbox(config)
    else:
        with located("reward.name"):
            find_function(config.name)
    if kind_of(job.config.prompts.source).listed:
        check_listed(job)


def check_listed(job: Job) -> None:
    """Refuses listed rows without tests or answers, or with messages that the reward model's chat template refuses.

    Raises:
      UserError: naming the row and the key.
    """
    config = job.config.reward
    for split in ("train", "eval"):
        source = open_listed(job, split)
        sample = source.looked_at()
        if config.name in READERS:
            with located("reward.name", "prompts.source"):
                for _, row in source.read(source.looked_at(PROBLEMS)):
                    READERS[config.name](row, source.place(row))
        elif config.name == MODEL:
            with located("reward.path", max_tokens="reward.max_tokens"):
                too_long_P = models.check_conversations(job.reward_model, source.rows(sample), source.place)
            if too_long := source.where_true(too_long_P, sample):
                what = "prompts are too long for the reward model and will be dropped"
                job.note(f"score: WARNING: {too_long.line(what)} (config.reward.max_tokens)")
        if split == "train" and "score" in job.config.stages:
            check_brought(job, source)


def check_brought(job: Job, source: ListedRows) -> None:
    """Notes rows that bring all rewards, and refuses to replace those of references whose text is not there.

    Raises:
      UserError: naming the key.
    """
    if not job.config.reward.replace:
        scored = source.where_true(~source.listing.has("unscored") & (source.listing.completions_R > 0))
        if scored and reads_source(job, "score"):
            job.note(f"score: {scored.line('rows bring all their rewards, which stay')} (config.reward.replace)")
        return
    referred = source.where_true(source.listing.references_R > 0)
    if referred:
        raise UserError(
            f"{referred.line('rows have rewards of references without their text')}, which cannot be scored again: set "
            "config.reward.replace=False, or read them without (config.prompts.layout)"
        )


def open_reward(job: Job) -> Reward | ModelReward:
    """The job's reward, as a context manager: inside it, the workers that run code are alive."""
    config = job.config.reward
    if config.name == MODEL:
        scorer = models.ModelScorer(
            job.reward_model, job.unit_mesh, batch_rows=config.batch_rows, compute=job.compute(job.unit_mesh)
        )
        return ModelReward(scorer)
    sandbox = make_sandbox(config) if config.name in RUN_CODE else None
    return Reward(config.name, block=config.block, max_tests=config.max_tests, sandbox=sandbox)


def describe(reward: Reward | ModelReward) -> str:
    """One line on the limits that this machine puts on model-written code, or on the reward model."""
    if isinstance(reward, ModelReward):
        model = reward.model
        return f"by the reward model in {model.folder}, conversations of up to {model.max_tokens} tokens"
    if not reward.protections:
        return "the reward runs no model-written code"
    limited = ", ".join(name for name, holds in reward.protections.items() if holds)
    unlimited = ", ".join(name for name, holds in reward.protections.items() if not holds)
    level = f"code runs in separate processes, at level {reward.isolation!r} of isolation"
    return f"{level}, limited: {limited}" + (f"; NOT limited: {unlimited}" if unlimited else "")


def report_dropped(job: Job, title: str, counts: Counts) -> int:
    """Prints and returns the number of completions that were too long for the reward model.

    Args:
      counts: of `score_rows`.
    """
    dropped = counts.get(f"{verdicts.COMPLETIONS}{TOO_LONG}", 0)
    if dropped:
        job.say(
            f"{title}: {dropped} completions were too long for the reward model and were dropped, and with them "
            f"{counts[ROWS_DROPPED]} rows without another completion and {counts[PAIRS_DROPPED]} with the other one of "
            "a pair (config.reward.max_tokens)"
        )
    return dropped


def score_rows(reward: Reward | ModelReward, rows: list[Row], replace: bool = False) -> tuple[list[Row], Counts]:
    """Rows with the missing rewards filled in, and counts.

    Completions that cannot be scored are dropped and counted. So are rows without another completion, and pairs of a
    data set that lost one, as in the published pipeline.

    Args:
      replace: rewards that are there are replaced; else they stay.

    Raises:
      UserError: the reward function returned NaN or infinity.
    """

    def is_pending(completion: Completion) -> bool:
        return replace or math.isnan(completion.reward)

    pending = [dataclasses.replace(row, completions=tuple(c for c in row.completions if is_pending(c))) for row in rows]
    place = "reward.path" if isinstance(reward, ModelReward) else "reward.name"
    with located(place, batch_rows="reward.batch_rows", max_tokens="reward.max_tokens"):
        scores = reward.score(pending)
    scored, pairs_dropped = [], 0
    for row, rewards in zip(rows, scores.rewards, strict=True):
        fresh = iter(rewards)
        found = [(c, next(fresh) if is_pending(c) else c.reward) for c in row.completions]
        completions = tuple(dataclasses.replace(c, reward=reward) for c, reward in found if reward is not None)
        if row.completions and not completions:
            continue
        if brought(row.completions) == 2 > brought(completions):
            pairs_dropped += 1
            continue
        # Indices of an order would be those of other completions, and rewards decide now.
        preferences = row.preferences if len(completions) == len(row.completions) else ()
        filled = dataclasses.replace(row, completions=completions, preferences=preferences)
        with located("reward.name"):
            check_scored(filled)
        scored.append(filled)
    counts = verdicts.counts_of(scores)
    if isinstance(reward, ModelReward):
        counts[ROWS_DROPPED] = len(rows) - len(scored) - pairs_dropped
        counts[PAIRS_DROPPED] = pairs_dropped
    return scored, counts


def brought(completions: Sequence[Completion]) -> int:
    """Number of completions that the data set brought."""
    return sum(completion.source == "dataset" for completion in completions)
