"""Rewards of completions: code run against its tests, a reward model, or any Python function."""

import importlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, NamedTuple

from qrpo_jax.data import programs
from qrpo_jax.data.rows import Row
from qrpo_jax.rewards.models import ModelScorer
from qrpo_jax.rewards.sandbox.pool import Job, Limits, Sandbox, same_value

TextReward = Callable[[str, str, str], float]  # prompt, completion, payload -> reward


def dialogue_share(prompt: str, completion: str, payload: str) -> float:
    """Share of a completion's words that stand inside double quotes; 0 without words.

    >>> dialogue_share("", 'He said, "Come here."', "")
    0.5
    """
    words = list(re.finditer(r"\S+", completion))
    # Word by word, each counted once: however many quotes a word holds, the share stays below one.
    quoted = [match.span(1) for match in re.finditer(r'"([^"]*)"', completion)]
    spoken = sum(any(max(word.start(), start) < min(word.end(), end) for start, end in quoted) for word in words)
    return spoken / len(words) if words else 0.0


TEXT_REWARDS: dict[str, TextReward] = {"dialogue_share": dialogue_share}
TESTS = "tests"
MODEL = "model"
TOO_LONG = "dropped: too long for the reward model"


class Scores(NamedTuple):
    """Rewards of every row's completions, and how many completions ended how ("ok", "timeout", ...).

    A completion that no reward can be given to has None.
    """

    rewards: Sequence[Sequence[float | None]]
    outcomes: dict[str, int]
    counts: Mapping[str, int] = MappingProxyType({})  # of other things than completions


class Reward:
    """A reward by name: "tests", a key of TEXT_REWARDS, or "package.module:function".

    A context manager, because running code needs worker processes. `protections` says which limits this machine
    can put on them.

    Raises:
      ValueError: no such reward.
    """

    def __init__(self, name: str, *, limits: Limits, workers: int) -> None:
        self._function = None if name == TESTS else find_function(name)
        self._sandbox = Sandbox(limits, workers or os.cpu_count() or 1) if name == TESTS else None

    @property
    def protections(self) -> dict[str, bool]:
        return {} if self._sandbox is None else self._sandbox.protections

    def score(self, rows: Sequence[Row]) -> Scores:
        """Rewards of all completions of `rows`, scored or not before."""
        if self._sandbox is not None:
            return run_tests(self._sandbox, rows)
        assert self._function is not None
        rewards = []
        for row in rows:
            prompt = "".join(message.content for message in row.messages)
            rewards.append([float(self._function(prompt, c.text, row.payload)) for c in row.completions])
        return Scores(rewards, {"ok": sum(map(len, rewards))})

    def __enter__(self) -> "Reward":
        if self._sandbox is not None:
            self._sandbox.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._sandbox is not None:
            self._sandbox.__exit__(*error)


class ModelReward(AbstractContextManager):
    """The reward "model": scores of a reward model, in the place of a `Reward`."""

    def __init__(self, scorer: ModelScorer) -> None:
        self.model, self._scorer = scorer.model, scorer

    @property
    def protections(self) -> dict[str, bool]:
        return {}

    def score(self, rows: Sequence[Row]) -> Scores:
        """Rewards of all completions of `rows`, scored or not before; None where a conversation is too long."""
        made = self._scorer.score_rows(rows)
        scores = iter(made.scores)
        rewards = [[next(scores) for _ in row.completions] for row in rows]
        long = sum(score is None for score in made.scores)
        outcomes = {"ok": len(made.scores) - long, TOO_LONG: long}
        return Scores(rewards, outcomes, {"special strings taken as text": made.special_strings})

    def __exit__(self, *error: Any) -> None:
        pass


def find_function(name: str) -> TextReward:
    """The Python reward function of that name; "module:function" names one of the user's own.

    Raises:
      ValueError: no such function.
    """
    if name in TEXT_REWARDS:
        return TEXT_REWARDS[name]
    module, colon, function = name.partition(":")
    allowed = f"{TESTS}, {MODEL}, {', '.join(TEXT_REWARDS)}, or package.module:function (config.reward.name)"
    if not colon:
        raise ValueError(f"reward is {name!r}; allowed: {allowed}")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"reward {name!r} cannot be imported ({error}); allowed: {allowed}") from None
    if not callable(found):
        raise ValueError(f"reward {name!r} is not a function; allowed: {allowed}")
    return found


def run_tests(sandbox: Sandbox, rows: Sequence[Row]) -> Scores:
    """Share of its prompt's tests that each completion passes, the completion being an expression of f(a, b).

    Every distinct completion of a prompt runs once, in a process of its own. Expected values stay here: the
    sandbox returns what the code computed, so nothing it prints or returns can claim a pass.
    """
    jobs: dict[tuple[int, str], Job] = {}
    tests = [read_tests(row) for row in rows]
    for index, row in enumerate(rows):
        inputs = tuple(tuple(arguments) for arguments, _ in tests[index])
        for completion in row.completions:
            jobs[index, completion.text] = Job(programs.program(completion.text), "f", inputs)
    outcomes = dict(zip(jobs, sandbox.run(list(jobs.values())), strict=True))
    counts: dict[str, int] = {}
    rewards = []
    for index, row in enumerate(rows):
        expected = [value for _, value in tests[index]]
        own = []
        for completion in row.completions:
            outcome = outcomes[index, completion.text]
            counts[outcome.status] = counts[outcome.status] + 1 if outcome.status in counts else 1
            passed = [same_value(a, b) for a, b in zip(outcome.outputs, expected, strict=False)]
            own.append(sum(passed) / len(expected))
        rewards.append(own)
    return Scores(rewards, counts)


def read_tests(row: Row) -> list[tuple[list[Any], Any]]:
    """The tests in a row's payload, `{"tests": [[arguments, expected value], ...]}`.

    Raises:
      ValueError: no such payload.
    """
    try:
        tests = [(list(arguments), expected) for arguments, expected in json.loads(row.payload)["tests"]]
    except (KeyError, TypeError, ValueError):
        tests = []
    if not tests:
        raise ValueError(
            f"row {row.id!r}: its payload is {row.payload[:40]!r}, reward 'tests' needs "
            '{"tests": [[arguments, value], ...]}; mend the prompts, or set another config.reward.name'
        )
    return tests
