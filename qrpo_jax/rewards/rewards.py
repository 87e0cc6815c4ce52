"""Rewards of completions: tests that the completion must pass, a reward model, or any Python function."""

import inspect
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from qrpo_jax.data.rows import LARGEST_REWARD, Row
from qrpo_jax.errors import UserError, shown
from qrpo_jax.faults import user_code
from qrpo_jax.rewards import answers, expressions
from qrpo_jax.rewards.code_reward import CodeReward, summary
from qrpo_jax.rewards.models import ModelScorer
from qrpo_jax.rewards.sandbox.pool import Sandbox
from qrpo_jax.rewards.sandbox.remote import RemoteSandbox
from qrpo_jax.rewards.scores import Scores

TextReward = Callable[[str, str, str], float]  # prompt, completion, payload -> reward


def dialogue_share(prompt: str, completion: str, payload: str) -> float:
    """Share of a completion's words inside double quotes; 0 for a completion without words.

    >>> dialogue_share("", 'He said, "Come here."', "")
    0.5
    """
    words = list(re.finditer(r"\S+", completion))
    # Counts words, not quotes, so that a word with several quotes counts once and the share stays at most one.
    quoted = [match.span(1) for match in re.finditer(r'"([^"]*)"', completion)]
    spoken = sum(any(max(word.start(), start) < min(word.end(), end) for start, end in quoted) for word in words)
    return spoken / len(words) if words else 0.0


TEXT_REWARDS: dict[str, TextReward] = {"dialogue_share": dialogue_share}
TESTS = "tests"
ANSWER = "answer"
MATH_VERIFY = "math_verify"
MODEL = "model"
BUILT_IN = (TESTS, ANSWER, MATH_VERIFY, MODEL)
RUN_CODE = (TESTS, MATH_VERIFY)  # in a sandbox
OK = "ok"  # verdict on a completion whose reward is a number
TOO_LONG = "dropped: too long for the reward model"


class Reward:
    """A reward by name: "tests", "answer", "math_verify", a key of TEXT_REWARDS, or "package.module:function".

    A context manager, because running code needs worker processes. `protections` says which of the sandbox's limits
    this machine enforces.

    Args:
      block, max_tests: of "tests", see `CodeReward`.
      sandbox: where "tests" and "math_verify" run code; they need one, not started yet.

    Raises:
      UserError: no such reward.
    """

    def __init__(
        self,
        name: str,
        *,
        block: str = "first",
        max_tests: int = 0,
        sandbox: Sandbox | RemoteSandbox | None = None,
    ) -> None:
        assert (sandbox is not None) == (name in RUN_CODE), "code needs a sandbox, and nothing else does"
        self._name, self._sandbox = name, sandbox
        self._function = None if name in BUILT_IN else find_function(name)
        self._tests: CodeReward | None = None
        if sandbox is not None and name == TESTS:
            self._tests = CodeReward(sandbox, block=block, max_tests=max_tests)

    @property
    def protections(self) -> dict[str, bool]:
        return {} if self._sandbox is None else self._sandbox.protections

    @property
    def isolation(self) -> str:
        """The level at which code is isolated; "" if none runs."""
        return "" if self._sandbox is None else self._sandbox.level

    def score(self, rows: Sequence[Row]) -> Scores:
        """Rewards of all completions of `rows`, including those that already have one."""
        if self._tests is not None:
            return self._tests.score(rows)
        if self._name == ANSWER:
            return summary([answers.judge(row) for row in rows])
        if self._sandbox is not None:
            return summary(expressions.judge(self._sandbox, rows))
        with user_code.Watch() as watch:
            rewards = [[self._call(row, i, watch) for i in range(len(row.completions))] for row in rows]
        return Scores(rewards, {OK: sum(map(len, rewards))})

    def _call(self, row: Row, index: int, watch: user_code.Watch) -> float:
        assert self._function is not None
        prompt, completion = "".join(message.content for message in row.messages), row.completions[index].text
        of = f"row {row.id!r}, completion {index}"
        watch.calling(f"reward {self._name!r} of {of}")
        with user_code.guard(f"reward {self._name!r} failed for {of}", "name"):
            value = self._function(prompt, completion, row.payload)
        number = read_number(value)
        if number is None:
            rule = "must be a number"
        elif not abs(number) <= LARGEST_REWARD:
            rule = f"must be finite, and at most {LARGEST_REWARD:.2g} in size"
        else:
            return number
        raise UserError(f"reward {self._name!r} returned {shown(value)} for row {row.id!r}; it {rule}", about="name")

    def __enter__(self) -> "Reward":
        if self._sandbox is not None:
            self._sandbox.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._sandbox is not None:
            self._sandbox.__exit__(*error)


def read_number(value: Any) -> float | None:
    """A number of Python or of an array library as a float; None for anything else, also text and arrays with axes.

    >>> read_number(True), read_number(np.float32(0.5)), read_number("0.5"), read_number(np.ones(1))
    (1.0, 0.5, None, None)
    """
    try:
        # float() would also read text, and arrays of one number.
        return None if isinstance(value, str | bytes | bytearray) or np.shape(value) else float(value)
    except Exception:  # whatever __float__ of a user's class raises
        return None


class ModelReward(AbstractContextManager):
    """The reward "model": a reward model with the interface of a `Reward`."""

    def __init__(self, scorer: ModelScorer) -> None:
        self.model, self._scorer, self.isolation = scorer.model, scorer, ""

    @property
    def protections(self) -> dict[str, bool]:
        return {}

    def score(self, rows: Sequence[Row]) -> Scores:
        """Rewards of all completions of `rows`, including those that have one; None for one that is too long."""
        scored = self._scorer.score_rows(rows)
        scores = iter(scored.scores)
        rewards = [[next(scores) for _ in row.completions] for row in rows]
        long = sum(score is None for score in scored.scores)
        outcomes = {OK: len(scored.scores) - long, TOO_LONG: long}
        return Scores(rewards, outcomes, {"special strings taken as text": scored.special_strings})

    def __exit__(self, *error: Any) -> None:
        pass


def find_function(name: str) -> TextReward:
    """The Python reward function of that name: a key of TEXT_REWARDS, or "package.module:function".

    Raises:
      UserError: no such function, or its module raises or exits.
    """
    if name in TEXT_REWARDS:
        return TEXT_REWARDS[name]
    allowed = f"{', '.join([*BUILT_IN, *TEXT_REWARDS])}, or package.module:function"
    if ":" not in name:
        raise UserError(f"reward is {name!r}; allowed: {allowed}", about="name")
    try:
        reward = user_code.imported(name, f"reward {name!r} cannot be imported", "name")
    except UserError as error:
        raise UserError(f"{error.message}; allowed: {allowed}", about="name") from error
    if not callable(reward):
        raise UserError(f"reward {name!r} is not a function; allowed: {allowed}", about="name")
    if inspect.iscoroutinefunction(reward) or inspect.isgeneratorfunction(reward):
        raise UserError(f"reward {name!r} is async or a generator; it must be a plain function", about="name")
    try:
        inspect.signature(reward).bind("prompt", "completion", "payload")
    except TypeError as error:
        raise UserError(f"reward {name!r} does not take (prompt, completion, payload): {error}", about="name") from None
    except ValueError:
        pass  # some functions of C extensions have no signature to look at
    return reward
