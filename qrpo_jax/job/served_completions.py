"""Completions from OpenAI-compatible servers, for rows of prompts: tokens and weights stay out of this process."""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from qrpo_jax.data.rows import Completion, Row
from qrpo_jax.data.text import Text
from qrpo_jax.job.completions import fitting, stopped_text
from qrpo_jax.job.job import Job
from qrpo_jax.job.served_prompts import ServedPrompt, served_prompt
from qrpo_jax.job.server_access import access, request
from qrpo_jax.job.units import Counts
from qrpo_jax.sampling.openai import Answer, Choice, base_seed, read_answer, seeds
from qrpo_jax.sampling.stop import cut
from qrpo_jax.servers.background import Background
from qrpo_jax.servers.client import Client

MADE_HERE = "completions with tokens made here from the server's text"
END_ADDED = "completions with an end token added here"
NO_LOG_PROB = "completions without a log-prob from the server"
EMPTY = "completions without text"
ALIKE = "prompts: all completions alike"
OTHER_PROMPT = "prompts: tokenized in another way by the server"
SPACE_LOST = "; this tokenizer drops a space at the beginning of a text, so those of completions are lost"
UNSEEN_PROMPT = "prompts: laid out by the server, unseen"


class _Begun(NamedTuple):
    """Rows whose completions are under way."""

    rows: list[Row]
    prompts: list[ServedPrompt]
    counts: Counts
    answers: list[list[Future[Answer]]]


class ServedCompleter:
    """A `Completer` that asks servers. A context manager.

    Rows that `begin` has seen are completed meanwhile, so that the servers have work while the last completions of the
    rows before are still coming.

    Args:
      section: of the config, with completions, max_new_tokens, temperature, top_k and top_p.
      side, purpose: as in `completions.make_completer`.
      most: rows of a call, or fewer.

    Attributes:
      ahead: calls whose rows should have begun before the first of them is waited for.
    """

    def __init__(self, job: Job, section: Any, *, side: str, purpose: str, most: int) -> None:
        self._job, self._section, self._side, self._purpose = job, section, side, purpose
        self._request, served = request(job, section), job.config.openai
        self._parts = parts(section.completions, served.completions)
        self._begun: dict[tuple[int, ...], _Begun] = {}
        self._exits = ExitStack()
        self.ahead = -(-served.concurrency // max(1, most * len(self._parts)))

    def __enter__(self) -> "ServedCompleter":
        self._background = self._exits.enter_context(Background())
        self._client = self._background.enter(Client(access(self._job.config)))
        return self

    def __exit__(self, *error: Any) -> None:
        self._exits.close()
        if repeated := self._client.repeated:
            kinds = ", ".join(f"{count} x {kind}" for kind, count in sorted(repeated.items()))
            self._job.say(f"{self._purpose}: {sum(repeated.values())} requests were sent again ({kinds})")

    def begin(self, rows: list[Row], indices: Sequence[int]) -> None:
        """Sends the requests for rows that a later call will ask for; arguments as in that call."""
        self._begun[tuple(indices)] = self._send(rows, indices)

    def __call__(self, rows: list[Row], indices: Sequence[int]) -> tuple[list[Row], Counts]:
        """Completed rows and counts, without rows whose prompt is empty or too long.

        Args:
          indices: of the rows' prompts.

        Raises:
          ServerError: a request failed for good.
        """
        begun = self._begun.pop(tuple(indices), None) or self._send(rows, indices)
        if not begun.answers:
            return begun.rows, begun.counts
        found: Counter[str] = Counter()
        answers = [[future.result() for future in futures] for futures in begun.answers]
        completed = [
            self._completed(row, prompt, of_row, found)
            for row, prompt, of_row in zip(begun.rows, begun.prompts, answers, strict=True)
        ]
        self._warn(found, len(completed))
        return completed, begun.counts | _sample_counts(completed, self._side) | dict(+found)

    def _send(self, rows: list[Row], indices: Sequence[int]) -> _Begun:
        job, text = self._job, self._job.text
        tokens = [text.prompt(row.messages, f"row {row.id!r}") for row in rows]
        kept, counts = fitting(rows, tokens, job.config.prompts.max_tokens)
        rows = [rows[i] for i in kept]
        prompts = [served_prompt(text, self._request.prompts, rows[k].messages, tokens[i]) for k, i in enumerate(kept)]
        if not self._parts:
            return _Begun(rows, prompts, counts, [])
        answers = [
            self._ask(prompt, f"row {row.id!r}", base_seed(job.config.seed, self._purpose, indices[i]))
            for row, prompt, i in zip(rows, prompts, kept, strict=True)
        ]
        return _Begun(rows, prompts, counts, answers)

    def _ask(self, prompt: ServedPrompt, about: str, base: int) -> list[Future[Answer]]:
        asked, first = self._request, seeds(base, self._section.completions)
        futures, begin = [], 0
        for count in self._parts:
            body = asked.body(prompt.content, count, first[begin])
            read = functools.partial(read_answer, request=asked, count=count)
            futures.append(self._background.start(self._client.post(asked.path, body, read, about)))
            begin += count
        return futures

    def _completed(self, row: Row, prompt: ServedPrompt, answers: list[Answer], found: Counter[str]) -> Row:
        choices = [choice for answer in answers for choice in answer.choices]
        completions = tuple(self._completion(choice, found) for choice in choices)
        found[NO_LOG_PROB] += sum(math.isnan(c.log_prob) for c in completions)
        if len(completions) > 1 and len({c.tokens.tobytes() for c in completions}) == 1:
            found[ALIKE] += 1
        if (same := prompt.seen_by(answers[0].prompt_tokens)) is None:
            found[UNSEEN_PROMPT] += 1
        elif not same:
            found[OTHER_PROMPT] += 1
        return dataclasses.replace(row, completions=(*row.completions, *completions))

    def _completion(self, choice: Choice, found: Counter[str]) -> Completion:
        text, ends = self._job.text, self._request.end_tokens
        if choice.finish not in ("stop", "length"):
            found[f"completions ended by {choice.finish!r}"] += 1
        if choice.tokens is None:
            finished = choice.finish == "stop"
            found[MADE_HERE] += 1
            found[EMPTY] += not choice.text
            before = cut(choice.text, self._request.stop)  # servers need not leave stop strings out
            content = choice.text if before is None else before
            tokens = text.completion(content, finished)
            return Completion(content, tokens, finished, self._side, log_prob=choice.log_prob)
        tokens, log_prob = choice.tokens, choice.log_prob
        ended, content = len(tokens) > 0 and int(tokens[-1]) in ends, stopped_text(text, tokens, self._request.stop)
        finished = ended or content != text.decode(tokens, False)
        if not finished and choice.finish == "stop":
            found[END_ADDED] += 1
            tokens, log_prob, finished = np.append(tokens, np.int32(ends[0])), math.nan, True
        return Completion(content, tokens, finished, self._side, log_prob=log_prob)

    def _warn(self, found: Counter[str], prompts: int) -> None:
        """Says at once what most users do not expect; the counts of all are in the manifest."""
        name = self._purpose
        if found[MADE_HERE]:
            self._job.say_once(
                f"{name}: the server gives no token ids; they are made here from its text, and may differ from those "
                f"that it sampled{SPACE_LOST if loses_space(self._job.text) else ''}"
            )
        if found[OTHER_PROMPT]:
            self._job.say_once(
                f"{name}: WARNING: the server tokenizes {found[OTHER_PROMPT]} of {prompts} prompts in another way than "
                "the model's chat template; config.openai.prompts=tokens sends token ids"
            )
        if found[ALIKE] > prompts / 2 and self._section.temperature > 0:
            self._job.say_once(
                f"{name}: WARNING: all completions of {found[ALIKE]} of {prompts} prompts are alike: the server may "
                "not sample, or give all completions of a request one seed (config.openai.completions=1)"
            )


def loses_space(text: Text) -> bool:
    """Whether this tokenizer loses a space at the beginning of what it decodes by itself, as SentencePiece does."""
    return not text.tokenizer.decode(text.completion(" a", False)).startswith(" ")


def _sample_counts(rows: list[Row], side: str) -> Counts:
    """The counts that local sampling has, too."""
    completions = [c for row in rows for c in row.completions if c.source == side]
    return {
        "completions": len(completions),
        "completions cut by length limit": sum(not c.finished for c in completions),
        "completion tokens": sum(len(c.tokens) for c in completions),
    }


def parts(completions: int, most: int) -> list[int]:
    """The completions of each request for one prompt; `most` is 0 for no limit.

    >>> parts(7, 3), parts(7, 0), parts(0, 3)
    ([3, 3, 1], [7], [])
    """
    most = most or max(completions, 1)
    return [min(most, completions - begin) for begin in range(0, completions, most)]
