"""The judge that `config.judge` names: checks before a run, one trial of each server, and the reward."""

import asyncio
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from qrpo_jax.errors import ServerError, UserError, located, shown
from qrpo_jax.job.job import Job
from qrpo_jax.job.server_access import access, check_section
from qrpo_jax.rewards.failures import Failures
from qrpo_jax.rewards.judge import PATH, JudgeReward, Questions
from qrpo_jax.rewards.judge_words import check_template, make_reader
from qrpo_jax.servers.client import Client

TRIES = 4  # attempts of a trial
KEYS = {name: f"judge.{name}" for name in ("prompt", "grade", "low", "high")}
REFUSED = {401: "judge.key_variable", 403: "judge.key_variable", 404: "judge.model"}  # what to change, by status


def template(config: Any) -> str:
    """The judge's template: the text in `config.judge.prompt`, or in the file that it names.

    Raises:
      UserError: the file cannot be read.
    """
    given = config.judge.prompt
    if not names_file(config):
        return str(given)
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"the judge's template {shown(given)} has no field, and is no file that can be read: {error}",
            about="prompt",
        ) from None


def names_file(config: Any) -> bool:
    """Whether the judge's template is in a file."""
    return "{" not in config.judge.prompt


def template_digest(config: Any) -> str:
    """The sha256 of the template."""
    with located("judge.prompt"):
        return hashlib.sha256(template(config).encode()).hexdigest()


def questions(config: Any) -> Questions:
    """What the judge is asked.

    Raises:
      UserError: a template, a place of the grade or bounds that cannot be, naming the key.
    """
    judge = config.judge
    with located("judge", **KEYS):
        asked = template(config)
        check_template(asked)
        return Questions(
            judge.model, asked, make_reader(judge.grade, judge.low, judge.high), judge.max_tokens, judge.temperature
        )


def open_judge(job: Job, failures: Failures) -> JudgeReward:
    return JudgeReward(questions(job.config), access(job.config, "judge"), failures, job.say)


def check_judge(job: Job, asks: tuple[str, str], done: bool) -> None:
    """Refuses a judge that cannot be asked, and servers that do not answer.

    Args:
      asks: the key whose value makes a run ask the judge, and that value.
      done: nothing is left to grade, so that the servers may be gone.

    Raises:
      UserError: naming the key.
    """
    check_section(job.config, "judge", asks)
    asked, reached = questions(job.config), access(job.config, "judge")
    if not done:
        errors = asyncio.run(_try_all(asked, reached))
        refused = [error for error in errors if error is not None and 400 <= error.status < 500 and error.status != 429]
        failed = [error for error in errors if error is not None]
        if refused or len(failed) == len(errors):
            first = (refused or failed)[0]
            error = UserError(str(first))
            error.keys = (REFUSED.get(first.status, "judge.servers"),)
            raise error
        for one in failed:
            job.note(f"judge: WARNING: {one}; the other servers take its share")


async def _try_all(asked: Questions, reached: Any) -> list[ServerError | None]:
    """Asks each server for one token, whatever it is."""

    async def try_one(address: str) -> ServerError | None:
        alone = dataclasses.replace(reached, servers=(address,), concurrency=1, attempts=min(TRIES, reached.attempts))
        async with Client(alone) as client:
            try:
                await client.post(PATH, asked.body("Hello"), lambda answer: None, "a trial")
            except ServerError as error:
                return error
        return None

    return list(await asyncio.gather(*map(try_one, reached.servers)))
