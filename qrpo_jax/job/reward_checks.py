"""Checks of the job's reward before a run: that it exists, and that it can score the prompts."""

from collections.abc import Callable

from qrpo_jax.data.rows import Row
from qrpo_jax.data.sources import kind_of
from qrpo_jax.data.sources.listed import ListedRows
from qrpo_jax.errors import UserError, located
from qrpo_jax.job.code_sandbox import check_sandbox
from qrpo_jax.job.job import Job
from qrpo_jax.job.judge import check_judge, template
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.prompts import open_listed
from qrpo_jax.job.stage_rows import reads_source
from qrpo_jax.rewards import expressions, models
from qrpo_jax.rewards.answers import read_answer
from qrpo_jax.rewards.judge_words import fill
from qrpo_jax.rewards.problems import read_problem
from qrpo_jax.rewards.rewards import ANSWER, JUDGE, MATH_VERIFY, MODEL, RUN_CODE, TESTS, check_name

PROBLEMS = 100_000  # rows whose payloads are read before a run
# What a reward needs of a source of prompts (`SourceKind`), and how it reads the payload of a row.
NEEDS = {TESTS: "tests", ANSWER: "answers", MATH_VERIFY: "answers"}
READERS: dict[str, Callable[[Row, str], object]] = {
    TESTS: read_problem,
    ANSWER: read_answer,
    MATH_VERIFY: expressions.read_expression,
}


def check_reward(job: Job) -> None:
    """Refuses a reward that does not exist or that cannot score this job's prompts.

    Raises:
      UserError: naming the key.
    """
    config, names = job.config.reward, job.rewards
    for name in names:
        with located(job.reward_key):
            check_name(name)
        check_one(job, name)
    if config.path and MODEL not in names:
        raise UserError(
            f"reward.path is set, but reward {config.name!r} reads no folder: "
            "set config.reward.name='model', or unset config.reward.path"
        )
    if kind_of(job.config.prompts.source).listed:
        check_listed(job)


def check_one(job: Job, name: str) -> None:
    """What one reward needs beside its name.

    Raises:
      UserError: naming the key.
    """
    config = job.config.reward
    if name == MODEL:
        if not config.path:
            raise UserError("reward 'model' needs a Hugging Face folder of a reward model (config.reward.path)")
        with located("mesh"):
            models.check_mesh(job.reward_model, job.unit_mesh)
    elif name == JUDGE:
        stages = [stage for stage in ("score", "evaluate") if stage in job.config.stages]
        done = all(any(read_manifest(run / stage) for run in job.runs) for stage in stages)
        check_judge(job, (job.reward_key, f"{JUDGE!r}"), done)
    elif name in NEEDS:
        what, source = NEEDS[name], job.config.prompts.source
        if not getattr(kind_of(source), what):
            raise UserError(
                f"reward {name!r} needs prompts with {what}, which prompts from {source!r} lack "
                f"(config.{job.reward_key})"
            )
        if name == MATH_VERIFY and not (config.python or config.command):
            with located(job.reward_key):
                expressions.check_package()
        if name in RUN_CODE:
            check_sandbox(config, mathematics=name == MATH_VERIFY)


def check_listed(job: Job) -> None:
    """Refuses listed rows without what a reward reads of their payload, or that the reward model's template refuses.

    Raises:
      UserError: naming the row and the key.
    """
    for split in ("train", "eval"):
        source = open_listed(job, split)
        sample = source.looked_at()
        for name in job.rewards:
            if name in READERS:
                with located(job.reward_key, "prompts.source"):
                    for _, row in source.read(source.looked_at(PROBLEMS)):
                        READERS[name](row, source.place(row))
            elif name == MODEL:
                with located("reward.path", max_tokens="reward.max_tokens"):
                    too_long_P = models.check_conversations(job.reward_model, source.rows(sample), source.place)
                if too_long := source.where_true(too_long_P, sample):
                    what = "prompts are too long for the reward model and will be dropped"
                    job.note(f"score: WARNING: {too_long.line(what)} (config.reward.max_tokens)")
            elif name == JUDGE:
                with located("judge.prompt"):
                    asked = template(job.config)
                    for row in source.rows(sample):
                        fill(asked, row, "", source.place(row))
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
