"""Access to the servers that `config.openai` names: checks before a run, the key, and one trial of each server."""

import asyncio
import importlib.util
import os
import re
from typing import Any
from urllib.parse import urlsplit

from qrpo_jax.config.keys import refuse
from qrpo_jax.data.rows import Message
from qrpo_jax.data.sources import kind_of
from qrpo_jax.errors import ServerError, UserError
from qrpo_jax.job.job import Job
from qrpo_jax.job.manifest import read_manifest
from qrpo_jax.job.served_prompts import served_prompt
from qrpo_jax.sampling.openai import Request, read_answer
from qrpo_jax.servers.client import Access, Client

TRIES = 4  # attempts of a trial
# What to change after a status, by config key.
REMEDIES = {
    401: ("openai.key_variable",),
    403: ("openai.key_variable",),
    404: ("openai.servers", "openai.model"),
    0: ("openai.servers",),
}
OTHERS = ("openai.model", "openai.prompts", "openai.completions", "openai.extra_fields", "openai.log_probs")


def access(config: Any, section: str = "openai") -> Access:
    """How a job asks the servers of a section of its config.

    Raises:
      UserError: the environment has no key of this name, or one that no header can hold.
    """
    served = config[section]
    name, key = f"{section}.key_variable", ""
    if served.key_variable:
        key = os.environ.get(served.key_variable, "").strip()
        if not key:
            raise refuse(name, f"{served.key_variable!r}, and the environment has no such variable")
        if not re.fullmatch(r"[!-~]+", key):
            raise refuse(name, f"{served.key_variable!r}, whose value is no key: it has odd characters")
    return Access(
        servers=tuple(served.servers),
        key=key,
        concurrency=served.concurrency,
        attempts=served.attempts,
        connect_seconds=served.connect_seconds,
        answer_seconds=served.answer_seconds,
    )


def request(job: Job, section: Any) -> Request:
    """How completions are asked for; `section` as in `ServedCompleter`."""
    served = job.config.openai
    return Request(
        model=served.model,
        prompts=served.prompts,
        max_tokens=section.max_new_tokens,
        temperature=section.temperature,
        top_k=section.top_k,
        top_p=section.top_p,
        min_p=section.min_p,
        end_tokens=job.text.end_tokens,
        vocab_size=job.shape.settings.vocab_size,
        extra_fields=served.extra_fields,
        log_probs=served.log_probs,
        stop=tuple(section.stop),
    )


def check_servers(job: Job, stage: str) -> None:
    """Refuses settings with which no server can complete the prompts of `stage`, and servers that do not answer.

    Raises:
      UserError: naming the key.
    """
    config = job.config
    check_section(config, "openai", (f"{stage}.backend", "'openai'"))
    if "sft" in config.stages:
        raise refuse(
            f"{stage}.backend",
            "'openai', and the reference policy is what stage 'sft' will train, which no server has: export it first, "
            "and serve it in a run that begins at 'sample'",
        )
    if kind_of(config.prompts.source).sampled:
        raise refuse(f"{stage}.backend", f"'openai', and prompts from {config.prompts.source!r} are sampled locally")
    check_fields(config, stage)
    if config[stage].completions and not any(read_manifest(run / stage) for run in job.runs):
        try_servers(job, stage)


def check_section(config: Any, section: str, asks: tuple[str, str]) -> None:
    """Refuses a section without usable addresses, a model and the name of a key, and an environment without the client.

    Args:
      asks: the key whose value makes a run ask the servers, and that value.

    Raises:
      UserError: naming the key.
    """
    check_addresses(config[section].servers, f"{section}.servers")
    if importlib.util.find_spec("httpx2") is None:
        raise refuse(asks[0], f"{asks[1]}, which needs httpx2: pip install -e '.[openai]'")
    if not config[section].model:
        raise refuse(f"{section}.model", "''; give the name under which the servers know the model")
    if not re.fullmatch(r"([A-Za-z_]\w*)?", config[section].key_variable):
        # It may be the key itself, so it is not shown.
        raise refuse(f"{section}.key_variable", "no name of an environment variable; never put a key into a config")


def check_addresses(servers: tuple[str, ...], key: str = "openai.servers") -> None:
    """Refuses addresses that are no base URLs, or that hold a password.

    Raises:
      UserError: naming the key.
    """
    if not servers:
        raise refuse(key, "(); name at least one server, such as http://localhost:8000/v1")
    for address in servers:
        try:
            parts = urlsplit(address)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if "@" in address:
            raise refuse(key, f"an address with a user or a key in it; use config.{key.partition('.')[0]}.key_variable")
        if not usable or parts.query or parts.fragment:
            raise refuse(key, f"{address!r}; each must be a base URL, such as http://localhost:8000/v1")


def check_fields(config: Any, stage: str) -> None:
    """Refuses settings that the chosen kind of request cannot express.

    Raises:
      UserError: naming the key.
    """
    if config.openai.prompts == "chat" and config.model.template != "chat":
        raise refuse("openai.prompts", f"'chat', and model.template is {config.model.template!r}: use 'tokens'")
    if config.openai.prompts == "chat" and config.model.thinking != "template":
        raise refuse(
            "openai.prompts",
            f"'chat', where the server lays out prompts, and model.thinking is {config.model.thinking!r}: use 'tokens'",
        )
    for key in ("top_k", "min_p"):
        if config[stage][key] and not config.openai.extra_fields:
            raise refuse(
                f"{stage}.{key}", f"{config[stage][key]}, which is one of config.openai.extra_fields: set True"
            )


def try_servers(job: Job, stage: str) -> None:
    """Asks each server for one token of each completion of a request. Notes servers that cannot be reached now.

    Raises:
      UserError: a server refuses, or none can be reached; in its words, with the key.
    """
    errors = asyncio.run(_try_all(job, stage))
    for error in errors:
        if error is not None and 400 <= error.status < 500 and error.status != 429:
            raise _refused(error)
    failed = [error for error in errors if error is not None]
    if len(failed) == len(errors):
        raise _refused(failed[0])
    for error in failed:
        job.note(f"{stage}: WARNING: {error}; the other servers take its share")


async def _try_all(job: Job, stage: str) -> list[ServerError | None]:
    asked = request(job, job.config[stage])
    hello = (Message("user", "Hello"),)
    prompt = served_prompt(job.text, asked.prompts, hello, job.text.prompt(hello, "a trial prompt"))
    completions = job.config[stage].completions
    count = min(completions, job.config.openai.completions or completions)
    body = asked.body(prompt.content, count, 0) | {"max_tokens": 1}
    reached = access(job.config)

    async def try_one(address: str) -> ServerError | None:
        alone = Access(
            (address,), reached.key, 1, min(TRIES, reached.attempts), reached.connect_seconds, reached.answer_seconds
        )
        async with Client(alone) as client:
            try:
                await client.post(asked.path, body, lambda answer: read_answer(answer, asked, count), "a trial")
            except ServerError as error:
                return error
        return None

    return list(await asyncio.gather(*map(try_one, reached.servers)))


def _refused(error: ServerError) -> UserError:
    refused = UserError(str(error))
    refused.keys = REMEDIES.get(error.status, OTHERS)
    return refused
