"""The rewards that know what is right from the payload of a row: "tests", "answer" and "math_verify"."""

from collections.abc import Sequence
from typing import Any, Self

from qrpo_jax.data.rows import Row
from qrpo_jax.rewards import answers, expressions
from qrpo_jax.rewards.code_reward import CodeReward, summary
from qrpo_jax.rewards.reward import Reward
from qrpo_jax.rewards.sandbox.pool import Sandbox
from qrpo_jax.rewards.sandbox.remote import RemoteSandbox
from qrpo_jax.rewards.scores import Scores


class AnswerReward(Reward):
    """Compares the number that a completion ends with."""

    gives_verdicts = True

    def score(self, rows: Sequence[Row]) -> Scores:
        return summary([answers.judge(row) for row in rows])


class SandboxReward(Reward):
    """A reward that runs code in a sandbox, which is started and ended with it."""

    gives_verdicts = True

    def __init__(self, sandbox: Sandbox | RemoteSandbox) -> None:
        self._sandbox = sandbox

    @property
    def protections(self) -> dict[str, bool]:
        return self._sandbox.protections

    @property
    def isolation(self) -> str:
        return self._sandbox.level

    def describe(self) -> list[str]:
        limited = ", ".join(name for name, holds in self.protections.items() if holds)
        unlimited = ", ".join(name for name, holds in self.protections.items() if not holds)
        level = f"code runs in separate processes, at level {self.isolation!r} of isolation"
        return [f"{level}, limited: {limited}" + (f"; NOT limited: {unlimited}" if unlimited else "")]

    def __enter__(self) -> Self:
        self._sandbox.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._sandbox.__exit__(*error)


class TestsReward(SandboxReward):
    """Runs a completion's code on the tests of its prompt; block, max_tests: see `CodeReward`."""

    def __init__(self, sandbox: Sandbox | RemoteSandbox, *, block: str = "first", max_tests: int = 0) -> None:
        super().__init__(sandbox)
        self._tests = CodeReward(sandbox, block=block, max_tests=max_tests)

    def score(self, rows: Sequence[Row]) -> Scores:
        return self._tests.score(rows)


class ExpressionReward(SandboxReward):
    """Compares mathematical expressions."""

    def score(self, rows: Sequence[Row]) -> Scores:
        return summary(expressions.judge(self._sandbox, rows))
